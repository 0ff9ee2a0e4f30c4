"""Whether tables, indexes, views and triggers of a file are those that this version makes.

Views say what a person is shown, and tables what may stand in a column: who changes one of them
shows another record without touching a row. So each is compared, letter by letter, with those of a
new file that went through the same steps in memory.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager

from sqlite_utils.db import Database

from ledger.connection import MIGRATIONS_TABLE
from ledger.migrations import migrate
from ledger.sqlite import sqlite3
from ledger.trace_schema import INDEX, INDEXES, make_tables

# Type, name, table and text. Where in the file they lie differs from one file to the next.
_Object = tuple[str, str, str, str | None]

_OBJECTS = "SELECT type, name, tbl_name, sql FROM main.sqlite_schema"

# What SQLite knows of how much there is, where `PRAGMA optimize` has looked.
_STATISTICS: frozenset[_Object] = frozenset(
    ("table", name, name, f"CREATE TABLE {name}({columns})")
    for name, columns in (
        ("sqlite_stat1", "tbl,idx,stat"),
        ("sqlite_stat4", "tbl,idx,neq,nlt,ndlt,sample"),
    )
)

_INDEX_PARTS = frozenset(
    f"{INDEX}_{part}" for part in ("data", "idx", "content", "docsize", "config")
)


def ledger_differences(conn: sqlite3.Connection) -> list[str]:
    """What differs in a ledger that is up to date. Some 20 ms."""
    with _new() as fresh:
        migrate(Database(fresh))
        made = _objects(fresh)
    # sqlite-utils may have made its own table in another way once.
    there, made = (
        Counter(
            {each: count for each, count in objects.items() if not _is_of(MIGRATIONS_TABLE, each)}
        )
        for objects in (_objects(conn), made)
    )
    return list(_differences(there, made))


def trace_differences(conn: sqlite3.Connection) -> list[str]:
    """The same of a trace. Its full-text index is in one of two forms, or not there, by the SQLite
    that made it."""
    there = _objects(conn)
    index = next((sql for kind, name, _, sql in there if (kind, name) == ("table", INDEX)), None)
    with _new() as fresh:
        make_tables(fresh)
        if index in INDEXES:
            try:
                fresh.execute(index)
            except sqlite3.Error:
                # A newer SQLite made it than this one: its parts cannot be told from here.
                parts = [
                    each for each in there if each[2] in _INDEX_PARTS and _is_of(each[2], each)
                ]
                there -= Counter({each: there[each] for each in parts})
                there[("table", INDEX, INDEX, index)] -= 1
        made = _objects(fresh)
    return list(_differences(there, made))


@contextmanager
def _new() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        yield fresh


def _objects(conn: sqlite3.Connection) -> Counter[_Object]:
    found = Counter(tuple(row) for row in conn.execute(_OBJECTS))
    return Counter({each: count for each, count in found.items() if each not in _STATISTICS})


def _is_of(table: str, each: _Object) -> bool:
    """Whether it is this table, or what SQLite keeps its unique values in."""
    kind, name, of, sql = each
    return of == table and ((kind, name) == ("table", table) or (kind == "index" and sql is None))


def _differences(there: Counter[_Object], made: Counter[_Object]) -> Iterator[str]:
    extra, lacking = there - made, made - there
    named = {each[:2] for each in lacking}
    for kind, name, of, _ in sorted(extra, key=str):
        where = f" on {of}" if kind in ("trigger", "index") else ""
        what = "is not as pullcord makes it" if (kind, name) in named else "is none of pullcord's"
        yield f"the {kind} {name}{where} {what}"
    others = {each[:2] for each in extra}
    for kind, name, _, _ in sorted(lacking, key=str):
        if (kind, name) not in others:
            yield f"the {kind} {name} is missing"
