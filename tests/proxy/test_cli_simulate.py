"""`pullcord policy simulate`: on a ledger that a store has filled, and beside one that fills it."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result

from ledger.records import Ask
from ledger.states import CallState, ClaimAfter
from ledger.store import Outcome, Store
from policies.call import Identity, Request, Traits
from policies.decide import decide
from policies.load import load_file
from policies.match import identify
from policies.verdict import Action
from proxy import environment, secret_keys
from proxy.cli import simulating
from proxy.cli.main import cli
from proxy.clock import SystemClock
from tests.proxy.controlled import POLICY

CALLS = 40
LOOPS = "detectors: {loop: {mode: enforce}}\n"
FREEZE = "ceilings: [{per: run, count: writes, at_most: 3, then: freeze}]\n"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a person with a policy that only alerts, and a run that looped lately."""
    structlog.reset_defaults()
    for name in list(os.environ):
        if name.startswith("PULLCORD_") or name in environment.NAMES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "policy.yaml").write_text(POLICY, "utf-8")
    monkeypatch.chdir(tmp_path)
    filled(tmp_path / "data")
    return tmp_path


def filled(data: Path) -> None:
    """The same read again and again, a call a second until now; then some writes, all frozen."""
    policy = load_file("config/policy.yaml")
    now_us = SystemClock().now_us() - CALLS * 1_000_000
    store = Store.open(data, secret_keys.vault_key(data), lambda: now_us)
    with store.transaction(durable=False):
        for number in range(CALLS):
            at_us = now_us + number * 1_000_000
            method = "GET" if number < CALLS - 5 else "POST"
            request = Request(
                method, "https", "mail.example", 443, "/inbox", (), f"{number}".encode()
            )
            call = identify(policy, request)
            ask = Ask(f"call-{number:02}", at_us, Identity("r1", "acme"), request, call)
            ask = replace(ask, traits=Traits(b"same"))
            if store.admit(ask, policy, decide).verdict.action is Action.ALLOW:
                outcome = Outcome(
                    ask.call_id, at_us, CallState.DONE, ClaimAfter.KEPT, 200,
                    cost_microusd=10_000, result=b"same",
                )  # fmt: skip
                store.settle(outcome, policy)
    store.close()


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, ["policy", "simulate", *words])


def another(policy: str) -> list[str]:
    Path("other.yaml").write_text(policy, "utf-8")
    return ["--policy", "other.yaml"]


def objects(*words: str) -> list[dict[str, Any]]:
    result = typed(*words, "--json")
    assert result.exit_code in (0, simulating.WOULD_CHANGE), result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_policy_in_force_would_have_changed_nothing(data: Path) -> None:
    result = typed()
    assert result.exit_code == 0, result.output
    assert "flips  none" in result.stdout
    assert "not judgeable: 0" in result.stdout
    assert "detector:loop" in result.stdout  # it alerted then, too


def test_enforcing_tells_what_it_would_have_stopped_and_saved(data: Path) -> None:
    result = typed(*another(POLICY + LOOPS))
    assert result.exit_code == simulating.WOULD_CHANGE, result.output
    row, examples = [
        line for line in result.stdout.splitlines() if line.startswith("detector:loop")
    ]
    assert row.split()[1:4] == ["1", "1", "1"]  # alerts, trips, cords
    assert "USD" in row
    assert "call-" in examples
    assert "allow (allowed) -> refuse (halted)" in result.stdout


def test_each_flip_and_rule_is_an_object(data: Path) -> None:
    found = objects(*another(POLICY + LOOPS))
    flips = [one for one in found if one["kind"] == "flip"]
    (rule,) = [one for one in found if one["kind"] == "rule" and one["rule"] == "detector:loop"]
    summary = found[-1]
    assert {one["would"]["cause"] for one in flips} == {"detector:loop"}
    assert flips[0]["was"]["reason"] == "allowed"
    assert rule["made"] == summary["flips"] == len(flips)
    assert float(rule["saved_usd"]) == pytest.approx(len(flips) * 0.01)
    assert rule["saved_seconds"] == len(flips)
    assert (summary["kind"], summary["would_change"]) == ("summary", True)
    assert summary["decisions"] == CALLS


def test_what_would_pass_now_is_told_by_its_reason(data: Path) -> None:
    found = objects(*another(POLICY.replace("frozen: [mail.send]\n", "") + FREEZE))
    flips = [(one["was"]["reason"], one["would"]["reason"]) for one in found if "was" in one]
    assert flips == [("frozen", "allowed")] * 3
    (ceiling,) = [one for one in found if one.get("rule", "").startswith("ceiling:")]
    assert (ceiling["stops"], ceiling["made"], ceiling["cords"]) == (2, 0, 1)


@pytest.mark.parametrize(
    "words, decisions",
    [
        (["--run", "r1"], CALLS),
        (["--run", "r2"], 0),
        (["--tenant", "acme"], CALLS),
        (["--tenant", "beta"], 0),
        (["--until", "2020-01-01", "--since", "2019-01-01"], 0),
    ],
)
def test_only_what_is_asked_for_is_told(data: Path, words: list[str], decisions: int) -> None:
    assert objects(*words)[-1]["decisions"] == decisions


@pytest.mark.parametrize(
    "words, says",
    [
        (["--since", "soon"], "no time"),
        (["--since", "1h", "--until", "2h"], "--until is not after --since"),
        (["--policy", "gone.yaml"], "gone.yaml"),
        (["--data", "elsewhere"], "there is no ledger"),
    ],
)
def test_what_cannot_be_done_is_said(data: Path, words: list[str], says: str) -> None:
    result = typed(*words)
    assert result.exit_code == 2
    assert says in result.output


def test_a_mistaken_policy_is_told_by_its_line(data: Path) -> None:
    result = typed(*another("version: 1\ntols: {}\n"))
    assert result.exit_code == 2
    assert "other.yaml:2" in result.output


def test_it_reads_beside_a_store_that_is_open(data: Path) -> None:
    store = Store.open(data / "data", secret_keys.vault_key(data / "data"), lambda: 1)
    try:
        assert typed().exit_code == 0
    finally:
        store.close()


def test_it_can_be_interrupted(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulating, "_told", interrupted)
    result = typed()
    assert result.exit_code == 1
    assert "Traceback" not in result.output
