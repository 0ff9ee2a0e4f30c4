"""The questions after an incident that README lists: each command, as it stands there, answers."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ledger.traced import Side
from policies.call import Identity
from policies.verdict import Level, Scope
from proxy.cli.main import cli
from tests.ledger.world import World, a_pull
from tests.manual import section
from tests.proxy.test_traces import keep

WRITE = "01a202eb-6906-719d-adf8-80ffa15d9916"
KID = Identity("kid", "acme", ("r1",), release="2026-11-20.3")
HOUR_US = 3_600_000_000


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of 22 November: run `r1` asks a model, pays at half past nine and past ten; its child mails;
    another tenant pays, too; the halt of `r1` is pulled and released."""
    for name in list(os.environ):
        if name.startswith("PULLCORD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    world = World(tmp_path / "data")
    world.now_us = 1_795_339_800_000_000  # 2026-11-22T09:30:00Z
    asked = world.ask("01a202ea", effect="model", tool="mail")
    world.decided(asked)
    world.settle("01a202ea", input_tokens=900, output_tokens=40, cost_microusd=4_200)
    keep(world, "01a202ea", Side.REQUEST, text="refund them all")
    world.decided(world.ask("early", body="1"))
    world.settle("early")
    world.now_us += HOUR_US
    world.decided(world.ask(WRITE, body="2"))
    world.settle(WRITE)
    world.decided(world.ask("child", tool="mail", claimant=KID, body="3"))
    world.settle("child", status=None)
    world.decided(world.ask("other", claimant=Identity("r9", "bolt", release="v1"), body="4"))
    world.settle("other", cost_microusd=77)
    world.store.pull(a_pull())
    world.decided(world.ask("late", body="5"))
    world.store.release(
        Level.HALT, Scope.RUN, "r1", reason="mended", actor="bob", at_us=world.now_us
    )
    yield world.data
    world.store.close()


def questions() -> dict[str, str]:
    """Each command behind the first words of its question."""
    told = section("Questions after an incident")
    rows = re.findall(r"^\| (.*?) \| `(.*)` \|$", told, re.M)
    return {" ".join(question.split()[:3]): command for question, command in rows}


def answer(question: str) -> str:
    program, *words = shlex.split(questions()[question])
    assert program == "pullcord"
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    return result.stdout


def ids(told: str) -> set[str]:
    return {line.split()[0] for line in told.splitlines()[1:]}


def test_all_are_there(data: Path) -> None:
    assert list(questions()) == [
        *("what did run", "which writes landed", "who released the", "what did tenant"),
        *("which runs used", "what was said"),
    ]


def test_what_a_run_did(data: Path) -> None:
    assert ids(answer("what did run")) == {"01a202ea", "early", WRITE, "child", "late"}


def test_which_writes_landed_after_a_time(data: Path) -> None:
    assert ids(answer("which writes landed")) == {WRITE, "child", "other"}


def test_who_released_a_halt(data: Path) -> None:
    _, row = answer("who released the").splitlines()
    assert [word in row for word in ("ann", "bob", "mended")] == [True] * 3


def test_what_a_tenant_paid(data: Path) -> None:
    title, *rows = answer("what did tenant").splitlines()
    assert title.split()[-1] == "cost_usd"
    paid = {row.split()[0]: row.split()[-1] for row in rows}
    assert paid == {"mail": "0.004200", "pay": "0.000000"}


def test_which_runs_used_a_release(data: Path) -> None:
    assert ids(answer("which runs used")) == {"r1", "kid"}


def test_what_was_said_to_the_model_before_a_call(data: Path) -> None:
    told = answer("what was said")
    assert re.search(r"^id +01a202ea$", told, re.M)
    assert "refund them all" in told


def test_a_run_that_asked_no_model_says_so(data: Path) -> None:
    result = CliRunner().invoke(cli, ["ledger", "show", "other", "--before"])
    assert result.exit_code == 4
    assert "no call of its run to a model came before other" in result.output
