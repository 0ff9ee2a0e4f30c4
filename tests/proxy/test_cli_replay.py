"""`pullcord incident export-test` and `pullcord replay`, on a ledger that a store has filled."""

import asyncio
import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog

from ledger.connection import open_reader
from ledger.incident_reads import named
from policies.verdict import Scope
from proxy import environment
from proxy.cli import incident_export_test, replaying
from proxy.regression_files import digest_of
from tests.proxy.controlled import controlled
from tests.proxy.exporting import exported, typed
from tests.proxy.runaway import BEFORE, FEW, refunded

TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture
def incident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """In the folder of a person whose policy is the one of that day."""
    structlog.reset_defaults()
    for name in list(os.environ):
        if name.startswith("PULLCORD_") or name in environment.NAMES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "policy.yaml").write_text(BEFORE, "utf-8")
    (tmp_path / "mended.yaml").write_text(FEW, "utf-8")
    monkeypatch.chdir(tmp_path)
    return refunded(tmp_path / "data")


def objects(*words: str) -> list[dict[str, Any]]:
    result = typed(*words, "--json")
    assert result.exit_code in (0, replaying.BROKEN), result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_export_prove_and_close(incident: str) -> None:
    refused = typed("incident", "close", incident, "--reason", "over")
    assert (refused.exit_code, "--prove" in refused.stderr) == (2, True)
    words = ("incident", "export-test", incident, "--out", "test", "--policy", "mended.yaml")
    result = typed(*words, "--prove")
    assert result.exit_code == 0, result.output
    assert "the policy of that day: fails" in result.stdout
    assert "the mended one: passes" in result.stdout
    assert "PROVEN" in result.stdout
    with closing(open_reader(Path("data").absolute())) as reader:
        found = named(reader, incident)
        assert found is not None
        assert found.proof == digest_of(Path("test"))
    again = typed(*words)
    assert again.exit_code == 0, again.output
    assert digest_of(Path("test")) == found.proof
    assert typed("incident", "close", incident, "--reason", "over").exit_code == 0


async def test_the_proof_goes_through_the_proxy_that_runs(tmp_path: Path) -> None:
    async with controlled(tmp_path) as proxy:
        incident = await proxy.service.decider.act(
            lambda store: store.open_incident(
                Scope.RUN, "r1", "acme", proxy.clock.us, "x", "ann", proxy.clock.us
            )
        )
        out = tmp_path / "test"
        out.mkdir()
        await asyncio.to_thread(incident_export_test._record, proxy.data, incident[0].id, out)
        (row,) = proxy.rows("incident.proven")
        assert (row["rule"], row["detail"]) == (digest_of(out), str(out))


def test_without_a_mend_nothing_is_proven_and_it_says_what_to_do(incident: str) -> None:
    result = typed("incident", "export-test", incident, "--out", "test", "--prove")
    assert result.exit_code == replaying.BROKEN
    assert "NOT PROVEN: both policies are the same" in result.stdout
    assert "--policy FILE" in result.stdout
    with closing(open_reader(Path("data").absolute())) as reader:
        found = named(reader, incident)
        assert found is not None
        assert found.proof == ""


def test_a_proof_before_the_mend_spoils_none_after_it(incident: str) -> None:
    """What is expected follows from the mend, until a person has written something else."""
    words = ("incident", "export-test", incident, "--out", "test", "--prove")
    assert typed(*words).exit_code == replaying.BROKEN
    assert typed(*words, "--policy", "mended.yaml").exit_code == 0
    Path("test/expect.yaml").write_text("contained_by: {call: 30}\n")
    assert typed(*words, "--policy", "mended.yaml").exit_code == 0
    assert Path("test/expect.yaml").read_text() == "contained_by: {call: 30}\n"


def test_replay_tells_when_it_is_contained(incident: str) -> None:
    out = exported(Path("data").absolute(), incident, FEW, Path("test"))
    result = typed("replay", str(out))
    assert result.exit_code == 0, result.output
    assert "contained  after 4 of 43 calls, $0.04, 3 s after the first bad call" in result.stdout
    assert "3 runs with 24 calls; 0 would be stopped" in result.stdout
    broken = typed("replay", str(out), "--policy", "config/policy.yaml")
    assert broken.exit_code == replaying.BROKEN
    assert "BROKEN     contained by call: at most 4; it is never contained" in broken.stdout
    (found,) = objects("replay", str(out))
    assert (found["kept"], found["contained"], found["calls"]) == (True, True, 4)
    assert (found["spend_usd"], found["seconds"], found["false_trips"]) == ("0.04", 3.0, [])


def test_replay_proves(incident: str) -> None:
    out = exported(Path("data").absolute(), incident, FEW, Path("test"))
    (proof,) = objects("replay", str(out), "--prove")
    assert (proof["proven"], proof["before"]["kept"], proof["after"]["kept"]) == (True, False, True)
    result = typed("replay", str(out), "--prove", "--policy", "config/policy.yaml")
    assert result.exit_code == replaying.BROKEN
    assert "both policies are the same" in result.stdout


def test_the_export_is_told_as_an_object(incident: str) -> None:
    words = ("incident", "export-test", incident, "--out", "test", "--policy", "mended.yaml")
    (told,) = objects(*words, "--prove")
    assert (told["incident"], told["out"], told["calls"]) == (incident, "test", 43)
    assert (told["healthy_runs"], told["left_out"], told["answers"]) == (3, 0, False)
    assert told["proof"]["proven"]
    assert told["now"]["contained"]


@pytest.mark.parametrize(
    "words, code, says",
    [
        (["replay", "gone"], 2, "there is no directory gone"),
        (["replay", "config"], 2, "no test of an incident"),
        (["replay", str(TESTS / "incidents")], 2, "holds several tests"),
        (["replay", "config", "--listen", "127.0.0.1:0"], 2, "--listen is for --serve"),
        (["replay", "config", "--serve", "--prove"], 2, "--serve goes without"),
        (["incident", "export-test", "ffff", "--out", "x"], 4, "no incident begins"),
        (
            ["incident", "export-test", "ID", "--out", "x", "--tool", "y"],
            2,
            "the tool y; there: ref",
        ),
        (["incident", "export-test", "ID", "--out", "config"], 2, "config is not empty"),
        (["incident", "export-test", "ID", "--out", "x", "--policy", "no"], 2, "cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said(incident: str, words: list[str], code: int, says: str) -> None:
    result = typed(*(incident if word == "ID" else word for word in words))
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert not Path("x").exists()


def test_names_of_the_world_are_harmless(incident: str) -> None:
    """A policy's path is told as it is named."""
    hostile = Path("policy\x1b[2J\u202e.yaml")
    hostile.write_text(FEW, "utf-8")
    out = exported(Path("data").absolute(), incident, FEW, Path("test"))
    result = typed("replay", str(out), "--policy", str(hostile))
    assert result.exit_code == 0, result.output
    assert "\x1b[2J" not in result.stdout
    assert "\u202e" not in result.stdout
