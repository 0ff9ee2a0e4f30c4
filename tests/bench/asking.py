"""How long a question to the record takes: each filter and each view that the README names, on a
connection of its own, as a command opens one."""

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from random import Random
from statistics import median

from ledger import activity, containment, queries
from ledger.connection import open_reader
from ledger.filters import parse
from ledger.paging import every_call
from ledger.sqlite import sqlite3
from policies.verdict import Scope
from tests.bench import grown

ROUNDS = 15
BY_RUN = "run:R"
MINUTE_US, DAY_US = 60_000_000, 86_400_000_000

Question = Callable[[sqlite3.Connection], object]


def measure(data: Path, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Milliseconds by question. The run is another one each time."""
    dice = Random(3)
    taken: dict[str, list[float]] = {}
    with closing(open_reader(data)) as reader:
        ends = reader.execute("SELECT max(seq), max(at_us) FROM event WHERE tool LIKE 'tool%'")
        newest_us = int(ends.fetchone()[1])
        runs = [name for (name,) in reader.execute("SELECT name FROM run WHERE name GLOB 'run-*'")]
        seqs = reader.execute("SELECT max(seq) FROM event").fetchone()[0]
    for _ in range(rounds):
        run = dice.choice(runs)
        middle = _call_at(data, seqs // 2)
        for name, question in _questions(run, newest_us, middle).items():
            with closing(open_reader(data)) as reader:
                start = time.perf_counter()
                question(reader)
                taken.setdefault(name, []).append((time.perf_counter() - start) * 1e3)
    return taken


def _call_at(data: Path, seq: int) -> str:
    with closing(open_reader(data)) as reader:
        (call_id,) = reader.execute(
            "SELECT call_id FROM event WHERE seq >= ? AND decision IS NOT NULL ORDER BY seq", (seq,)
        ).fetchone()
        return str(call_id)


def _questions(run: str, newest_us: int, middle: str) -> Mapping[str, Question]:
    terms = {
        BY_RUN: f"run:{run}",
        "the newest": "",
        "id:": f"id:{middle}",
        "tenant: of many": f"tenant:{grown.TENANTS[0]}",
        "tenant: of few": f"tenant:{grown.RARE_TENANT}",
        "tool: of few": f"tool:{grown.RARE_TOOL}",
        "release: of few": f"release:{grown.RARE_RELEASE}",
        "tenant: and tool:": f"tenant:{grown.RARE_TENANT} tool:tool1.create",
        "state:unknown": "state:unknown",
        "state:unknown since:2d": "state:unknown since:2d",
        "state:pending": "state:pending",
        "decision:refuse": "decision:refuse",
        "since:10d until:9d": "since:10d until:9d",
    }
    asked: dict[str, Question] = {name: _filtered(text, newest_us) for name, text in terms.items()}
    return {
        **asked,
        "page 1 of an export": lambda reader: _page(reader, ""),
        "a page in the middle": lambda reader: list(queries.calls(reader, after=middle)),
        "ledger show": lambda reader: queries.call(reader, middle[:20]),
        "ledger tail": lambda reader: queries.last_events(reader),
        "status": lambda reader: activity.activity(reader, newest_us - MINUTE_US),
        "halt --dry-run": lambda reader: containment.blast(
            reader, Scope.RUN, run, newest_us - MINUTE_US
        ),
        "refused by a ceiling": lambda reader: activity.refused_by(
            reader, "ceiling:c1", newest_us - 20 * DAY_US
        ),
        "view runs": _selected(f"SELECT * FROM runs WHERE run = '{run}'"),
        "view effects": _selected(f"SELECT * FROM effects WHERE run = '{run}'"),
    }


def _filtered(terms: str, now_us: int) -> Question:
    return lambda reader: list(queries.calls(reader, parse(terms, now_us)))


def _selected(statement: str) -> Question:
    return lambda reader: list(queries.sql(reader, statement))


def _page(reader: sqlite3.Connection, terms: str) -> object:
    return next(every_call(reader, parse(terms, 0)))


def lines(taken: Mapping[str, list[float]]) -> list[str]:
    return [
        f"{name:>24} {median(each):8.1f} ms ({min(each):.1f}-{max(each):.1f})"
        for name, each in taken.items()
    ]
