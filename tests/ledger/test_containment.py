"""Before a cord is pulled: what it would stop. After: the proof that it did, from the record."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from ledger import containment
from ledger.connection import open_reader
from ledger.containment import Blast, Proof
from ledger.errors import LedgerUnavailable
from ledger.queries import QueryError
from ledger.records import Bearer, Claimant
from ledger.sqlite import sqlite3
from ledger.states import CallState, ClaimAfter, EventType
from ledger.tokens import Grant
from policies.call import Identity
from policies.verdict import Action, Level, Reason, Scope, Verdict
from tests.ledger.world import R1, START_US, World, a_pull, a_worker

# A tree `root > mid > leaf > deep` of tenant acme, another run of it, one of another tenant.
ROOT = Identity("root", "acme", release="v1")
MID = Identity("mid", "acme", ("root",), release="v1")
LEAF = Identity("leaf", "acme", ("mid", "root"), release="v2")
DEEP = Identity("deep", "acme", ("leaf", "mid", "root"), release="v1")
OTHER = Identity("other", "acme", release="v2")
BOLT = Identity("bolt", "bolt")
ALL = (ROOT, MID, LEAF, DEEP, OTHER, BOLT)

# What each scope covers of them; every run makes a write with the tool `pay`, and a read.
COVERED = {
    (Scope.GLOBAL, ""): {"root", "mid", "leaf", "deep", "other", "bolt"},
    (Scope.TENANT, "acme"): {"root", "mid", "leaf", "deep", "other"},
    (Scope.RUN, "root"): {"root", "mid", "leaf", "deep"},
    (Scope.RUN, "mid"): {"mid", "leaf", "deep"},
    (Scope.RUN, "leaf"): {"leaf", "deep"},
    (Scope.RUN, "lea"): set(),
    (Scope.RELEASE, "v2"): {"leaf", "other"},
    (Scope.TOOL, "pay"): {"root", "mid", "leaf", "deep", "other", "bolt"},
    (Scope.TOOL, "mid/pay"): {"mid", "leaf", "deep"},
    (Scope.TOOL, "mid/other"): set(),
}
SCOPES = pytest.mark.parametrize("scope, subject", COVERED)


@pytest.fixture
def reader(world: World) -> Iterator[sqlite3.Connection]:
    opened = open_reader(world.data)
    yield opened
    opened.close()


def write(world: World, name: str, claimant: Claimant, **rest: Any) -> None:
    verdict = world.decided(world.ask(name, body=name, claimant=claimant, **rest)).verdict
    assert verdict.action is Action.ALLOW


def read(world: World, name: str, claimant: Claimant) -> None:
    assert world.decided(world.read(name, claimant=claimant)).verdict.action is Action.ALLOW


def minted(world: World, grant: Grant) -> Bearer:
    secret = hashlib.sha256(grant.run.encode()).digest()
    world.store.mint(grant, secret, actor="ann", at_us=world.now_us, policy=world.policy)
    return Bearer(grant.run, secret)


def ended(world: World, name: str, error: str, state: CallState = CallState.UNKNOWN) -> None:
    unknown = state is CallState.UNKNOWN
    after = ClaimAfter.UNKNOWN if unknown else ClaimAfter.RELEASED
    assert world.store.settle(world.outcome(name, state, after, status=None, error=error))


def tree(world: World) -> dict[str, Bearer]:
    """The tree with tokens, so that the record knows who is whose child."""
    parents = {"mid": "root", "leaf": "mid", "deep": "leaf"}
    return {
        who.run: minted(
            world, Grant(who.run, who.tenant, parents.get(who.run, ""), release=who.release)
        )
        for who in ALL
    }


def pulled(world: World, scope: Scope, subject: str, level: Level = Level.HALT) -> None:
    assert world.store.pull(a_pull(scope, subject, level))


# Calls in flight


def test_open_calls_tell_what_they_do_and_who_holds_them(
    world: World, reader: sqlite3.Connection
) -> None:
    assert containment.open_calls(reader) == []
    world.store.register(a_worker())
    write(world, "a", LEAF, worker="w1")
    world.wait(1)
    read(world, "b", R1)
    read(world, "c", R1)
    world.settle("c")
    first, second = containment.open_calls(reader)
    assert first == {
        "id": "a",
        "at_us": START_US,
        "run": "leaf",
        "tenant": "acme",
        "release": "v2",
        "parent": "mid",
        "root": "root",
        "tool": "pay",
        "effect": "write",
        "method": "POST",
        "host": "api.example",
        "worker": "w1",
    }
    assert (second["id"], second["run"], second["worker"]) == ("b", "r1", "")


# What a cord would stop


@SCOPES
def test_a_blast_counts_what_is_in_flight(
    world: World, reader: sqlite3.Connection, scope: Scope, subject: str
) -> None:
    for run, bearer in tree(world).items():
        write(world, f"{run}-write", bearer)
        read(world, f"{run}-read", bearer)
    covered = COVERED[scope, subject]
    reads = 0 if scope is Scope.TOOL else len(covered)
    expected = Blast(tuple(sorted(covered)), len(covered) + reads, len(covered))
    assert containment.blast(reader, scope, subject, START_US) == expected


def test_a_run_is_active_that_called_lately(world: World, reader: sqlite3.Connection) -> None:
    for who in ALL:
        read(world, who.run, who)
        world.settle(who.run)
        world.wait(10)
    world.decided(world.read("nobody", claimant=None))
    for since_s, runs in ((0, tuple(sorted(w.run for w in ALL))), (40, ("bolt", "other"))):
        since_us = START_US + since_s * 1_000_000
        assert containment.blast(reader, Scope.GLOBAL, "", since_us) == Blast(runs, 0, 0)
    acme = containment.blast(reader, Scope.TENANT, "acme", START_US + 40_000_000)
    assert acme.runs == ("other",)
    assert containment.blast(reader, Scope.GLOBAL, "", world.now_us + 1) == Blast((), 0, 0)


def test_a_refused_run_is_active_too(world: World, reader: sqlite3.Connection) -> None:
    pulled(world, Scope.RUN, "r1")
    world.decided(world.read("a"))
    assert containment.blast(reader, Scope.RUN, "r1", START_US).runs == ("r1",)


def test_a_run_is_active_whose_token_is_valid(world: World, reader: sqlite3.Connection) -> None:
    tree(world)
    minted(world, Grant("old", "acme", expires_us=START_US + 5))
    minted(world, Grant("gone", "acme"))
    world.store.revoke("gone", actor="ann", at_us=START_US)
    world.store.mint(Grant("other", release="v9"), b"n" * 32, actor="ann", at_us=1)
    later_us = START_US + 5
    for (scope, subject), covered in COVERED.items():
        expected = set() if scope is Scope.TOOL else covered
        assert set(containment.blast(reader, scope, subject, later_us).runs) == expected
    assert containment.blast(reader, Scope.RELEASE, "v9", later_us).runs == ("other",)
    assert "old" in containment.blast(reader, Scope.GLOBAL, "", later_us - 1).runs


def test_an_empty_record_has_no_blast(reader: sqlite3.Connection) -> None:
    assert containment.blast(reader, Scope.GLOBAL, "", 0) == Blast((), 0, 0)


@pytest.mark.parametrize("rows", range(6))
def test_the_first_row_since_a_time_is_found(
    world: World, reader: sqlite3.Connection, rows: int
) -> None:
    for number in range(rows):
        world.store.note(EventType.CLOCK, actor="x", at_us=number // 2 * 10, detail="")
    for since_us in range(-5, 35, 5):
        times = [number // 2 * 10 for number in range(rows)]
        first = next((seq for seq, at in enumerate(times, 1) if at >= since_us), rows + 1)
        assert containment.first_since(reader, since_us) == (first if rows else 0)


# The proof


@SCOPES
@pytest.mark.parametrize("level", [Level.FREEZE, Level.HALT])
def test_the_proof_covers_the_scope_and_no_more(
    world: World, reader: sqlite3.Connection, level: Level, scope: Scope, subject: str
) -> None:
    bearers = tree(world)
    for run, bearer in bearers.items():
        for name in ("cut", "open"):
            write(world, f"{run}-{name}", bearer)
            read(world, f"{run}-{name}-read", bearer)
    cord = a_pull(scope, subject, level)
    assert world.store.pull(cord)
    for run in bearers:
        ended(world, f"{run}-cut", cord.rule)
        ended(world, f"{run}-cut-read", cord.rule, CallState.DONE)
    found = containment.proof(reader, level, scope, subject)
    covered = sorted(COVERED[scope, subject], key=list(bearers).index)
    both = level is Level.HALT and scope is not Scope.TOOL
    names = ("{}-cut", "{}-cut-read") if both else ("{}-cut",)
    opens = ("{}-open", "{}-open-read") if both else ("{}-open",)
    assert [row["id"] for row in found.cut] == [n.format(run) for run in covered for n in names]
    assert found.unknown == tuple(f"{run}-cut" for run in covered)
    assert found.still_open == tuple(n.format(run) for run in covered for n in opens)
    assert (found.admitted_after, found.pulled_us) == (0, cord.at_us)
    assert all(row["state"] for row in found.cut)


@SCOPES
@pytest.mark.parametrize("level", [Level.FREEZE, Level.HALT])
def test_the_proof_counts_what_got_through_all_the_same(
    world: World, reader: sqlite3.Connection, level: Level, scope: Scope, subject: str
) -> None:
    bearers = tree(world)
    pulled(world, scope, subject, level)
    world.judge = lambda *_: Verdict(Action.ALLOW, Reason.ALLOWED, "a broken judge")
    for run, bearer in bearers.items():
        write(world, f"{run}-write", bearer)
        read(world, f"{run}-read", bearer)
    world.settle("leaf-write")
    found = containment.proof(reader, level, scope, subject)
    each = 2 if level is Level.HALT and scope is not Scope.TOOL else 1
    assert found.admitted_after == each * len(COVERED[scope, subject])
    assert (found.still_open, found.unknown, found.cut) == ((), (), ())


def test_parents_are_known_from_the_calls_alone_too(
    world: World, reader: sqlite3.Connection
) -> None:
    write(world, "a", LEAF)
    pulled(world, Scope.RUN, "root")
    pulled(world, Scope.RUN, "mid")
    for run in ("root", "mid"):
        assert containment.proof(reader, Level.HALT, Scope.RUN, run).still_open == ("a",)


def test_calls_of_the_cords_own_transaction_are_before_or_after_it(
    world: World, reader: sqlite3.Connection
) -> None:
    with world.store.transaction(durable=True):
        world.store.admit(world.read("before"), world.policy, world.judge)
        pulled(world, Scope.RUN, "r1")
        world.store.admit(world.read("after"), world.policy, world.judge)
    found = containment.proof(reader, Level.HALT, Scope.RUN, "r1")
    assert (found.admitted_after, found.still_open) == (0, ("before",))


def test_a_call_that_had_ended_is_no_part_of_the_proof(
    world: World, reader: sqlite3.Connection
) -> None:
    write(world, "a", R1)
    ended(world, "a", "halt:run:r1")
    pulled(world, Scope.RUN, "r1")
    found = containment.proof(reader, Level.HALT, Scope.RUN, "r1")
    assert (found.cut, found.unknown, found.still_open) == ((), (), ())


def test_the_proof_is_of_the_newest_pull(world: World, reader: sqlite3.Connection) -> None:
    pulled(world, Scope.RUN, "r1")
    first = containment.proof(reader, Level.HALT, Scope.RUN, "r1")
    world.store.release(Level.HALT, Scope.RUN, "r1", reason="ok", actor="bob", at_us=1)
    write(world, "a", R1)
    assert containment.proof(reader, Level.HALT, Scope.RUN, "r1").admitted_after == 1
    world.store.pull(dataclasses.replace(a_pull(), at_us=START_US + 9))
    found = containment.proof(reader, Level.HALT, Scope.RUN, "r1")
    assert found == Proof(START_US + 9, first.seq + 3, 0, (), (), (), ("a",))


def test_there_is_no_proof_of_a_cord_that_never_was(
    world: World, reader: sqlite3.Connection
) -> None:
    pulled(world, Scope.RUN, "r1")
    for level, run in ((Level.FREEZE, "r1"), (Level.HALT, "r2"), (Level.HALT, "r")):
        with pytest.raises(QueryError, match=f"no {level}:run:{run} that was pulled"):
            containment.proof(reader, level, Scope.RUN, run)


@pytest.mark.parametrize(
    "run, error, cut",
    [
        ("r1", "halt:run:r1", True),
        ("r1", "cut by halt:run:r1 while it was read", True),
        ("r1", "cut (halt:run:r1)", True),
        ("r1", "halt:run:r10", False),
        ("r1", "halt:run:r1.5", False),
        ("r1", "a-halt:run:r1", False),
        ("r1", "client left", False),
        ("r1", "", False),
        ("9f86d081884c7d659a2feaa0c55ad015", "halt:run:9f86d081884c7d659a2feaa0c55ad015", True),
        ("r" * 256, f"halt:run:{'r' * 256}"[:200], True),
    ],
)
def test_an_outcome_names_the_cord_that_cut_it(
    world: World, reader: sqlite3.Connection, run: str, error: str, cut: bool
) -> None:
    read(world, "a", Identity(run, "acme"))
    pulled(world, Scope.RUN, run)
    ended(world, "a", error)
    found = containment.proof(reader, Level.HALT, Scope.RUN, run)
    assert [row["id"] for row in found.cut] == (["a"] if cut else [])
    assert (found.unknown, found.unknown_writes) == (("a",), ())  # it is a read


def test_the_calls_of_a_lost_worker_are_in_the_proof(
    world: World, reader: sqlite3.Connection
) -> None:
    world.store.register(a_worker())
    write(world, "a", R1, worker="w1")
    pulled(world, Scope.RUN, "r1")
    world.store.forsake("w1", world.now_us, "silent")
    found = containment.proof(reader, Level.HALT, Scope.RUN, "r1")
    assert (found.unknown, found.unknown_writes, found.still_open) == (("a",), ("a",), ())


# Workers and drills


def test_workers_are_listed(world: World, reader: sqlite3.Connection) -> None:
    for name in ("w2", "w1"):
        world.store.register(a_worker(name))
    assert containment.worker_rows(reader) == [a_worker("w1"), a_worker("w2")]


def test_the_last_drill_is_told(world: World, reader: sqlite3.Connection) -> None:
    assert containment.last_drill(reader) is None
    for at_us in (7, 9):
        world.store.note(EventType.DRILLED, actor="ann", at_us=at_us, detail=f"{at_us} ms")
    world.store.note(EventType.CLOCK, actor="pullcord", at_us=11, detail="")
    assert containment.last_drill(reader) == {
        "seq": 2,
        "at_us": 9,
        "actor": "ann",
        "detail": "9 ms",
    }


# How it is read


@SCOPES
def test_the_record_is_not_read_from_its_start(
    world: World, reader: sqlite3.Connection, scope: Scope, subject: str
) -> None:
    pulled(world, scope, subject)
    statements: list[str] = []
    reader.set_trace_callback(statements.append)
    containment.proof(reader, Level.HALT, scope, subject)
    containment.blast(reader, scope, subject, START_US)
    containment.open_calls(reader)
    containment.last_drill(reader)
    reader.set_trace_callback(None)
    plans = [
        row[3]
        for statement in statements
        if "SELECT" in statement
        for row in reader.execute(f"EXPLAIN QUERY PLAN {statement}")
    ]
    assert any("event_act" in line for line in plans)
    assert [line for line in plans if line.startswith(("SCAN d", "SCAN e", "SCAN event"))] == []


def test_all_is_read_of_one_state(world: World, reader: sqlite3.Connection) -> None:
    pulled(world, Scope.RUN, "r1")
    with containment.snapshot(reader):
        write(world, "a", BOLT)
        before = containment.open_calls(reader)
        write(world, "b", BOLT)
        assert containment.open_calls(reader) == before
        containment.proof(reader, Level.HALT, Scope.RUN, "r1")
    assert not reader.in_transaction
    assert len(containment.open_calls(reader)) == 2


def test_a_ledger_that_cannot_be_read_is_told_as_such(
    world: World, reader: sqlite3.Connection
) -> None:
    pulled(world, Scope.RUN, "r1")
    world.conn.execute("ALTER TABLE open_call RENAME TO elsewhere")
    with pytest.raises(LedgerUnavailable):
        containment.proof(reader, Level.HALT, Scope.RUN, "r1")
    assert not reader.in_transaction
    world.conn.execute("ALTER TABLE elsewhere RENAME TO open_call")
    containment.proof(reader, Level.HALT, Scope.RUN, "r1")
