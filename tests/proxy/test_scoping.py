"""Each figure of an incident's scope is what its command tells, and what all calls come to."""

import json
import shlex
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ledger import incident_figures
from ledger.compensation import Undoing
from ledger.connection import open_reader
from ledger.incident_reads import named
from ledger.queries import CALL_COLUMNS
from ledger.states import CallState, ClaimAfter
from policies.call import Identity
from policies.decide import decide_undo
from policies.load import load
from policies.policy import UNDO_RUN, Policy
from proxy.cli.main import cli
from proxy.scoping import NAMES_MAX, scope
from tests.ledger.findings import the_one
from tests.ledger.made_incidents import an_incident
from tests.ledger.test_incident_cords import Night
from tests.ledger.world import World
from tests.proxy.scoped import INCIDENTS, POLICY, RUNS, a_busy_ledger

Row = dict[str, Any]
Told = dict[str, Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    world = a_busy_ledger(tmp_path_factory.mktemp("scoped") / "data")
    yield world.data
    world.store.close()


def told(data: Path, name: str, policy: Policy | None) -> Told:
    with closing(open_reader(data)) as reader:
        incident = named(reader, name)
        assert incident is not None
        return scope(reader, incident, policy)


def all_calls(data: Path) -> list[Row]:
    with closing(open_reader(data)) as reader:
        columns = (*CALL_COLUMNS, "seq", "at_us")
        found = reader.execute(f"SELECT {', '.join(columns)} FROM calls ORDER BY seq").fetchall()
    return [dict(zip(columns, row, strict=True)) for row in found]


def typed(data: Path, command: str) -> list[Row]:
    program, *words = shlex.split(command)
    assert program == "pullcord"
    words += ["--json", "--data", str(data), *([] if "--limit" in words else ["--limit", "9999"])]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def belongs(row: Row, name: str, since_us: int) -> bool:
    about = INCIDENTS[name]
    kind, whom = about["kind"], about["name"]
    fits = {"run": "root", "tool": "tool", "release": "release", "tenant": "tenant"}
    return (
        row["at_us"] >= since_us
        and (kind == "global" or row[fits[kind]] == whom)
        and about["tenant"] in ("", row["tenant"])
    )


@pytest.fixture(params=INCIDENTS)
def one(request: pytest.FixtureRequest, data: Path) -> tuple[str, Told, list[Row]]:
    """An incident, its scope, and its calls by another way."""
    answer = told(data, request.param, load(POLICY))
    rows = all_calls(data)
    opened_us = next(row["at_us"] for row in rows if row["id"] == "c0080")
    found = [row for row in rows if belongs(row, request.param, opened_us)]
    return request.param, answer, found


One = tuple[str, Told, list[Row]]


def test_its_calls_are_those_of_its_filter(data: Path, one: One) -> None:
    name, answer, rows = one
    listed = typed(data, answer["command"])
    assert [row["id"] for row in listed] == [row["id"] for row in rows][::-1]
    assert bool(rows) is (name != "a6")
    calls = answer["calls"]
    assert calls["count"] == len(rows) == calls["reads"] + calls["writes"] + calls["models"]
    by_effect = {row["effect"]: row["calls"] for row in typed(data, calls["command"])}
    for effect in ("read", "write", "model"):
        assert calls[f"{effect}s"] == by_effect.get(effect, 0)
        assert calls[f"{effect}s"] == sum(row["effect"] == effect for row in rows)


@pytest.mark.parametrize(
    "figure, column",
    [
        ("runs", "run"),
        ("tenants", "tenant"),
        ("tools", "tool"),
        ("destinations", "host"),
        ("releases", "release"),
        ("agents", "agent"),
    ],
)
def test_what_it_reached(data: Path, one: One, figure: str, column: str) -> None:
    _, answer, rows = one
    reached = {row[column] for row in rows} - {None}
    assert answer[figure]["count"] == len(reached)
    assert set(answer[figure]["names"]) == reached
    summed = [row[column] for row in typed(data, answer[figure]["command"])]
    assert [name for name in summed if name is not None] == answer[figure]["names"]


def test_its_writes_by_state(data: Path, one: One) -> None:
    _, answer, rows = one
    writes = [row for row in rows if row["effect"] == "write"]
    for figure in answer["writes"]["by_state"]:
        assert figure["count"] == len(typed(data, figure["command"]))
        assert figure["count"] == sum(row["state"] == figure["state"] for row in writes)
    assert sum(figure["count"] for figure in answer["writes"]["by_state"]) == len(writes)


KINDS = {"pay": "compensable", "mail": "irreversible", "note": "unknown", "unlisted": "unknown"}


def test_its_writes_by_whether_they_can_be_undone(data: Path, one: One) -> None:
    _, answer, rows = one
    made = [
        (row["tool"], row["state"])
        for row in rows
        if row["effect"] == "write" and row["state"] in ("done", "unknown")
    ]
    assert {KINDS[tool] for tool, _ in made} == {
        figure["reversibility"] for figure in answer["writes"]["by_reversibility"]
    }
    for figure in answer["writes"]["by_reversibility"]:
        found = [(tool, state) for tool, state in made if KINDS[tool] == figure["reversibility"]]
        assert set(figure["tools"]) == {tool for tool, _ in found}
        for state in ("done", "unknown"):
            assert figure[state] == sum(each == state for _, each in found)
        assert len(typed(data, figure["command"])) == len(found)


def test_what_it_spent(data: Path, one: One) -> None:
    _, answer, rows = one
    spent = sum(Decimal(str(row["cost_usd"] or 0)) for row in rows)
    assert Decimal(answer["spend_usd"]) == spent
    assert answer["spend_usd"] == f"{spent:.6f}"
    summed = typed(data, answer["calls"]["command"])
    assert sum(Decimal(row["cost_usd"]) for row in summed) == spent


def test_what_is_at_risk(data: Path, one: One) -> None:
    _, answer, rows = one
    made = [
        row
        for row in rows
        if row["effect"] == "write"
        and row["state"] in ("done", "unknown")
        and row["tool"] in ("pay", "note")
    ]
    figures = answer["value_at_risk"]
    assert sum(figure["writes"] for figure in figures) == len(made)
    paid = sum(row["tool"] == "pay" for row in made)
    for figure in figures:
        notes = len(typed(data, figure["command"]))
        if figure["currency"] == "POINTS":
            told = (figure["amount"], figure["writes"], figure["unreadable"])
            assert told == (f"{notes / 10:g}", notes, 0)
            assert notes == len(made) - paid
        else:
            assert notes == paid
    assert {figure["currency"] for figure in figures} <= {"USD", "EUR", "POINTS", None}


def test_amounts_are_added_up_exactly(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    moved = {"a": ("0.1", "usd"), "b": ("0.2", "usd"), "d": (None, "eur")}
    moved["c"] = ("12345678901234.123456789", "eur")  # no float is that
    for name, (amount, currency) in moved.items():
        ask = world.ask(name, body=name)
        values = (() if amount is None else (Decimal(amount),), (currency,))
        arguments = tuple(zip(("amount", "currency"), values, strict=True))
        world.decided(replace(ask, call=replace(ask.call, arguments=arguments)))
        world.settle(name, status=None if name == "b" else 200)
    world.decided(world.ask("e", body="e"))
    an_incident(world.conn, "a4", kind="tenant", name="acme", opened_us=0, updated_us=0)
    figures = told(world.data, "a4", load(POLICY))["value_at_risk"]
    assert [tuple(figure.values())[:4] for figure in figures] == [
        ("EUR", "123456789012.34123456789", 2, 1),
        ("USD", "0.003", 2, 0),
    ]
    world.settle("e")
    assert told(world.data, "a4", load(POLICY))["value_at_risk"][-1]["currency"] is None
    world.store.close()


def settled(world: World, name: str, amount: int, status: int) -> None:
    """A payment of so many cents, and how the tool answered."""
    ask = world.ask(name, body=name)
    arguments = (("amount", (amount,)), ("currency", ("usd",)))
    world.decided(replace(ask, call=replace(ask.call, arguments=arguments)))
    world.settle(name, status=status)


def test_what_was_undone_or_declined_is_not_left(tmp_path: Path) -> None:
    """For whatever incident it was undone; and a call to undo that was declined undid nothing."""
    world, policy = World(tmp_path / "data"), load(POLICY)
    for name, amount, status in (("a", 100, 200), ("b", 250, 200), ("c", 4_000, 402)):
        settled(world, name, amount, status)
    for name in ("a4", "a5"):
        an_incident(world.conn, name, kind="tenant", name="acme", opened_us=0, updated_us=0,
                    state=("open", "closed")[name == "a5"],
                    closed_us=(None, world.now_us + 10**9)[name == "a5"])  # fmt: skip
    for name, call, status in (("u1", "a", 402), ("u2", "a", 200), ("u3", "b", 402)):
        undo = world.ask(name, body=name, claimant=Identity(UNDO_RUN, "acme"))
        by = Undoing(call, "a4", "ann", "sorry")
        assert world.store.compensate(undo, by, world.policy, decide_undo).verdict.action == "allow"
        claim = ClaimAfter.DONE if status == 200 else ClaimAfter.RELEASED
        world.store.settle(world.outcome(name, CallState.DONE, claim, status=status))
    for name in ("a4", "a5"):
        answer = told(world.data, name, policy)
        (kind,) = answer["writes"]["by_reversibility"]
        counts = [kind[word] for word in ("done", "unknown", "declined", "undone", "left")]
        assert counts == [3, 0, 1, 1, 1]
        undo_ = {word: answer["undo"][word] for word in ("undone", "declined", "left")}
        assert undo_ == {"undone": 1, "declined": 1, "left": 1}
        (risk,) = answer["value_at_risk"]
        assert (risk["amount"], risk["writes"]) == ("43.5", 3)
        assert (risk["left_amount"], risk["left_writes"]) == ("2.5", 1)
        assert (answer["told"]["tenants"], answer["told"]["names_left"]) == (0, ["acme"])
    assert told(world.data, "a4", None)["undo"]["left"] is None
    world.store.close()


def test_a_long_record_is_read_in_parts(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which come to the same."""
    policy = load(POLICY)
    for name in INCIDENTS:
        whole = told(data, name, policy)
        with monkeypatch.context() as patched:
            patched.setattr(incident_figures, "_ROWS_AT_ONCE", 7)
            assert told(data, name, policy) == whole


def test_what_passed_each_cord_and_what_passed_all_of_them(data: Path) -> None:
    """The cord over one of its runs let the others write on, so it did not contain it."""
    answer = told(data, "a1", None)
    assert [one["cord"] for one in answer["cords"]] == ["halt:run:kid"]
    assert answer["cords"][0] == answer["after_cord"]
    whole = answer["after_all"]
    assert (whole["cord"], whole["contained"]) == ("halt:run:kid", False)
    assert whole["admitted"] == len(typed(data, whole["command"])) > 0
    assert told(data, "a2", None)["after_all"] is None


def test_what_passes_when_calls_may_pass_again_is_no_leak(tmp_path: Path) -> None:
    """Also where the cord that contained it stands on, and a wider one was released."""
    night = Night(World(tmp_path / "data"))
    night.pull("freeze:run:r1")
    night.pull("halt:release:v7")
    night.release("halt:release:v7")
    night.call("r2")
    answer = told(night.world.data, the_one(night.world).id, None)
    whole = answer["after_all"]
    assert (whole["cord"], whole["contained"], whole["admitted"]) == ("freeze:run:r1", True, 0)
    assert typed(night.world.data, whole["command"]) == []
    assert answer["calls"]["count"] == 2
    night.world.store.close()


def test_calls_without_a_name_and_a_root_that_made_none(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    world.decided(world.ask("x", claimant=Identity("kid", "acme", ("r1",)), body="x"))
    an_incident(world.conn, "a4", kind="run", name="r1", opened_us=0, updated_us=0)
    answer = told(world.data, "a4", None)
    assert (answer["silent_root"], answer["runs"]["unnamed"]) == ("r1", 0)
    assert (answer["agents"]["count"], answer["agents"]["unnamed"]) == (0, 1)
    world.decided(world.ask("y", body="y"))
    assert told(world.data, "a4", None)["silent_root"] is None
    world.store.close()


def test_what_was_prevented(data: Path, one: One) -> None:
    _, answer, rows = one
    stopped = [row["reason"] for row in rows if row["decision"] in ("refuse", "replay")]
    for figure in answer["prevented"]:
        assert figure["count"] == stopped.count(figure["reason"]) > 0
        assert figure["count"] == len(typed(data, figure["command"]))
    assert {figure["reason"] for figure in answer["prevented"]} == set(stopped)


def test_the_first_bad_call_is_the_one_that_convinced(data: Path, one: One) -> None:
    assert one[1]["first_bad_call"]["id"] == "c0040"


def test_nothing_got_through_after_the_cord(data: Path) -> None:
    """Its run and those below were halted; others of the tree went on, and they after it."""
    after = told(data, "a1", None)["after_cord"]
    assert (after["cord"], after["admitted"]) == ("halt:run:kid", 0)
    assert typed(data, after["command"]) == []
    without = [word for word in shlex.split(after["command"]) if not word.startswith("under:")]
    others = {row["run"] for row in typed(data, shlex.join(without))}
    assert others == {"r1"}
    unending = [word for word in shlex.split(after["command"]) if not word.startswith("seq:")]
    assert {"kid", "grandkid"} <= {row["run"] for row in typed(data, shlex.join(unending))}
    assert told(data, "a2", None)["after_cord"] is None


def test_without_a_policy_nobody_knows_what_can_be_undone(data: Path) -> None:
    answer = told(data, "a1", None)
    kinds = [figure["reversibility"] for figure in answer["writes"]["by_reversibility"]]
    assert (kinds, answer["value_at_risk"]) == (["unknown"], [])


def test_more_names_than_are_told_are_counted(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    for number in range(NAMES_MAX + 9):
        who = Identity(f"r{number}", "acme")
        world.decided(world.ask(f"c{number}", claimant=who, body=f"{number}"))
    an_incident(world.conn, "a4", kind="tenant", name="acme", opened_us=0, updated_us=0)
    runs = told(world.data, "a4", None)["runs"]
    assert (runs["count"], len(runs["names"])) == (NAMES_MAX + 9, NAMES_MAX)
    assert len(typed(world.data, runs["command"])) == NAMES_MAX + 9
    world.store.close()


def test_a_run_of_the_tree_is_known(data: Path) -> None:
    assert set(told(data, "a1", None)["runs"]["names"]) == {
        who.run for who in RUNS.values() if who.root == "r1"
    }


def test_what_undid_its_writes_is_not_its_doing(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    for name, run in (("made", "r1"), ("undone", UNDO_RUN)):
        world.decided(world.ask(name, claimant=Identity(run, "acme"), body=name))
    an_incident(world.conn, "a4", kind="tenant", name="acme", opened_us=0, updated_us=0)
    answer = told(world.data, "a4", None)
    assert answer["runs"]["names"] == ["r1"]
    assert [row["id"] for row in typed(world.data, answer["command"])] == ["made"]
    world.store.close()
