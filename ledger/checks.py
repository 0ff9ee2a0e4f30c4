"""Whether a ledger is whole and agrees with itself: a table of checks, each a read.

On connections that cannot write, of one and the same state. Whether somebody has changed a row
that still fits is for verification.py to tell.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ledger.connection import DATABASE, LOCK, MIGRATIONS_TABLE, open_file
from ledger.errors import Kind, LedgerError, LedgerUnavailable, was_interrupted
from ledger.migrations import STEPS
from ledger.schema_checks import ledger_differences, trace_differences
from ledger.sqlite import sqlite3
from ledger.trace_schema import open_trace

FOUND_MAX = 20  # of one check that are told; the first ones lead to the rest
_STEPS_BETWEEN_SIGNALS = 100_000
_OLDER = "an older pullcord made it; it is brought up to date at the next start"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check came to. `found` names what is wrong, FOUND_MAX of it at most; `skipped` is
    why it was not made."""

    check: str
    found: tuple[str, ...] = ()
    skipped: str = ""

    @property
    def is_ok(self) -> bool:
        return not self.found


Check = Callable[[sqlite3.Connection], Iterator[str]]

# Each statement gives one text for each thing that is wrong.
_SELECTS: dict[str, str] = {
    "every open call has its intent": (
        "SELECT 'call ' || o.call_id FROM open_call o WHERE NOT EXISTS (SELECT 1 FROM event d "
        "WHERE d.call_id = o.call_id AND d.type = 'call.intent')"
    ),
    "no open call has ended": (
        "SELECT 'call ' || o.call_id FROM open_call o WHERE EXISTS (SELECT 1 FROM event e "
        "WHERE e.call_id = o.call_id AND e.type = 'call.outcome')"
    ),
    "every open call that claimed has its claim": (
        "SELECT 'call ' || o.call_id FROM open_call o WHERE o.claim IS NOT NULL AND NOT EXISTS "
        "(SELECT 1 FROM claim c WHERE c.id = o.claim AND c.call_id = o.call_id)"
    ),
    "every intent has ended or is open": (
        "SELECT 'call ' || d.call_id FROM event d WHERE d.type = 'call.intent' "
        "AND NOT EXISTS (SELECT 1 FROM event e WHERE e.call_id = d.call_id "
        "AND e.type = 'call.outcome') "
        "AND NOT EXISTS (SELECT 1 FROM open_call o WHERE o.call_id = d.call_id)"
    ),
    "every outcome has its intent": (
        "SELECT 'call ' || e.call_id FROM event e WHERE e.type = 'call.outcome' AND NOT EXISTS "
        "(SELECT 1 FROM event d WHERE d.call_id = e.call_id "
        "AND d.type IN ('call.intent', 'call.held') AND d.seq < e.seq)"
    ),
    "no call has ended twice": (
        "SELECT 'call ' || e.call_id FROM event e WHERE e.type = 'call.outcome' AND EXISTS "
        "(SELECT 1 FROM event f WHERE f.call_id = e.call_id AND f.type = 'call.outcome' "
        "AND f.seq < e.seq)"
    ),
    "only unknown outcomes were resolved, once": (
        "SELECT 'call ' || r.call_id FROM event r WHERE r.actor IS NOT NULL "
        "AND r.type = 'call.resolved' AND (NOT EXISTS (SELECT 1 FROM event e "
        "WHERE e.call_id = r.call_id AND e.type = 'call.outcome' AND e.state = 'unknown' "
        "AND e.seq < r.seq) OR EXISTS (SELECT 1 FROM event f WHERE f.call_id = r.call_id "
        "AND f.type = 'call.resolved' AND f.seq < r.seq))"
    ),
    "every claim has its call": (
        "SELECT 'claim of call ' || c.call_id FROM claim c WHERE NOT EXISTS (SELECT 1 FROM event d "
        "WHERE d.call_id = c.call_id AND d.type = 'call.intent')"
    ),
    "a pending claim is that of an open call": (
        "SELECT 'claim of call ' || c.call_id FROM claim c WHERE c.state = 'pending' "
        "AND NOT EXISTS (SELECT 1 FROM open_call o WHERE o.call_id = c.call_id AND o.claim = c.id)"
    ),
    "an unknown claim is that of an unknown call": (
        "SELECT 'claim of call ' || c.call_id FROM claim c WHERE c.state = 'unknown' "
        "AND NOT EXISTS (SELECT 1 FROM calls WHERE id = c.call_id AND state = 'unknown')"
    ),
    "every row is numbered from one": (
        "SELECT 'row ' || seq FROM event WHERE seq < 1 ORDER BY seq"
    ),
    "every kept answer has its claim": (
        "SELECT 'answer of claim ' || a.claim FROM answer a WHERE NOT EXISTS "
        "(SELECT 1 FROM claim c WHERE c.id = a.claim AND c.answered = 1)"
    ),
    "every claim with an answer has it": (
        "SELECT 'claim of call ' || c.call_id FROM claim c WHERE c.answered = 1 AND NOT EXISTS "
        "(SELECT 1 FROM answer a WHERE a.claim = c.id)"
    ),
    "every key that was told of a claim has it for its time": (
        "SELECT 'key ' || lower(hex(substr(a.key, 1, 8))) FROM claim_alias a WHERE NOT EXISTS "
        "(SELECT 1 FROM claim c WHERE c.id = a.claim AND c.key <> a.key "
        "AND (c.state <> 'done' OR c.expires_us >= a.until_us))"
    ),
}


