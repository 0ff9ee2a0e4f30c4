"""Ledgers as earlier releases left them, kept as SQL in `released/`, opened by the code of today.

What they hold must go on: rows, claims, cords, tokens, tickets. `released/make.py` made them.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ledger import chain, checks, deliveries, queries
from ledger.connection import DATABASE, open_file
from ledger.migrations import STEPS
from ledger.records import Bearer, Operator, Recovered
from ledger.sqlite import sqlite3
from ledger.states import HoldState
from policies.call import Identity
from policies.verdict import Level, Scope
from tests.ledger import findings
from tests.ledger.world import HEADERS, World

RELEASED = sorted(Path(__file__).with_name("released").glob("*.sql"))
FREE = Identity("r2", "acme", agent="biller")

# Each write as it was made, by its call: its key, what a repeat of it is told, and its state now.
WRITES = {
    "done": ("k-done", "replay", "done"),
    "done-derived": (None, "replay", "done"),
    "not-found": ("k-404", "replay", "done"),
    "limited": ("k-429", "allow", "done"),
    "failed": ("k-503", "replay", "unknown"),
    "conflict": ("k-409", "outcome_unknown", "unknown"),
    "reset": ("k-reset", "outcome_unknown", "unknown"),
    "not-sent": ("k-unsent", "allow", "not_sent"),
    "long": ("k-long", "done_but_not_stored", "done"),
    "pending": ("k-pending", "outcome_unknown", "unknown"),
}
OTHERS = {
    "again": "replayed",
    "reused": "refused",
    "read": "done",
    "read-broken": "unknown",
    "stranger": "refused",
    "read-pending": "unknown",
}


def number(path: Path) -> int:
    return int(path.stem)


@pytest.fixture(params=RELEASED, ids=lambda path: path.stem)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A ledger of that release, on the disk; its number is the folder's name."""
    path: Path = request.param
    data = tmp_path / path.stem
    data.mkdir()
    with closing(sqlite3.connect(data / DATABASE)) as conn:
        conn.executescript(f"BEGIN; {path.read_text('utf-8')} COMMIT;")
        conn.execute("PRAGMA journal_mode=WAL")
    return data


@pytest.fixture
def world(old: Path) -> Iterator[World]:
    made = World(old)
    made.wait(60)
    yield made
    made.store.close()


