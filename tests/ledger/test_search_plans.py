"""Every documented question finds its rows by an index, also where SQLite knows of a big ledger."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from ledger import activity, containment, queries
from ledger.connection import open_reader
from ledger.filters import Filter, parse
from ledger.paging import every_call
from ledger.sqlite import sqlite3
from ledger.states import CallState, EventType
from policies.verdict import Level, Scope
from tests.ledger.world import START_US, World, a_pull

SECOND_US = 1_000_000

# What ANALYZE wrote down of a ledger of ten million rows (`make scale`).
GROWN = {
    "event_stopped": "363450 2001 1 1",
    "event_release": "5191647 2001 1",
    "event_tool": "5191647 1334 1",
    "event_tenant": "5191647 96 1",
    "event_troubled": "18600 6200 1",
    "event_act": "1 1 1",
    "event_run": "5191647 10 1",
    "event_call": "10019844 2",
    None: "10019845",
}


def some_calls(world: World) -> None:
    for number in range(30):
        world.decided(world.ask(f"w{number}", body=f"{number}"))
        world.settle(f"w{number}", status=None if number % 3 == 0 else 200)
        world.decided(world.ask(f"r{number}", effect="read", tool="mail" if number % 7 else "read"))
        world.wait(60)
    world.store.pull(a_pull())
    world.decided(world.ask("refused", body="refused"))
    world.store.resolve(
        "w0", CallState.NOT_SENT, reason="asked them", actor="ann", at_us=world.now_us
    )
    world.store.resolve("w3", CallState.DONE, reason="asked them", actor="ann", at_us=world.now_us)


@pytest.fixture(params=["new", "grown"])
def reader(world: World, request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
    """Of a ledger that SQLite knows nothing of, and of one of which it knows too much."""
    some_calls(world)
    if request.param == "grown":
        world.conn.execute("ANALYZE")
        world.conn.execute("DELETE FROM sqlite_stat1 WHERE tbl = 'event'")
        world.conn.executemany("INSERT INTO sqlite_stat1 VALUES ('event', ?, ?)", GROWN.items())
    opened = open_reader(world.data)
    yield opened
    opened.close()


def plans(reader: sqlite3.Connection, question: Callable[[sqlite3.Connection], object]) -> str:
    """How SQLite answers each statement of a question."""
    statements: list[str] = []
    reader.set_trace_callback(statements.append)
    question(reader)
    reader.set_trace_callback(None)
    found = []
    for statement in statements:
        if statement.startswith("SELECT"):
            rows = reader.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
            found.append(" | ".join(row[3] for row in rows))
    return "\n".join(found)


def filtered(terms: str) -> Callable[[sqlite3.Connection], object]:
    now_us = START_US + 3600 * SECOND_US
    return lambda reader: list(queries.calls(reader, parse(terms, now_us), 50))


SINCE = "SEARCH d USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"
QUESTIONS: dict[str, tuple[str, Callable[[sqlite3.Connection], object]]] = {
    "by run": ("d USING INDEX event_run (run=?)", filtered("run:r1")),
    "by run and tool": ("d USING INDEX event_run", filtered("run:r1 tool:pay tenant:acme")),
    "by run and state": ("d USING INDEX event_run", filtered("run:r1 state:unknown")),
    "by id": ("d USING INDEX event_call (call_id=?)", filtered("id:w1 id:w2 tool:pay")),
    "by tenant": ("d USING INDEX event_tenant (tenant=?)", filtered("tenant:acme")),
    "by tool": ("d USING INDEX event_tool (tool=?)", filtered("tool:pay")),
    "by release": ("d USING INDEX event_release", filtered("release:2026-11-20.3")),
    "by rare tool": ("d USING INDEX event_tool", filtered("tool:read tenant:acme")),
    "by rare tenant": ("d USING INDEX event_tenant", filtered("tool:pay tenant:none")),
    "by tool and time": (
        "event_tool (tool=? AND seq>? AND seq<?)",
        filtered("tool:pay since:40m until:9m"),
    ),
    "unknown": ("d USING INDEX event_call", filtered("state:unknown")),
    "unknown, by outcome": ("event_troubled (state=?)", filtered("state:unknown")),
    "not sent": ("d USING INDEX event_call", filtered("state:not_sent")),
    "in flight": ("sqlite_autoindex_open_call_1 FOR IN", filtered("state:pending")),
    "in flight, by call": ("d USING INDEX event_call", filtered("state:pending")),
    "refused": ("d USING INDEX event_stopped (decision=?)", filtered("decision:refuse")),
    "refused state": ("d USING INDEX event_stopped", filtered("state:refused")),
    "between times": (SINCE, filtered("since:40m until:9m")),
    "a call": ("event_call (call_id>? AND call_id<?)", lambda reader: queries.call(reader, "w1")),
    "a page": ("d USING INTEGER PRIMARY KEY (rowid", lambda reader: list(every_call(reader))),
    "the tail": ("e USING INTEGER PRIMARY KEY (rowid>?)", lambda reader: queries.tail(reader, 9)),
    "refused by a rule": (
        "COVERING INDEX event_stopped (decision=? AND seq>?)",
        lambda reader: activity.refused_by(reader, "halt:run:r1", START_US),
    ),
    "status": (
        "event USING INTEGER PRIMARY KEY (rowid>?)",
        lambda reader: activity.activity(reader, START_US),
    ),
    "told": (
        "event_act (type=?",
        lambda reader: activity.told(reader, EventType.CROSSED, START_US),
    ),
    "blast": (
        "d USING INTEGER PRIMARY KEY (rowid>?)",
        lambda reader: containment.blast(reader, Scope.RUN, "r1", START_US),
    ),
    "proof": (
        "event_act (type=? AND rule=?)",
        lambda reader: containment.proof(reader, Level.HALT, Scope.RUN, "r1"),
    ),
    "the view runs": (
        "d USING INDEX event_run (run=?)",
        lambda reader: list(queries.sql(reader, "SELECT * FROM runs WHERE run = 'r1'")),
    ),
    "the view effects": (
        "d USING INDEX event_run (run=?)",
        lambda reader: list(queries.sql(reader, "SELECT * FROM effects WHERE run = 'r1'")),
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_is_answered_by_an_index(reader: sqlite3.Connection, name: str) -> None:
    wanted, question = QUESTIONS[name]
    told = plans(reader, question)
    assert wanted in told
    steps = {step for line in told.splitlines() for step in line.split(" | ")}
    assert not {"SCAN d", "SCAN e", "SCAN event", "SCAN later"} & steps, told
    assert "BLOOM" not in told


def test_the_newest_calls_are_found_at_the_end(reader: sqlite3.Connection) -> None:
    """Without a term the record is walked from its end, no further than the page goes."""
    for terms in ("", "host:api.example", "reason:replayed", "decision:allow"):
        told = plans(reader, filtered(terms))
        assert told.startswith("SCAN d | ")
        assert "BLOOM" not in told


def test_what_no_index_leads_to_ends_in_time(world: World) -> None:
    with world.store.transaction(durable=True):
        for number in range(2000):
            world.store.admit(world.read(f"c{number:04}"), world.policy, world.judge)
    chosen = parse("agent:nobody", world.now_us)
    with closing(open_reader(world.data)) as reader:
        assert list(queries.timely(reader, queries.calls(reader, chosen))) == []
        ticks = iter(range(10**6))
        late = queries.timely(
            reader, queries.calls(reader, chosen), lambda: float(next(ticks)), seconds_max=0.5
        )
        with pytest.raises(queries.QueryError, match=r"longer than 0.5 s; narrow it by since:"):
            list(late)
        assert len(list(queries.calls(reader))) == 100


TERMS = (
    *("state:unknown", "state:not_sent", "state:done", "state:refused", "state:pending"),
    *("state:unknown state:not_sent", "decision:refuse", "decision:allow", "decision:replay"),
    *("tool:pay tenant:acme", "tool:mail tool:read", "run:r1 state:unknown", "id:w3 id:refused"),
    *("-tool:pay state:not_sent", "release:2026-11-20.3 since:20m", "tenant:none tool:pay"),
)


@pytest.mark.parametrize("terms", TERMS)
def test_a_lead_loses_no_call(world: World, reader: sqlite3.Connection, terms: str) -> None:
    chosen = parse(terms, world.now_us)
    without = Filter(chosen.where, chosen.values)
    wanted = [row["id"] for row in queries.calls(reader, without)]
    assert [row["id"] for row in queries.calls(reader, chosen)] == wanted
    assert [row["id"] for row in every_call(reader, chosen, 7)] == wanted[::-1]
    assert bool(wanted) is not any(word in terms for word in ("none", "replay", "-tool"))


def steps(reader: sqlite3.Connection, question: Callable[[], object]) -> int:
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    reader.set_progress_handler(step, 10)
    question()
    reader.set_progress_handler(None, 0)
    return count


@pytest.mark.parametrize("terms", ["", "run:r1", "tenant:acme", "tool:mail"])
def test_a_late_page_costs_what_the_first_does(world: World, terms: str) -> None:
    with world.store.transaction(durable=True):
        for number in range(2000):
            ask = world.ask(f"c{number:04}", effect="read", tool="mail")
            world.store.admit(ask, world.policy, world.judge)
    chosen = parse(terms, world.now_us)
    with closing(open_reader(world.data)) as reader:
        first = steps(reader, lambda: list(queries.calls(reader, chosen, 20, "c1990")))
        late = steps(reader, lambda: list(queries.calls(reader, chosen, 20, "c0100")))
    assert late < first * 1.2


def test_sqlite_utils_lists_the_views(world: World) -> None:
    """Its command line, on the ledger as it lies there; the views need nothing but SQLite."""
    some_calls(world)
    world.store.checkpoint()
    for view, wanted in (("runs", '"run": "r1"'), ("effects", '"id": "w1"'), ("calls", "refused")):
        command = [
            sys.executable,
            "-m",
            "sqlite_utils",
            "rows",
            str(world.data / "ledger.db"),
            view,
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        assert wanted in ended.stdout


def test_each_pull_of_a_cord_is_told_with_its_end(world: World) -> None:
    for number in range(3):
        world.store.pull(a_pull())
        if number < 2:
            world.wait(60)
            world.store.release(
                Level.HALT,
                Scope.RUN,
                "r1",
                reason=f"fixed {number}",
                actor="bob",
                at_us=world.now_us,
            )
    told = ("cord", "run", "pulled_by", "reason", "released_by", "released_because")
    found = world.rows(f"SELECT {', '.join(told)}, released_at > pulled_at FROM cords")
    pulled = ("halt:run:r1", "r1", "ann", "looks wrong")
    assert found == [
        (*pulled, "bob", "fixed 0", 1),
        (*pulled, "bob", "fixed 1", 1),
        (*pulled, None, None, None),
    ]
    plan = " | ".join(row[3] for row in world.rows("EXPLAIN QUERY PLAN SELECT * FROM cords"))
    assert plan.count("event_act (type=?") == 2
    assert "SCAN" not in plan.replace("SCAN cords", "")


def test_the_views_need_no_function_of_ours(world: World) -> None:
    some_calls(world)
    world.store.close()
    plain = sqlite3.connect(f"file:{world.data / 'ledger.db'}?mode=ro", uri=True)
    names = [name for (name,) in plain.execute("SELECT name FROM sqlite_schema WHERE type='view'")]
    assert {"calls", "cords", "effects", "incidents", "runs"} <= set(names)
    for name in names:
        plain.execute(f"SELECT * FROM {name}").fetchall()
    plain.close()
    world.store = world.opened()
