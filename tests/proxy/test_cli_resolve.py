"""`pullcord ledger resolve`, on the ledger and through a running proxy."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ledger.records import Answer, Ask, Outcome
from ledger.states import CallState, ClaimAfter
from ledger.store import Store
from policies.call import Effect, Request, ToolCall
from policies.decide import decide
from proxy import environment, resolutions, secret_keys
from proxy.cli import resolving
from proxy.cli.main import cli
from tests.ledger.world import HEADERS, R1, World
from tests.proxy.controlled import POLICY, Controlled, controlled

UNFROZEN = POLICY.replace("frozen: [mail.send]\n", "")
PRICED = UNFROZEN.replace("effect: write}", "effect: write, cost: {usd: 0.25}}")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory of a person who runs no proxy."""
    for name in list(os.environ):
        if name.startswith("PULLCORD_") or name in environment.NAMES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


@pytest.fixture
def calls(data: Path) -> Path:
    """A ledger with calls of each kind; `lost` is the unknown write."""
    world = World(data)
    world.admit(world.ask("lost"), world.ask("made", body="m"), world.read("read"))
    world.settle("lost", status=None, complete=False, reason="outcome_unknown")
    world.settle("made")
    world.settle("read", complete=False)
    world.admit(world.ask("talked", effect="model", tool="mail", body="t"))
    world.settle("talked", status=None, complete=False)
    world.store.close()
    Store.open(data, secret_keys.vault_key(data), lambda: world.now_us).close()
    return data


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, ("ledger", *words))


def resolve(call: str, state: str, reason: str = "it is in the dashboard", *more: str) -> Result:
    return typed("resolve", call, "--as", state, "--reason", reason, *more)


