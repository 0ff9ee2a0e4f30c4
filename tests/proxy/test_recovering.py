"""`pullcord incident recover`: what it refuses, what it shows, what it resumes; beside a proxy, and
without."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ledger.connection import open_reader
from ledger.open_incidents import Incident
from policies.call import Identity
from policies.load import load
from policies.policy import Policy
from policies.verdict import Level, Pull, Reason, Scope
from proxy import process, recovering
from proxy.cli.main import cli
from proxy.control_socket import user_name
from proxy.operations import OperationError
from tests.ledger.findings import ALERT, RELEASE, the_one, told
from tests.ledger.world import World
from tests.proxy.controlled import POLICY, controlled
from tests.proxy.test_control_incidents import found

GOOD = "2026-11-20.3"
HOSTILE = "gone\x1b[2J\u202e"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "data")
    yield made
    made.store.close()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the configuration, beside the data."""
    monkeypatch.delenv("PULLCORD_CONTROL", raising=False)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PULLCORD_CONFIG", str(tmp_path))
    (tmp_path / "policy.yaml").write_text(POLICY)
    return tmp_path


def plan(
    world: World,
    release: str | None = None,
    policy: Policy | None = None,
    rollback: tuple[str, ...] = (),
) -> recovering.Plan:
    with closing(open_reader(world.data)) as reader:
        return recovering.plan(reader, the_one(world), policy or load(POLICY), release, rollback)


def said(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["incident", "recover", *words])
    assert result.exit_code == code, result.output
    return result.output


async def beside(*words: str, code: int = 0) -> str:
    return await asyncio.to_thread(lambda: said(*words, code=code))


def rolls_back(config: Path, script: str) -> None:
    """A command that runs this."""
    command = json.dumps([sys.executable, "-c", script])
    (config / "pullcord.yaml").write_text(f"rollback: {command}\n")


# ---------------------------------------------------------------------------------- the plan


def test_it_is_refused_before_anything_stands(world: World) -> None:
    told(world, ALERT)
    with pytest.raises(OperationError, match=r"does not stop it.*pullcord runbook "):
        plan(world)
    world.store.pull(Pull(Level.HALT, Scope.GLOBAL, "", "", "ann", world.now_us))
    assert plan(world).stays


def test_only_a_release_that_is_known_to_be_good_is_resumed_onto(world: World) -> None:
    told(world)
    assert plan(world).release == plan(world, GOOD).release == GOOD
    with pytest.raises(OperationError, match=r"'v7' is not known.*known_good \(there: 2026"):
        plan(world, "v7")
    two = load(POLICY.replace(f'["{GOOD}"]', '["a", "b"]'))
    with pytest.raises(OperationError, match=r"say onto which release.*known to be good: a, b"):
        plan(world, None, two)
    assert plan(world, "b", two).release == "b"


def test_without_a_policy_nothing_is_known_to_be_good(world: World) -> None:
    told(world)
    with closing(open_reader(world.data)) as reader, pytest.raises(OperationError, match="policy"):
        recovering.plan(reader, the_one(world), None, GOOD, ())


def test_a_closed_one_is_not_recovered(world: World) -> None:
    told(world)
    one = replace(the_one(world), state="closed")
    with closing(open_reader(world.data)) as reader, pytest.raises(OperationError, match="closed"):
        recovering.plan(reader, one, load(POLICY), GOOD, ())


def test_wider_cords_and_those_on_a_release_stay(world: World) -> None:
    told(world, release="v7")
    for scope, subject in ((Scope.GLOBAL, ""), (Scope.TENANT, "acme"), (Scope.RELEASE, "v7")):
        world.store.pull(Pull(Level.HALT, scope, subject, "", "ann", world.now_us))
    made = plan(world)
    assert [cord.rule for cord in made.resumes] == ["halt:run:r1"]
    assert {cord.rule for cord in made.stays} == {
        *("halt:global", "halt:tenant:acme", "halt:release:v7"),
    }
    assert (made.bad, made.stands) == ("v7", True)


def test_what_stands_for_something_else_stays(world: World) -> None:
    """A tool that somebody stopped meanwhile, and a run below it."""
    told(world)
    for scope, subject in ((Scope.TOOL, "pay"), (Scope.TOOL, "r1/pay"), (Scope.RUN, "kid")):
        world.store.pull(Pull(Level.HALT, scope, subject, "bank", "ann", world.now_us))
    made = plan(world)
    assert [cord.rule for cord in made.resumes] == ["halt:run:r1"]
    assert {cord.rule for cord in made.stays} == {"halt:tool:pay", "halt:tool:r1/pay"}


