"""Which calls belong to an incident, and that a tree of runs is found by its indexes."""

from collections.abc import Iterator

import pytest

from ledger import queries
from ledger.connection import open_reader
from ledger.filters import Filter, parse
from ledger.incident_figures import figures
from ledger.sqlite import sqlite3
from ledger.tokens import Grant
from policies.call import Identity
from tests.ledger.test_search_plans import GROWN, plans
from tests.ledger.world import World, a_pull

TREE = {
    "r1": Identity("r1", "acme"),
    "kid": Identity("kid", "acme", ("r1",)),
    "grandkid": Identity("grandkid", "acme", ("kid", "r1")),
    "r2": Identity("r2", "acme"),
    "other": Identity("other", "acme", ("r2",)),
}


@pytest.fixture(params=["new", "grown"])
def reader(world: World, request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
    for who in TREE.values():
        grant = Grant(who.run, "" if who.parent else "acme", parent=who.parent)
        world.store.mint(
            grant, who.run.encode(), actor="ann", at_us=world.now_us, policy=world.policy
        )
    for number in range(4):
        for name, who in TREE.items():
            world.decided(world.ask(f"{name}{number}", claimant=who, body=f"{name}{number}"))
            world.settle(f"{name}{number}")
    if request.param == "grown":
        world.conn.execute("ANALYZE")
        world.conn.execute("DELETE FROM sqlite_stat1 WHERE tbl = 'event'")
        grown = {**GROWN, "event_tree": "519164 50 1"}
        world.conn.executemany("INSERT INTO sqlite_stat1 VALUES ('event', ?, ?)", grown.items())
    opened = open_reader(world.data)
    yield opened
    opened.close()


FAMILIES = {
    "root:r1": {"r1", "kid", "grandkid"},
    "root:kid": set(),
    "root:r1 root:r2": set(TREE),
    "under:kid": {"kid", "grandkid"},
    "under:r1": {"r1", "kid", "grandkid"},
    "under:grandkid under:r2": {"grandkid", "r2", "other"},
    "under:kid root:r1": {"kid", "grandkid"},
    "-under:kid root:r1": {"r1"},
    "under:nobody": set(),
}


@pytest.mark.parametrize("terms", FAMILIES)
def test_a_family_is_found_by_its_indexes(reader: sqlite3.Connection, terms: str) -> None:
    chosen = parse(terms, 0)
    without = Filter(chosen.where, chosen.values)
    found = list(queries.calls(reader, chosen))
    assert {row["run"] for row in found} == FAMILIES[terms]
    assert found == list(queries.calls(reader, without))
    told = plans(reader, lambda one: list(queries.calls(one, chosen)))
    assert "event_tree (root=?)" in told
    assert "event_run (run=?)" in told
    assert not {"SCAN d", "SCAN event"} & {
        step for line in told.splitlines() for step in line.split(" | ")
    }, told


def test_figures_follow_the_same_way(reader: sqlite3.Connection) -> None:
    chosen = parse("root:r1 since:2020-01-01", 0)
    statements: list[str] = []
    reader.set_trace_callback(statements.append)
    assert figures(reader, chosen).effects == {"write": 12}
    reader.set_trace_callback(None)
    asked = next(each for each in statements if each.lstrip().startswith("WITH"))
    told = [row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {asked}")]
    assert "SEARCH event USING INDEX event_tree (root=?)" in " ".join(told)
    assert "SEARCH o USING INDEX event_call (call_id=? AND rowid>?) LEFT-JOIN" in told
    assert not {"SCAN d", "SCAN o", "SCAN event"} & set(told), told


def test_an_act_over_a_run_of_the_family_passes_too(
    world: World, reader: sqlite3.Connection
) -> None:
    world.store.pull(a_pull(subject="grandkid"))
    ((seq,),) = world.rows("SELECT max(seq) FROM event")
    terms = ("under:kid", f"seq:{seq}..", f"seq:{seq}..{seq}", "under:r2", f"seq:1..{seq - 1}")
    passed = [queries.act_passes(reader, seq, parse(term, 0)) for term in terms]
    assert passed == [True, True, True, False, False]


def test_all_of_a_release_among_runs_leads_as_well_as_the_release_alone(
    world: World, reader: sqlite3.Connection
) -> None:
    """And beside runs the tool leads."""
    told = plans(reader, lambda one: list(queries.calls(one, parse("under:release:v2", 0))))
    assert "event_release (release=?)" in told
    both = parse("tool:pay under:release:v2 under:r1", 0)
    assert "event_tool (tool=?)" in plans(reader, lambda one: list(queries.calls(one, both)))