def shown(call: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(typed("show", call, "--json").stdout)
    return row


def test_the_states_are_those_of_the_record() -> None:
    assert list(resolving.STATES) == list(resolutions.STATES)


def test_a_call_is_shown_and_then_resolved(calls: Path) -> None:
    told = resolve("lo", "done")
    assert told.exit_code == 0, told.output
    about, place, who, why, done, repeat = told.stdout.splitlines()
    assert about == "call lost  2026-11-18T11:06:40.000Z  write"
    assert place == "  pay  POST api.example/v1/charges"
    assert who == "  run r1  tenant acme  release 2026-11-20.3"
    assert why == "  unknown because: outcome_unknown"
    assert done == "resolved as done: it is in the dashboard"
    assert repeat.startswith("a repeat is told that it was done, until 20")
    assert "no proxy runs on" in told.stderr
    row = shown("lost")
    assert row["state"] == "done"
    last = row["events"][-1]
    assert (last["type"], last["state"], last["detail"]) == (
        "call.resolved",
        "done",
        "it is in the dashboard",
    )
    assert last["actor"]
    assert typed("query", "state:unknown", "effect:write", "--json").stdout == ""


def test_what_was_not_sent_may_be_made_again(calls: Path) -> None:
    told = resolve("lost", "not_sent")
    assert told.stdout.splitlines()[-1] == "the same write may be made again"
    assert shown("lost")["state"] == "not_sent"


def test_the_same_again_says_so(calls: Path) -> None:
    resolve("lost", "done", "first")
    again = resolve("lost", "done", "second")
    assert again.exit_code == 0
    assert "was resolved as done already, by " in again.stdout
    assert again.stdout.endswith(": first\n")
    told = json.loads(resolve("lost", "done", "third", "--json").stdout)
    assert (told["changed"], told["reason"]) == (False, "first")


def test_a_model_call_that_was_not_sent_says_what_to_give_back(calls: Path) -> None:
    lines = resolve("talked", "not_sent").stdout.splitlines()
    assert (
        lines[-3] == "what it reserved is still counted as spent; if nobody bills it, give it back:"
    )
    assert lines[-2:] == [
        f"  pullcord budget adjust {scope} --usd -AMOUNT --reason 'call talked was not sent'"
        for scope in ("run r1", "tenant acme")
    ]
    told = json.loads(resolve("lost", "not_sent", "x", "--json").stdout)
    assert told["give_back"] == []


def test_one_object_tells_all(calls: Path) -> None:
    told = json.loads(resolve("lost", "done", "seen", "--json").stdout)
    assert (told["call"]["id"], told["call"]["state"], told["why_unknown"]) == (
        "lost",
        "unknown",
        "outcome_unknown",
    )
    assert (told["state"], told["changed"], told["claim"]) == ("done", True, "done")
    assert told["protected_until"] > told["at"]


def test_a_dry_run_only_shows(calls: Path) -> None:
    told = typed("resolve", "lost", "--as", "done", "--dry-run")
    assert told.exit_code == 0
    assert told.stdout.splitlines()[-1] == "would be resolved as done; nothing was changed"
    assert shown("lost")["state"] == "unknown"


@pytest.mark.parametrize(
    "words, code, why",
    [
        (("made", "--as", "done", "--reason", "x"), 2, "call made is done, and only an unknown"),
        (("nobody", "--as", "done", "--reason", "x"), 4, "state:unknown lists the calls"),
        (("lost", "--as", "gone", "--reason", "x"), 2, "'gone' is not one of"),
        (("lost", "--as", "done"), 2, "say how you know: --reason TEXT"),
        (("lost", "--as", "done", "--reason", " "), 2, "say how you know"),
        (("lost", "--as", "done", "--reason", "\u200b"), 2, "a reason that can be read"),
        (("lost", "--as", "done", "--reason", "x" * 1001), 2, "longer than 1000"),
        (("lost", "--reason", "x"), 2, "--as"),
        (("lost", "--as", "done", "--reason", "x", "--set", "a=b"), 2, "--set says what --verify"),
        (("lost", "--verify", "--set", "a"), 2, "write --set PLACE=VALUE"),
        (("lost", "--verify", "--as", "done"), 2, "say how you know"),
    ],
)
def test_what_is_not_taken_says_why_and_changes_nothing(
    calls: Path, words: tuple[str, ...], code: int, why: str
) -> None:
    told = typed("resolve", *words)
    assert (told.exit_code, why in told.stderr) == (code, True), told.output
    assert told.stdout == ""
    assert shown("lost")["state"] == "unknown"


def test_where_no_ledger_is_nothing_is_made(data: Path) -> None:
    told = resolve("lost", "done")
    assert told.exit_code == 5
    assert "neither a proxy nor a ledger is in" in told.stderr
    assert not data.exists()


# Through a running proxy


def lost(running: Controlled) -> Any:
    """A write of unknown outcome, as an engine leaves it."""
    call_id = "lost"
    request = Request("POST", "https", "mail.example", 443, "/send")
    call = ToolCall("mail.send", Effect.WRITE, "POST /send", call_id.encode().ljust(32))
    ask = Ask(call_id, running.clock.us, R1, request, call)
    answer = Answer(502, HEADERS, b"bad gateway")
    outcome = Outcome(
        call_id,
        running.clock.us,
        CallState.UNKNOWN,
        ClaimAfter.UNKNOWN,
        status=502,
        latency_us=1,
        response_digest=None,
        response_bytes=0,
        answer=answer,
    )

    def act(store: Store) -> Any:
        decided = store.admit(ask, running.policy.good, decide)
        store.settle(outcome)
        return decided.verdict.reason.value

    return running.service.decider.act(act)


async def test_a_running_proxy_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    async with controlled(tmp_path, UNFROZEN) as running:
        assert await lost(running) == "allowed"
        told = await asyncio.to_thread(resolve, "lo", "done")
        assert told.exit_code == 0, told.output
        assert "no proxy runs" not in told.stderr
        assert "unknown because: the upstream answered 502" in told.stdout
        assert await lost(running) == "done_but_not_stored"
        (row,) = running.rows("call.resolved")
        assert (row["run"], row["tenant"], row["tool"]) == ("r1", "acme", "mail.send")
        again = await asyncio.to_thread(resolve, "lost", "not_sent")
        assert (again.exit_code, "was resolved as done before" in again.stderr) == (2, True)


async def test_the_api_tells_what_was_wrong(tmp_path: Path) -> None:
    async with controlled(tmp_path, UNFROZEN) as running:
        await lost(running)
        path = "/v1/calls/resolve"
        for body, status, why in (
            ({"call": "x", "state": "done", "reason": "x"}, 404, "no call 'x'"),
            ({"call": "lost", "state": "refused", "reason": "x"}, 400, "done or not_sent"),
            ({"call": "lost", "state": "gone", "reason": "x"}, 400, "state"),
            ({"call": "lost", "state": "done"}, 400, "a reason that can be read"),
        ):
            refused = await running.refused("POST", path, **body)
            assert (refused.status, why in str(refused)) == (status, True), refused
        looked = await running.asked("POST", path, call="lost", state="done", dry_run=True)
        assert (looked["changed"], running.rows("call.resolved")) == (False, [])
        made = await running.asked("POST", path, call="lost", state="not_sent", reason="asked")
        assert (made["changed"], made["claim"]) == (True, "released")
        refused = await running.refused("POST", path, call="lost", state="done", reason="x")
        assert refused.status == 409


async def test_a_tool_that_costs_says_what_to_give_back(tmp_path: Path) -> None:
    async with controlled(tmp_path, PRICED) as running:
        await lost(running)
        body = {"call": "lost", "state": "not_sent", "reason": "asked"}
        made = await running.asked("POST", "/v1/calls/resolve", **body)
        assert [command.split()[3:5] for command in made["give_back"]] == [
            ["run", "r1"],
            ["tenant", "acme"],
        ]


async def test_it_takes_who_may_release(tmp_path: Path) -> None:
    async with controlled(tmp_path, UNFROZEN) as running:
        await lost(running)
        body = {"call": "lost", "state": "done", "reason": "seen"}
        for role, status in (("pull", 403), ("release", 200)):
            secret = await running.enrolled(role, f"of-{role}")
            told = await running.at_port("POST", "/v1/calls/resolve", secret, body=body)
            assert told[0] == status
        (row,) = running.rows("call.resolved")
        assert row["actor"] == "operator:of-release"