def test_a_run_that_was_stopped_for_another_one_stays(world: World) -> None:
    """Each run of a tool's incident has its cord by the detectors; what is released and pulled
    again is another pull."""
    for run in ("r1", "r2"):
        told(world, detector="write_spike", run=run)
    one = the_one(world)
    assert (one.kind, one.runs) == ("tool", ("r1", "r2"))
    assert [cord.rule for cord in plan(world).resumes] == ["halt:run:r1", "halt:run:r2"]
    world.store.release(Level.HALT, Scope.RUN, "r1", reason="ok", actor="ann", at_us=world.now_us)
    with pytest.raises(OperationError, match="does not stop it"):
        plan(world)
    world.store.pull(Pull(Level.HALT, Scope.RUN, "r1", "bank", "ann", world.now_us))
    assert [cord.rule for cord in plan(world).stays] == ["halt:run:r1"]


def test_a_release_that_is_known_to_be_good_is_none_to_halt(world: World) -> None:
    told(world, release=GOOD)
    assert plan(world).bad == ""


@pytest.mark.parametrize(
    "releases, did",
    [(("v7", "v7"), "v7"), (("v7", "v8"), ""), (("v7", GOOD), "v7"), ((GOOD, GOOD), GOOD)],
)
def test_where_a_person_opened_it_the_one_release_of_its_runs_did_it(
    world: World, releases: tuple[str, ...], did: str
) -> None:
    for number, release in enumerate(releases):
        who = Identity(f"r{number}", "acme", release=release)
        world.decided(world.ask(f"c{number}", body=f"{number}", claimant=who))
    world.store.open_incident(
        Scope.TENANT, "acme", "acme", None, "double refunds", "ann", world.now_us
    )
    world.store.pull(Pull(Level.HALT, Scope.TENANT, "acme", "", "ann", world.now_us))
    who = Identity("r9", "acme", release="whatever")
    assert world.decided(world.ask("c9", claimant=who)).verdict.reason is Reason.HALTED
    made = plan(world)
    assert (made.did, made.bad) == (did, did if did != GOOD else "")
    assert {stamp.release for stamp in made.stamps} == {*releases, "whatever"}
    assert [cord.rule for cord in made.resumes] == ["halt:tenant:acme"]


def test_the_release_of_an_incident_about_one_is_the_bad_one(world: World) -> None:
    told(world, subject=RELEASE, name="v8", release="v8", cord=(Scope.RELEASE, "v8"))
    made = plan(world)
    assert (made.bad, made.stands, made.resumes) == ("v8", True, ())


# ---------------------------------------------------------------------------------- the rollback


def rolled(world: World, script: str, seconds_max: float = 30) -> recovering.Ran:
    told(world, release="v7")
    made = plan(world, rollback=(sys.executable, "-c", script))
    return recovering.roll_back(made, seconds_max)


def test_it_is_told_what_it_is_for_and_its_words_are_kept(world: World) -> None:
    ran = rolled(
        world,
        "import os, sys; print(*(os.environ[f'PULLCORD_{n}'] for n in "
        "('GOOD_RELEASE', 'BAD_RELEASE', 'INCIDENT'))); print('late', file=sys.stderr)",
    )
    assert ran.code == 0
    assert ran.said.split() == [GOOD, "v7", the_one(world).id, "late"]


def test_one_that_never_ends_is_ended_with_all_that_it_started(world: World) -> None:
    """About a second."""
    script = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '60']); "
        "print(child.pid, flush=True); time.sleep(60)"
    )
    began = time.monotonic()
    ran = rolled(world, script, seconds_max=1)
    assert ran.code is None
    assert "it took longer than 1 s" in ran.said
    child = int(ran.said.split()[0])
    while process.started(child):
        assert time.monotonic() - began < 10
        time.sleep(0.01)


def test_one_that_cannot_be_started_is_told(world: World) -> None:
    told(world)
    ran = recovering.roll_back(plan(world, rollback=("/no/such/command",)))
    assert ran.code is None
    assert "/no/such/command cannot be started" in ran.said


def test_only_the_end_of_what_it_says_is_kept(world: World) -> None:
    ran = rolled(world, "print('x' * 200_000 + 'end')")
    assert len(ran.said) == recovering.OUTPUT_BYTES_MAX
    assert ran.said.endswith("end\n")