def _is_ledger(conn: sqlite3.Connection) -> Iterator[str]:
    known = {name for (name,) in conn.execute("SELECT name FROM sqlite_schema")}
    if MIGRATIONS_TABLE not in known or "event" not in known:
        yield "it is another program's database"


def _schema(conn: sqlite3.Connection) -> Iterator[str]:
    known = {name for name, _ in STEPS}
    yield from (f"step {name} is of a newer pullcord" for name in sorted(_applied(conn) - known))


def _integrity(conn: sqlite3.Connection) -> Iterator[str]:
    for (text,) in conn.execute(f"PRAGMA integrity_check({FOUND_MAX})"):
        if text != "ok":
            yield str(text)


def _foreign_keys(conn: sqlite3.Connection) -> Iterator[str]:
    for table, row, parent, _ in conn.execute("PRAGMA foreign_key_check"):
        yield f"{table} row {row} names no {parent}"


def _made_so(conn: sqlite3.Connection) -> Iterator[str]:
    yield from ledger_differences(conn)


def _select(statement: str) -> Check:
    def check(conn: sqlite3.Connection) -> Iterator[str]:
        for (text,) in conn.execute(statement):
            yield str(text)

    return check


_FORM: dict[str, Check] = {
    "the file is a ledger": _is_ledger,
    "its schema is known": _schema,
    "its pages and indexes are whole": _integrity,
    "its references lead somewhere": _foreign_keys,
}
_SENSE: dict[str, Check] = {
    "its tables, views and triggers are pullcord's": _made_so,
    **{name: _select(statement) for name, statement in _SELECTS.items()},
}

CHECKS = (*_FORM, *_SENSE)
"""The names of all checks, in the order in which they are made."""

TRACE_CHECK = "the tables of its trace are pullcord's"


def checked(conn: sqlite3.Connection) -> Iterator[Finding]:
    """Each check in turn; what damage keeps from being made is skipped. About a minute for ten
    million calls."""
    # Between steps Python looks whether somebody has pressed Ctrl-C.
    conn.set_progress_handler(lambda: 0, _STEPS_BETWEEN_SIGNALS)
    skipped = ""
    try:
        conn.execute("BEGIN")
        for name, check in (*_FORM.items(), *_SENSE.items()):
            if name in _SENSE and not skipped and _missing(conn):
                skipped = _OLDER
            finding = Finding(name, skipped=skipped) if skipped else _made(conn, name, check)
            yield finding
            if name in _FORM and not finding.is_ok:
                skipped = skipped or f"since not: {name}"
    except sqlite3.Error as error:
        yield Finding("it can be read", (_told(error),))
    finally:
        conn.set_progress_handler(None, 0)
        if conn.in_transaction:
            conn.execute("ROLLBACK")


def checked_file(path: Path) -> Iterator[Finding]:
    """The same for a file. Raises LedgerUnavailable for one that cannot be opened, but for damage:
    that is found."""
    try:
        conn = open_file(path)
    except LedgerUnavailable as error:
        if error.kind is not Kind.CORRUPT:
            raise
        yield Finding(CHECKS[0], (error.cause,))
        return
    try:
        yield from checked(conn)
    finally:
        conn.close()
    if path.name == DATABASE and (path.parent / LOCK).exists():
        yield from _checked_trace(path.parent)


def _checked_trace(data: Path) -> Iterator[Finding]:
    """The trace beside a ledger in use, where there is one."""
    try:
        trace = open_trace(data)
        if trace is None:
            return
        with closing(trace):
            yield _made(trace, TRACE_CHECK, lambda conn: iter(trace_differences(conn)))
    except LedgerError as error:
        yield Finding(TRACE_CHECK, (str(error),))


def check_current(conn: sqlite3.Connection) -> None:
    """Raises LedgerError for what is no ledger, or not one of this version's schema."""
    for check in (_is_ledger, _schema):
        for wrong in check(conn):
            raise LedgerError(f"it is no ledger that can be read here: {wrong}")
    if _missing(conn):
        raise LedgerError(_OLDER)


def _made(conn: sqlite3.Connection, name: str, check: Check) -> Finding:
    found: list[str] = []
    try:
        for text in check(conn):
            if len(found) == FOUND_MAX:
                found.append("and more")
                break
            found.append(text)
    except sqlite3.Error as error:
        found.append(_told(error))
    return Finding(name, tuple(found))


def _told(error: sqlite3.Error) -> str:
    if was_interrupted(error):
        raise KeyboardInterrupt from error
    return str(error)


def _applied(conn: sqlite3.Connection) -> set[str]:
    applied = conn.execute(
        f"SELECT name FROM {MIGRATIONS_TABLE} WHERE migration_set = 'pullcord'"  # noqa: S608
    )
    return {name for (name,) in applied}


def _missing(conn: sqlite3.Connection) -> bool:
    return any(name not in _applied(conn) for name, _ in STEPS)
