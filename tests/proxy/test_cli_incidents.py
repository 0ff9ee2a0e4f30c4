"""`pullcord incident`, and what `status` says of incidents: beside a running proxy, and without."""

import asyncio
import json
import os
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ledger import incidents
from ledger.open_incidents import new_id
from ledger.records import Ask
from ledger.store import Store
from policies.call import Effect, Identity, Request, ToolCall
from policies.decide import decide
from policies.verdict import Level, Pull, Scope
from proxy import operations
from proxy.cli.main import cli
from proxy.clock import SystemClock
from proxy.control_socket import user_name
from tests.ledger.findings import ALERT, TRIP, a_found
from tests.ledger.world import a_policy
from tests.proxy.controlled import Controlled, controlled
from tests.proxy.test_control_incidents import found

ME = user_name(os.geteuid())
HOSTILE = "gone\x1b[2J\u202e\nincident  0000  open"


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Controlled]:
    monkeypatch.delenv("PULLCORD_CONTROL", raising=False)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    async with controlled(tmp_path) as made:
        yield made


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger with one open incident, and no proxy."""
    monkeypatch.delenv("PULLCORD_CONTROL", raising=False)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path))
    clock = SystemClock()
    with operations.opened(tmp_path, clock.now_us) as store:
        incidents.found(store._open_batch(), a_found(clock.now_us(), TRIP))
    return tmp_path


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


def said(*words: str, code: int = 0) -> str:
    result = typed(*words)
    assert result.exit_code == code, result.output
    return result.output


async def beside(*words: str, code: int = 0) -> str:
    return await asyncio.to_thread(lambda: said(*words, code=code))


def told(*words: str) -> Any:
    return json.loads(typed(*words, "--json").stdout)


# ---------------------------------------------------------------------------------- with no proxy


def test_list_and_show_work_with_the_proxy_down(alone: Path) -> None:
    out = said("incident", "list")
    for word in ("open", "trip", "run r1 of acme", "loop", "it goes round", "halt:run:r1"):
        assert word in out
    one = told("incident", "list")
    assert one["state"] == "open"
    out = said("incident", "show", one["id"][:12])
    for word in (
        f"incident  {one['id']}  open  TRIP",
        "about     run r1 of tenant acme",
        "why       it goes round, by the detector loop",
        "HALT run r1",
        "by detector:loop",
        "1 that convinced it",
        "not in the ledger any more: c1",
        "detector.tripped",
        'pullcord resume run r1 --reason "..."',
        f"pullcord incident export-test {one['id']}",
    ):
        assert word in out
    assert told("incident", "show", one["id"])["calls"] == ["c1"]


def test_close_works_with_the_proxy_down_and_lifts_nothing(alone: Path) -> None:
    one = told("incident", "list")
    refused = said("incident", "close", one["id"][:12], "--reason", "mended", code=2)
    assert f"pullcord incident export-test {one['id']} --out DIR --prove" in refused
    over = ("--reason", "mended", "--waive", "known")
    out = said("incident", "close", one["id"][:12], *over)
    assert f"closed {one['id']}, run r1 of tenant acme" in out
    assert "nothing was ever pulled" not in out
    assert "still pulled: HALT run r1" in out
    assert said("incident", "list") == "no incident is open\n"
    assert said("incident", "list", "--all").count("closed") == 1
    out = said("incident", "show", one["id"])
    assert f"by {ME}: mended" in out
    assert "test      none: known" in out
    assert "incident close" not in out
    assert "mended" in said("incident", "close", one["id"], "--reason", "again", code=2)


def test_exit_codes(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no incident begins with '0123'" in said("incident", "show", "0123", code=4)
    assert "is no id" in said("incident", "show", "zz", code=2)
    said("incident", "close", "0123", code=2)
    said("incident", "close", "0123", "--reason", "x", code=4)
    assert said("status", "--exit-code", code=5).count("incident ") > 0
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "nothing"))
    assert "there is no ledger" in said("incident", "list", code=2)


def test_status_tells_open_incidents_with_the_proxy_down(alone: Path) -> None:
    out = said("status", code=5)
    assert "incident TRIP run r1 of tenant acme: it goes round (loop), since " in out
    assert told("status")["incidents"]["open"] == 1


def test_text_of_the_world_cannot_speak_for_us(tmp_path: Path, alone: Path) -> None:
    clock = SystemClock()
    with operations.opened(alone, clock.now_us) as store:
        one = a_found(clock.now_us(), ALERT, run="r2", release=HOSTILE, why=HOSTILE)
        incidents.found(store._open_batch(), one)
    newest = json.loads(typed("incident", "list", "--json").stdout.splitlines()[0])
    assert newest["why"] == HOSTILE
    outs = [
        said("incident", "list"),
        said("incident", "show", newest["id"]),
        said("incident", "close", newest["id"], "--reason", "over"),
        said("status", code=5),
    ]
    for out in outs:
        assert "\x1b[2J" not in out
        assert "\u202e" not in out
        assert "\nincident  0000" not in out


def test_ack_and_note_work_with_the_proxy_down(alone: Path) -> None:
    one = told("incident", "list")
    assert (one["owner"], one["acked"]) == (None, None)
    assert f"owner     nobody yet: pullcord incident ack {one['id']}" in said(
        "incident", "show", one["id"]
    )
    out = said("incident", "ack", one["id"][:12])
    assert f"acknowledged {one['id']}, run r1 of tenant acme; its owner is {ME}" in out
    assert "was acknowledged already" in said("incident", "ack", one["id"])
    out = said("incident", "ack", one["id"], "--owner", HOSTILE.partition("\n")[0], code=2)
    assert "control characters" in out
    assert f"before it was {ME}" in said("incident", "ack", one["id"], "--owner", "bob")
    assert "bob" in said("incident", "list")
    assert "noted: " in said("incident", "note", one["id"], HOSTILE)
    assert "noted for all who are affected" in said(
        "incident", "note", one["id"], "refunds are stopped", "--public"
    )
    assert "; bob sees to it: pullcord incident show" in said("status", code=5)
    out = said("incident", "show", one["id"])
    assert "owner     bob, acknowledged " in out
    assert f"{ME}: gone\\x1b[2J\\u202e\\nincident  0000  open" in out
    assert f"{ME} (public): refunds are stopped" in out
    assert "\x1b[2J" not in out
    assert told("incident", "note", one["id"], "x")["owner"] == "bob"
    said("incident", "note", one["id"], " ", code=2)


def called_alone(data: Path, run: str, *ancestors: str, effect: Effect = Effect.READ) -> None:
    """A call of a run, in the ledger of no proxy."""
    clock = SystemClock()
    request = Request("GET", "https", "mail.example", 443, "/inbox")
    call = ToolCall("read", effect, "GET /inbox", b"x" * 32)
    with operations.opened(data, clock.now_us) as store:
        name = new_id(clock.now_us())
        ask = Ask(name, clock.now_us(), Identity(run, "acme", ancestors), request, call)
        store.admit(ask, a_policy(), decide)


def test_open_works_with_the_proxy_down(alone: Path) -> None:
    called_alone(alone, "child", "r7")
    out = said("incident", "open", "--run", "child", "--reason", "it pays twice")
    assert "run r7 of tenant acme, calls since " in out
    assert "run child was started below r7: it is about that whole tree" in out
    assert "calls of the hour before belong to it; --since says otherwise" in out
    one = json.loads(typed("incident", "list", "--json").stdout.splitlines()[0])
    assert f"pullcord incident show {one['id']}" in out
    out = said("incident", "show", one["id"])
    for word in (
        f"why       it pays twice, by {ME}",
        "turned    first bad call 20",
        "; not contained; not recovered",
        f"belong to it, as {ME} said",
        "the first call: read GET mail.example/inbox: unknown",  # its proxy is gone
    ):
        assert word in out, word
    assert "that convinced it" not in out
    assert f"it pays twice ({ME}), since" in said("status", code=5)
    over = ("--tenant", "acme", "--since", "10m", "--reason", "x")
    assert "opened" in said("incident", "open", *over)
    assert "is open already" in said("incident", "open", *over)
    assert "tenant acme of" not in said("incident", "list")
    assert told("incident", "open", *over)["new"] is False


def test_since_alone_is_over_everything(alone: Path) -> None:
    called_alone(alone, "r7")
    out = said("incident", "open", "--since", "10m", "--reason", "what is this?")
    assert ", trip, global all tenants, calls since 20" in out
    assert "incident compensate and incident export-test refuse it" in out
    one = json.loads(typed("incident", "list", "--json").stdout.splitlines()[0])
    assert (one["kind"], one["name"], one["tenant"]) == ("global", "all tenants", None)
    assert "read GET mail.example/inbox" in said("incident", "show", one["id"])
    policy = alone / "policy.yaml"
    policy.write_text("version: 1\n")
    for words in (("compensate", "--plan"), ("export-test", "--out", str(alone / "t"))):
        out = said("incident", words[0], one["id"], *words[1:], "--config", str(alone), code=2)
        assert f"incident {one['id']} is over everything, so" in " ".join(out.split())


def test_a_person_says_how_bad_it_is_and_adds_to_one_that_is_open(alone: Path) -> None:
    called_alone(alone, "r7")
    over = ("incident", "open", "--run", "r7")
    assert ", alert, run r7" in said(*over, "--severity", "alert", "--reason", "it may pay twice")
    one = json.loads(typed("incident", "list", "--json").stdout.splitlines()[0])
    assert "open  alert" in said("incident", "show", one["id"])
    out = said(*over, "--reason", "bob sees it, too")
    assert "is open already" in out
    assert "what you said is a note of it" in out
    assert ", trip, run r7" in said(*over, "--severity", "trip", "--reason", "it does")
    assert "it stays a trip" in said(*over, "--severity", "alert", "--reason", "maybe not")
    out = said("incident", "show", one["id"])
    for word in ("open  TRIP", f"{ME}: bob sees it, too", f"{ME}: a trip from now on: it does"):
        assert word in out, word


def test_closing_says_what_was_never_stopped_and_what_nobody_knows(alone: Path) -> None:
    called_alone(alone, "r7")
    called_alone(alone, "r7", effect=Effect.WRITE)  # its proxy is gone
    said("incident", "open", "--run", "r7", "--reason", "it pays twice")
    one = json.loads(typed("incident", "list", "--json").stdout.splitlines()[0])
    over = ("incident", "close", one["id"], "--reason", "over", "--waive", "known")
    out = said(*over)
    assert "nothing was ever pulled over it, so nothing shows that it was stopped" in out
    assert "1 write of it is unknown, which nobody has looked after" in out
    command = next(line for line in out.splitlines() if "pullcord ledger query" in line)
    assert "effect:write state:unknown" in command
    words = shlex.split(command.partition("pullcord ")[2])
    assert len(typed(*words, "--json").stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "words, code, told_",
    [
        ((), 2, "say what it is over"),
        (("--run", "r1", "--tool", "pay"), 2, "--run and --tool were given"),
        (("--release", "v7", "--tenant", "acme"), 2, "--release and --tenant were given"),
        (("--run", "nobody"), 4, "the record has no call of run nobody"),
        (("--tenant", "acme", "--since", "soon"), 2, "'soon' is no time"),
    ],
)
def test_what_cannot_be_opened(alone: Path, words: tuple[str, ...], code: int, told_: str) -> None:
    called_alone(alone, "r7")
    assert told_ in said("incident", "open", *words, "--reason", "x", code=code)
    assert "Missing option '--reason'" in said("incident", "open", *words, code=2)


# ---------------------------------------------------------------------------------- beside one


async def test_status_has_a_line_for_each_and_an_exit_code(running: Controlled) -> None:
    """The policy of these tests freezes a tool, which alone gives 10."""
    await beside("status", "--exit-code", code=10)
    for number in range(7):
        running.clock.us += 1_000_000
        await found(running, ALERT, run=f"r{number}")
    out = await beside("status", "--exit-code", code=11)
    lines = [line for line in out.splitlines() if line.startswith("incident ")]
    assert len(lines) == 6
    assert lines[0].startswith("incident alert run r6 of tenant acme: it goes round (loop)")
    assert lines[-1] == "incident and 2 more: pullcord incident list"
    assert "pullcord incident show " in lines[0]


async def test_close_goes_through_the_proxy(running: Controlled) -> None:
    await found(running)
    one = await asyncio.to_thread(told, "incident", "list")
    await beside("incident", "close", one["id"], "--reason", "mended", "--waive", "known")
    assert await beside("incident", "list") == "no incident is open\n"
    (row,) = running.rows("incident.closed")
    assert (row["actor"], row["detail"]) == (ME, "mended; no regression test: known")


async def test_what_was_released_is_told_so(running: Controlled) -> None:
    await found(running)
    cord = Pull(Level.HALT, Scope.RUN, "r1", "", "", 0)

    def release(store: Store) -> None:
        store.release(
            cord.level, cord.scope, cord.subject, reason="ok", actor="ann", at_us=running.clock.us
        )

    await running.service.decider.act(release)
    one = await asyncio.to_thread(told, "incident", "list")
    out = await beside("status", "--exit-code", code=11)
    assert "; what was pulled for it is released, it is open until closed: pullcord" in out
    out = await beside("incident", "show", one["id"])
    assert "halt:run:r1, which was released since" in out
    assert "it is not stopped; stop it: pullcord halt run r1" in out


async def test_open_goes_through_the_proxy(running: Controlled) -> None:
    await running.called("r1")
    out = await beside("incident", "open", "--run", "r1", "--reason", "it pays twice")
    assert ", run r1 of tenant acme, calls since 2027-01-15T07:00:00.000Z belong to it" in out
    (row,) = running.rows("incident.opened")
    assert (row["actor"], row["detail"]) == (ME, "run r1 of tenant acme: it pays twice")
    one = await asyncio.to_thread(told, "incident", "list")
    await beside("incident", "ack", one["id"], "--owner", "bob")
    await beside("incident", "note", one["id"], "we look at it")
    out = await beside("incident", "close", one["id"], "--reason", "mended", code=2)
    assert "--waive REASON" in out
    assert "no incident begins with" in await beside("incident", "ack", "0123", code=4)