# ---------------------------------------------------------------------------------- the command


def opened(config: Path, **rest: Any) -> Incident:
    world = World(config / "data")
    told(world, **rest)
    one = the_one(world)
    world.store.close()
    return one


def test_it_wants_a_reason_and_a_dry_run_changes_nothing(config: Path) -> None:
    one = opened(config, release="v7")
    assert "say why it may flow again: --reason TEXT" in said(one.id, code=2)
    out = said(one.id[:13], "--dry-run")
    for word in (f"onto      {GOOD}", "off       v7, to be halted", "resumes   HALT run r1"):
        assert word in out
    answer = json.loads(said(one.id, "--dry-run", "--json"))
    assert (answer["release"], answer["bad_release"]) == (GOOD, "v7")
    with closing(open_reader(config / "data")) as reader:
        assert [row[0] for row in reader.execute("SELECT subject FROM pull")] == ["r1"]


def test_without_a_proxy_it_halts_narrows_and_records(config: Path) -> None:
    one = opened(config, release="v7")
    rolls_back(config, r"print('back on\x1b[2J ' + '\u202e')")
    out = said(one.id, "--reason", "prompt mended")
    assert "NO PROXY RUNS HERE" in out
    assert r"  | back on\x1b[2J \u202e" in out
    assert out.splitlines()[-1] == f"go on: pullcord runbook {one.id}"
    with closing(open_reader(config / "data")) as reader:
        pulled = dict(reader.execute("SELECT subject, but_releases FROM pull"))
        rows = reader.execute(
            "SELECT type, rule, actor, detail FROM event WHERE incident = ? "
            "AND type IN ('incident.noted', 'incident.step') ORDER BY seq",
            (one.id,),
        ).fetchall()
    assert pulled == {"r1": f'["{GOOD}"]', "v7": "[]"}
    me = user_name(os.geteuid())
    (noted, ran, step) = rows
    assert noted[3].startswith(f"recovery onto {GOOD}: runs ")
    assert ran[3].startswith(f"recovery onto {GOOD}: ran ")
    assert ran[3].endswith(", which ended with 0")
    assert step[:3] == ("incident.step", "recover", me)
    assert step[3].startswith(f"resumed for {GOOD} alone: prompt mended (release v7 is halted; ")


def test_a_rollback_that_fails_resumes_nothing(config: Path) -> None:
    one = opened(config, release="v7")
    rolls_back(config, "print('no such cluster'); raise SystemExit(7)")
    out = said(one.id, "--reason", "x", code=3)
    assert "ended with 7, so nothing was resumed: no such cluster" in out
    with closing(open_reader(config / "data")) as reader:
        pulled = dict(reader.execute("SELECT subject, but_releases FROM pull"))
        last = reader.execute("SELECT detail FROM event ORDER BY seq DESC LIMIT 1").fetchone()
    assert pulled == {"r1": "[]", "v7": "[]"}
    assert last == ("the rollback ended with 7; nothing was resumed",)


def test_text_of_the_world_cannot_speak_for_us(config: Path) -> None:
    one = opened(config, release=HOSTILE, why=HOSTILE)
    out = said(one.id, "--dry-run")
    assert r"off       gone\x1b[2J\u202e" in out
    assert "\x1b[2J" not in out


def test_a_bad_release_that_is_listed_as_good_is_doubted(config: Path) -> None:
    one = opened(config, release=GOOD)
    out = said(one.id, "--dry-run")
    assert f"off       nothing: {GOOD} did it, and {config}/policy.yaml lists it under" in out
    assert "rollback  none is configured" in out


async def test_beside_a_proxy_its_cord_lets_the_good_release_pass(
    tmp_path: Path, config: Path
) -> None:
    async with controlled(tmp_path) as running:
        await found(running, release="v7")
        (one,) = (await running.asked("GET", "/v1/incidents"))["incidents"]
        out = await beside(one["id"], "--reason", "mended", "--json")
        answer = json.loads(out.splitlines()[-1])  # behind what the proxy logs
        assert answer["halted"]["pulled"]["rule"] == "halt:release:v7"
        assert answer["released"][0]["narrowed_to"] == [GOOD]
        latched = running.service.decider.latched
        assert {pull.rule: pull.but_releases for pull in latched.values()} == {
            "halt:run:r1": (GOOD,),
            "halt:release:v7": (),
        }
        (step,) = running.rows("incident.step")
        assert step["rule"] == "recover"
        assert f"resumed for {GOOD} alone: mended" in step["detail"]
