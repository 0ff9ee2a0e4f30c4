"""`pullcord runbook`: printed, as JSON, and walked in a terminal; beside a proxy, and without."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from policies import load_runbook
from policies.verdict import Level, Scope
from proxy.cli import runbook
from proxy.cli.main import cli
from proxy.control_socket import user_name
from tests.ledger.findings import ALERT, the_one, told
from tests.ledger.world import World
from tests.proxy.controlled import controlled
from tests.proxy.scoped import a_busy_ledger
from tests.proxy.test_control_incidents import found

ROOT = Path(__file__).parents[2]
HOSTILE = "gone\x1b[2J\u202e\nNEXT  close: it is over"
LIMIT_SECONDS = 30


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PULLCORD_CONTROL", raising=False)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PULLCORD_CONFIG", str(ROOT / "config"))
    return tmp_path / "data"


@pytest.fixture
def busy(data: Path) -> Iterator[World]:
    made = a_busy_ledger(data, 120)
    yield made
    made.store.close()


def said(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["runbook", *words])
    assert result.exit_code == code, result.output
    return result.output


def rows(*words: str) -> dict[str, Any]:
    printed = said(*words, "--json").splitlines()
    return {row["step"]: row for row in map(json.loads, printed)}


def typed(text: str, *words: str) -> str:
    """What a terminal shows when this is typed there; waits for the end."""
    ours, theirs = pty.openpty()
    program = [sys.executable, "-c", "from proxy.cli.main import main; main()", "runbook", *words]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    process = subprocess.Popen(
        program, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True
    )
    os.close(theirs)
    os.write(ours, text.encode())
    shown = b""
    with suppress(OSError):  # the terminal is gone with the last who has it open
        while part := os.read(ours, 65_536):
            shown += part
    os.close(ours)
    assert process.wait(LIMIT_SECONDS) == 0, shown.decode()
    return click.unstyle(shown.decode().replace("\r\n", "\n"))


# ---------------------------------------------------------------------------------- printed


def test_the_whole_walk_is_printed_where_nobody_can_answer(busy: World) -> None:
    out = said("a1")
    for word in (
        "incident  a1  open",
        "about     run r1 of tenant acme",
        "NEXT  stop_run: it is not stopped; stop it",
        "type  pullcord halt run r1",
        "to do  verify: find out how the writes of unknown outcome ended",
        "pullcord ledger query root:r1 tenant:acme since:",
        "type  pullcord incident compensate a1 --plan",
    ):
        assert word in out
    assert out.splitlines()[-1] == "next: pullcord halt run r1"
    assert said("a1", "--print") == out


def test_the_newest_open_one_is_taken_and_a_step_is_one_object(busy: World) -> None:
    found = rows()
    assert {row["incident"] for row in found.values()} == {"a6"}
    assert found["stop_run"]["state"] == "todo"
    assert found["stop_run"]["next"] is True
    assert found["scope"]["next"] is False


def test_without_an_open_incident_the_steps_are_printed(data: Path) -> None:
    World(data).store.close()
    out = said()
    assert out.startswith("no incident is open; these are the steps that one would take")
    assert "type  pullcord halt run RUN" in out
    assert "then  recover when writes is 0; else verify" in out
    shipped = load_runbook.load((ROOT / "config" / "runbook.yaml").read_text(), "x")
    assert set(rows()) == set(shipped.steps)


def test_exit_codes(busy: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no incident begins with '0123'" in said("0123", code=4)
    assert "is no id" in said("zz", code=2)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "nothing"))
    assert "there is no ledger" in said(code=2)


@pytest.mark.parametrize(
    "run, wrong",
    [
        ("pullcord hlat global", "'hlat global' names no command that can be run here; did you"),
        ("pullcord runbook", "'runbook' names no command that can be run here"),
        ("pullcord run -- sh -c id", "'run -- sh -c id' names no command that can be run here"),
        ("pullcord incident", "'incident' names no command"),
        ("pullcord halt global --raeson {text}", "No such option '--raeson'"),
        ("pullcord resume global", "it lacks --reason"),
        ("pullcord incident ack {incident} x", "'x' is too much"),
    ],
)
def test_a_command_that_is_none_is_told_by_line_and_column(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str, wrong: str
) -> None:
    (tmp_path / "policy.yaml").write_text("version: 1\n")
    step = f"{{title: t, why: w, run: '{run}'}}"
    (tmp_path / "runbook.yaml").write_text(f"version: 1\nstart: a\nsteps:\n  a: {step}\n")
    monkeypatch.setenv("PULLCORD_CONFIG", str(tmp_path))
    out = said("0123", code=2)
    assert f"{tmp_path}/runbook.yaml:4:30: " in out
    assert wrong in out


def test_where_its_own_is_mistaken_the_shipped_one_is_walked(
    busy: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policy.yaml").write_text("version: 1\n")
    (tmp_path / "runbook.yaml").write_text(
        "version: 1\nstart: nosuch\nsteps: {a: {title: t, why: w}}\n"
    )
    monkeypatch.setenv("PULLCORD_CONFIG", str(tmp_path))
    out = said("a1")
    assert f"{tmp_path}/runbook.yaml:2:8: " in out
    assert "so the shipped one counts" in out
    assert out.splitlines()[-1] == "next: pullcord halt run r1"


def test_every_command_of_the_shipped_one_can_be_run() -> None:
    text = (ROOT / "config" / "runbook.yaml").read_text()
    load_runbook.load(text, "config/runbook.yaml", runbook._checked(cli))


def test_text_of_the_world_cannot_speak_for_us(data: Path) -> None:
    world = World(data)
    told(world, why=HOSTILE, tenant="acme", release=HOSTILE)
    world.store.close()
    for out in (said(), json.dumps(rows())):
        assert "\x1b[2J" not in out
        assert "\nNEXT  close" not in out
    assert "\u202e" not in said()


# ---------------------------------------------------------------------------------- walked


def test_a_walk_runs_records_skips_and_goes_on_another_time(data: Path) -> None:
    """About 4 seconds."""
    world = World(data)
    told(world)
    one = the_one(world)
    world.store.close()
    out = typed("r\nd\nit read only\nr\nmended\ns\nnot tonight\nq\n")
    for word in (
        "done  stop_run: contained is true",
        "NEXT  acknowledge: take it",
        f"acknowledged {one.id}",
        "not needed  leaks: only when effects_after_pull is at least 1",
        "NEXT  scope: see what it did",
        "NEXT  recover:",
        "pullcord: say onto which release: --release L; known to be good: none yet",
        "it ended with 2, so the step is not recorded as done",
        f"go on: pullcord runbook {one.id}",
    ):
        assert word in out, out
    found, me = rows(), user_name(os.geteuid())
    assert found["acknowledge"]["text"] == f"ran: pullcord incident ack {one.id}"
    assert (found["acknowledge"]["by"], found["acknowledge"]["state"]) == (me, "done")
    assert (found["scope"]["text"], found["scope"]["state"]) == ("done: it read only", "done")
    assert found["recover"]["text"] == "skipped: not tonight"
    assert found["recover"]["state"] == "skipped"
    assert found["test"]["next"] is True
    out = typed("q\n")
    assert f"done  scope: done: it read only, by {me} at " in out
    assert "SKIPPED" in out


def test_what_the_ledger_does_not_show_is_not_taken_for_done(data: Path) -> None:
    """About 2 seconds. It is said to be stopped, and nothing is; a command that fails is not
    recorded."""
    world = World(data)
    told(world)
    one = the_one(world)
    world.store.release(
        Level.HALT, Scope.RUN, "r1", reason="mended", actor="ann", at_us=world.now_us
    )
    world.store.close()
    out = typed("d\nby hand\nq\n", one.id[:13])
    assert "the ledger does not show it" in out
    found = rows(one.id)
    assert (found["stop_run"]["state"], found["stop_run"]["next"]) == ("todo", True)
    assert found["stop_run"]["text"] == "done: by hand"


async def test_beside_a_proxy_it_is_recorded_there(tmp_path: Path, data: Path) -> None:
    """About 2 seconds."""
    async with controlled(tmp_path) as running:
        await found(running)
        out = await asyncio.to_thread(typed, "r\nd\nlooked\nq\n")
        steps = running.rows("incident.step")
        assert [(row["rule"], row["detail"]) for row in steps][1:] == [("scope", "done: looked")]
        assert {row["actor"] for row in steps} == {user_name(os.geteuid())}
        assert [row["actor"] for row in running.rows("incident.acked")] == [steps[0]["actor"]], out


async def test_status_tells_the_next_action_of_the_newest(tmp_path: Path, data: Path) -> None:
    async with controlled(tmp_path) as running:
        await found(running, ALERT)
        result = await asyncio.to_thread(CliRunner().invoke, cli, ["status"])
        assert ": it is not stopped; stop it: pullcord halt run r1\n" in result.output
        result = await asyncio.to_thread(CliRunner().invoke, cli, ["status", "--json"])
        state = json.loads(result.output)["incidents"]
        assert state["next"] == {
            "incident": state["newest"][0]["id"],
            "what": "it is not stopped; stop it",
            "command": "pullcord halt run r1",
        }


def test_status_and_show_tell_it_without_a_proxy(data: Path) -> None:
    world = World(data)
    told(world)
    one = the_one(world)
    world.store.close()
    shown = CliRunner().invoke(cli, ["status"]).output
    assert f"next    of incident {one.id}: take it: pullcord incident ack {one.id}\n" in shown
    shown = CliRunner().invoke(cli, ["incident", "show", one.id]).output
    assert f"take it: pullcord incident ack {one.id}\n" in shown
    assert f"pullcord runbook {one.id}\n" in shown