def rows(data: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(open_file(data / DATABASE)) as conn:
        return conn.execute(statement).fetchall()


def test_every_step_but_the_newest_has_its_ledger() -> None:
    """Before a step is added: `released/make.py`, with the code as it is without it."""
    steps = [int(name[:4]) for name, _ in STEPS]
    kept = [number(path) for path in RELEASED]
    assert kept in (steps, steps[:-1])
    for path in RELEASED:
        text = path.read_text("utf-8")
        made = [name for name, _ in STEPS if f"'pullcord','{name}'" in text]
        assert made == [name for name, _ in STEPS[: number(path)]], path.name


def test_no_row_of_the_record_is_changed_and_the_chain_holds_over_all(old: Path) -> None:
    before = rows(old, "SELECT * FROM event ORDER BY seq")
    names = [str(row[1]) for row in rows(old, "PRAGMA table_info(event)")]
    World(old).store.close()
    kept = [name for name in names if name != "hash"]
    after = rows(old, f"SELECT {', '.join(kept)} FROM event ORDER BY seq")
    assert after[: len(before)] == [
        tuple(value for name, value in zip(names, row, strict=True) if name != "hash")
        for row in before
    ]
    with closing(open_file(old / DATABASE)) as conn:
        previous, hashes = chain.GENESIS, 0
        for row in chain.stored(conn, 0, 2**62, 2**31):
            previous, hashes = chain.link(previous, row.columns), hashes + 1
            assert row.hash == previous, f"row {row.seq}"
        assert hashes == len(after) > len(before)
        if "hash" in names:  # that release made it itself: nothing of it may be made anew
            old_hashes = [row[names.index("hash")] for row in before]
            assert [row.hash for row in chain.stored(conn, 0, len(before), 2**31)] == old_hashes


def test_what_was_open_is_unknown_and_all_else_is_as_it_was(world: World, old: Path) -> None:
    with_worker = number(old) >= 2
    assert world.store.recovered == Recovered(3, 2) if with_worker else Recovered(2, 1)
    states = {row["id"]: row["state"] for row in world.calls(limit=100)}
    wanted = {name: state for name, (_, _, state) in WRITES.items()} | OTHERS
    if number(old) == 1:
        wanted["read-broken"] = "done"  # so it was told then
    assert {name: states[name] for name in wanted} == wanted
    said = number(old) >= 5  # from there on a person can say what became of it
    assert states["resolved-done"] == ("done" if said else "unknown")
    assert states["resolved-unsent"] == ("not_sent" if said else "unknown")
    done = world.shown("done")
    assert (done["run"], done["tenant"], done["agent"]) == ("r2", "acme", "biller")
    assert (done["tool"], done["status"], done["reason"]) == ("pay", 201, "allowed")
    assert done["at"] == "2026-11-18T11:06:40.000Z"
    world.check_memory()


def test_claims_still_protect(world: World) -> None:
    """A repeat under its key, and where that met a claim, of the body under another."""
    for name, (key, told, _) in WRITES.items():
        again = world.decided(world.ask(f"{name} again", key=key, body=name, claimant=FREE))
        action = again.verdict.action.value
        reason = action if action != "refuse" else again.verdict.reason.value
        earlier = name if told != "allow" else ""
        assert (name, reason, again.verdict.earlier_call) == (name, told, earlier)
        if told == "replay":
            assert again.answer is not None
            assert again.answer.body == f"answer to {name}".encode()
            assert again.answer.headers == HEADERS
        if told != "allow":
            ask = world.ask(f"{name} anew", key=f"new {name}", body=name, claimant=FREE)
            other = world.decided(ask).verdict
            assert (other.action, other.earlier_call) == (again.verdict.action, name)


def test_a_claim_ends_when_it_would_have(world: World) -> None:
    world.wait(700)
    told = {}
    for name in ("done", "done-derived", "reset"):
        key = WRITES[name][0]
        ask = world.ask(f"{name} again", key=key, body=name, claimant=FREE)
        told[name] = world.decided(ask).verdict.action.value
    assert told == {"done": "replay", "done-derived": "allow", "reset": "refuse"}
    world.wait(86_400)
    while world.store.reap():
        pass
    later = world.ask("next day", key="k-done", body="done", claimant=FREE)
    assert world.decided(later).verdict.action.value == "allow"
    later = world.ask("next day 2", key="k-reset", body="reset", claimant=FREE)
    assert world.decided(later).verdict.reason == "outcome_unknown"


def test_cords_still_stand(world: World, old: Path) -> None:
    def reason(run: str, tenant: str = "acme") -> str:
        who = Identity(run, tenant)
        ask = world.ask(f"in {run} {tenant}", body=run + tenant, claimant=who)
        return world.decided(ask).verdict.reason.value

    assert reason("r-halted") == "halted"
    assert reason("r-lifted") == "allowed"
    assert reason("r-any", "frozen") == "frozen"
    cords = {(Level.HALT, Scope.RUN, "r-halted"), (Level.FREEZE, Scope.TENANT, "frozen")}
    if number(old) >= 2:
        cords |= {(Level.HALT, Scope.TENANT, name) for name in ("narrow", "timed")}
        assert world.store.pulls[Level.HALT, Scope.TENANT, "narrow"].but_releases == ("v2",)
        world.wait(3_600)
        assert [pull.subject for pull in world.store.expire(world.now_us)] == ["timed"]
        cords -= {(Level.HALT, Scope.TENANT, "timed")}
    if number(old) >= 8:  # by a detector; one of their incidents was closed, which lifts nothing
        cords |= {(Level.HALT, Scope.RUN, run) for run in ("r-mended", "r-runs-away")}
    assert set(world.store.pulls) == cords


def test_tokens_still_say_who_calls(world: World, old: Path) -> None:
    def told(run: str, letter: str) -> tuple[str, Identity | None]:
        bearer = Bearer(run, letter.encode() * 32)
        made = world.decided(world.read(f"by {run}", claimant=bearer))
        return made.verdict.reason.value, made.identity

    reason, parent = told("run-1", "p")
    assert (reason, parent and parent.release, parent and parent.tools) == (
        "allowed",
        "v1",
        ("pay", "read"),
    )
    reason, child = told("run-1-child", "c")
    assert (reason, child and child.parent, child and child.tenant) == ("allowed", "run-1", "acme")
    assert told("run-gone", "g")[0] == "token_revoked"
    if number(old) >= 4:
        assert parent is not None
        assert parent.budgets == (("run-1", 5_000_000),)
        write = world.ask("w", claimant=Bearer("run-reads", b"r" * 32))
        assert world.decided(write).verdict.reason == "read_only"
    if number(old) >= 2:
        operator = world.store.operator(b"o" * 32)
        assert isinstance(operator, Operator)
        assert (operator.name, operator.role) == ("bob", "responder")
        assert not world.store.alert_is_new("fingerprint", "2026-11-22T00:00:00Z", world.now_us)


def test_tickets_still_wait(world: World, old: Path) -> None:
    found = {hold.ticket: hold.state for hold in world.store.holds(world.now_us)}
    states = {"waits": HoldState.WAITING, "approved": HoldState.APPROVED}
    assert found == (states if number(old) >= 4 else {})
    if found:
        shown = world.store.shown("waits", world.now_us)
        assert shown is not None
        assert shown[1] is not None
        assert shown[1].body == b'{"amount": 5}'


def test_every_view_can_be_read_and_every_check_is_clean(old: Path) -> None:
    World(old).store.close()
    with closing(open_file(old / DATABASE)) as conn:
        found = [each for each in checks.checked(conn) if not each.is_ok or each.skipped]
        assert found == []
        views = conn.execute("SELECT name FROM sqlite_schema WHERE type = 'view'").fetchall()
        assert {"calls", "effects", "runs"} <= {name for (name,) in views}
        for (name,) in views:
            told = conn.execute(f"SELECT * FROM {name}").fetchall()
            assert told or name == "incidents", name  # those of old had none
        assert len(list(queries.calls(conn, limit=100))) >= len(WRITES) + len(OTHERS)


def test_a_second_start_changes_nothing(old: Path) -> None:
    World(old).store.close()
    before = everything(old)
    World(old).store.close()
    assert everything(old) == before


def everything(data: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows but the one that each start writes to see that it can."""
    tables = [
        str(name) for (name,) in rows(data, "SELECT name FROM sqlite_schema WHERE type = 'table'")
    ]
    found = {name: rows(data, f"SELECT * FROM {name}") for name in tables if name != "durable"}
    return found | {"schema": rows(data, "SELECT * FROM sqlite_schema")}


def test_incidents_stay_open_and_are_gone_on_with(world: World, old: Path) -> None:
    """Where there were any: what goes on joins its own, and nobody is told again."""
    if number(old) < 8:
        assert findings.listed(world, closed=True) == []
        return
    (one,) = findings.listed(world)
    assert (one.name, one.rule, one.opened_by, one.owner) == (
        *("r-runs-away", "halt:run:r-runs-away"),
        *("", ""),
    )
    findings.told(world, run="r-runs-away", call="later")
    (same,) = findings.listed(world)
    assert (same.id, same.evidence, same.first_call) == (one.id, ("done", "later"), "done")
    with closing(open_file(old / DATABASE)) as conn:
        assert deliveries.due(conn, "pager", world.now_us) == []
    findings.told(world, run="r-mended", call="again")
    assert {each.name for each in findings.listed(world)} == {"r-runs-away", "r-mended"}
