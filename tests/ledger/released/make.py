"""Makes a small ledger and prints it as SQL: `python make.py [STEP] > 000N.sql`

To be run in a checkout of the release whose schema is to be kept, once, with that checkout on
PYTHONPATH; with STEP (`0002`) only the steps up to it are made. What is printed is never edited
and never made again: it is what that release has left on people's disks.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ledger import migrations
from ledger.records import Bearer
from ledger.sqlite import sqlite3
from ledger.states import CallState, ClaimAfter
from ledger.tokens import Grant
from policies.call import Identity
from policies.verdict import Level, Pull, Scope
from tests.ledger import world as worlds
from tests.ledger.world import World

EVE = {"actor": "eve"}
FREE = Identity("r2", "acme", agent="biller")


def writes(world: World) -> None:
    """One in every state, with its claim, and what was told of it again."""
    for name, key, end in (
        ("done", "k-done", {"status": 201}),
        ("done-derived", None, {}),
        ("not-found", "k-404", {"status": 404}),
        ("limited", "k-429", {"status": 429}),
        ("failed", "k-503", {"status": 503}),
        ("conflict", "k-409", {"status": 409}),
        ("reset", "k-reset", {"status": None, "complete": False}),
        ("not-sent", "k-unsent", {"status": None, "sent": False, "complete": False}),
        ("resolved-done", "k-r-done", {"status": None, "complete": False}),
        ("resolved-unsent", "k-r-unsent", {"status": None, "complete": False}),
    ):
        world.decided(world.ask(name, key=key, body=name, claimant=FREE))
        world.settle(name, **end)
        world.wait(1)
    world.decided(world.ask("long", key="k-long", body="long", claimant=FREE))
    world.store.settle(world.outcome("long", CallState.DONE, ClaimAfter.DONE))
    world.decided(world.ask("again", key="k-done", body="done", claimant=FREE))
    if len(migrations.STEPS) >= 10:  # a key that stands for the write of another
        world.decided(world.ask("anew", key="k-anew", body="done", claimant=FREE))
    world.decided(world.ask("reused", key="k-done", body="other", claimant=FREE))
    world.decided(world.read("read", claimant=FREE))
    world.settle("read")
    world.decided(world.read("read-broken", claimant=FREE))
    world.settle("read-broken", complete=False)
    world.decided(world.read("stranger", claimant=None))
    resolve = getattr(world.store, "resolve", None)
    if resolve and len(migrations.STEPS) >= 5:
        told = {"reason": "looked", "at_us": world.now_us, **EVE}
        resolve("resolved-done", CallState.DONE, **told)
        resolve("resolved-unsent", CallState.NOT_SENT, **told)


def tokens(world: World) -> None:
    """Of a run, of its child, and one that was revoked."""
    store, told = world.store, {"at_us": world.now_us, **EVE}
    parent = Grant("run-1", tenant="acme", agent="biller", release="v1", tools=("pay", "read"))
    bounded = {"budget_microusd": 5_000_000} if hasattr(parent, "budget_microusd") else {}
    store.mint(replace(parent, **bounded), b"p" * 32, **told)  # type: ignore[arg-type]
    child = Grant("run-1-child", parent="run-1")
    by: dict[str, Any] = {"by": Bearer("run-1", b"p" * 32), **told}
    if "policy" in signature(store.mint).parameters:
        by["policy"] = world.policy
    store.mint(child, b"c" * 32, **by)
    store.mint(Grant("run-gone", tenant="acme"), b"g" * 32, **told)  # type: ignore[arg-type]
    store.revoke("run-gone", reason="left", **told)  # type: ignore[arg-type]
    if hasattr(parent, "read_only"):
        reader = Grant("run-reads", tenant="acme", read_only=True)
        store.mint(reader, b"r" * 32, **told)  # type: ignore[arg-type]


def cords(world: World) -> None:
    """One that stands, one that was lifted; and, where they are known, one that lets a release
    pass and one that ends by time."""
    store, told = world.store, {"reason": "mended", "at_us": world.now_us, **EVE}
    store.pull(Pull(Level.HALT, Scope.RUN, "r-halted", "looks wrong", "ann", world.now_us))
    store.pull(Pull(Level.FREEZE, Scope.TENANT, "frozen", "looks wrong", "ann", world.now_us))
    store.pull(Pull(Level.HALT, Scope.RUN, "r-lifted", "looked wrong", "ann", world.now_us))
    store.release(Level.HALT, Scope.RUN, "r-lifted", **told)  # type: ignore[arg-type]
    if len(migrations.STEPS) >= 2:
        pull = Pull(Level.HALT, Scope.TENANT, "narrow", "looks wrong", "ann", world.now_us)
        store.pull(pull)
        how: dict[str, Any] = {"releases": ("v2",), **told}
        store.release(Level.HALT, Scope.TENANT, "narrow", **how)
        store.pull(replace(pull, subject="timed", until_us=world.now_us + 3_600_000_000))
        store.enroll("bob", "responder", b"o" * 32, actor="eve", at_us=world.now_us)
        store.alert_is_new("fingerprint", "2026-11-22T00:00:00Z", world.now_us)


def held(world: World) -> None:
    """A call that waits for a person, and one that a person approved."""
    from ledger.records import Arguments
    from ledger.states import HoldState
    from policies.ceilings import Count, Then

    policy = world.policy
    world.policy = worlds.a_policy(
        worlds.a_ceiling(0, count=Count.WRITES, then=Then.HOLD), digest="d2"
    )
    shown = Arguments("POST", "https://api.example/v1/charges", (), b'{"amount": 5}')
    for name in ("waits", "approved"):
        ask = world.ask(name, body=name, claimant=FREE)
        first = world.decided(ask)
        bound = replace(ask, bound_to=ask.call.fingerprint)
        world.store.hold(bound, shown, first.verdict.rule, 3_600)
    told = {"actor": "ann", "reason": "fine", "at_us": world.now_us}
    world.store.decide_hold("approved", HoldState.APPROVED, **told)  # type: ignore[arg-type]
    world.policy = policy


def incidents(world: World) -> None:
    """One that is open with its cord and was told to a channel, one that a person closed."""
    from ledger.deliveries import Delivery, Event
    from tests.ledger import findings

    for run in ("r-mended", "r-runs-away"):
        findings.told(world, run=run, call="done")
    opened, mended = findings.listed(world)
    if mended.name != "r-mended":
        opened, mended = mended, opened
    findings.close(world, mended)
    row = Delivery(opened.id, "pager", Event.TRIP, world.now_us, True, world.now_us, 1)
    world.store.delivered(row)


def left_open(world: World) -> None:
    """What a crash leaves: a write and a read in flight, here and in an engine."""
    world.decided(world.ask("pending", key="k-pending", body="pending", claimant=FREE))
    world.decided(world.read("read-pending", claimant=FREE))
    if hasattr(world.store, "register"):
        world.store.register(worlds.a_worker("w1"))
        ask = world.ask("of-worker", key="k-worker", body="of-worker", claimant=FREE, worker="w1")
        world.decided(ask)


def dumped(conn: sqlite3.Connection) -> Iterator[str]:
    """Tables with their rows, then the numbers that they have come to, then the rest."""
    schema = conn.execute(
        "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL "
        "ORDER BY type = 'table' DESC, name = 'sqlite_sequence', rowid"
    ).fetchall()
    for kind, name, sql in schema:
        yield f"{sql};" if name != "sqlite_sequence" else "DELETE FROM sqlite_sequence;"
        if kind == "table":
            columns = [row[1] for row in conn.execute(f"PRAGMA table_info({name})")]
            values = " || ',' || ".join(f"quote({column})" for column in columns)
            rows = f"SELECT 'INSERT INTO {name} VALUES (' || {values} || ');' FROM {name}"
            yield from (row for (row,) in conn.execute(rows))


def main() -> None:
    last = sys.argv[1] if len(sys.argv) > 1 else "9999"
    migrations.STEPS = tuple(step for step in migrations.STEPS if step[0][:4] <= last)
    with TemporaryDirectory() as folder:
        world = World(Path(folder))
        world.store.record_policy("d1", "# d1", "policy.yaml", world.now_us)
        writes(world)
        tokens(world)
        cords(world)
        if len(migrations.STEPS) >= 4:
            held(world)
        if len(migrations.STEPS) >= 8:
            incidents(world)
        left_open(world)
        for line in dumped(sqlite3.connect(Path(folder) / "ledger.db")):
            print(line)


if __name__ == "__main__":
    main()
