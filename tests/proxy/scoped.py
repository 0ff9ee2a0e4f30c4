"""A ledger with an incident in it: trees of runs that read, write and ask a model, some calls
stopped, some unknown, for two tenants, thrown by dice with a fixed seed.
"""

import random
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from ledger.states import CallState
from ledger.tokens import Grant
from policies.call import Argument, Identity
from policies.load import load
from policies.verdict import Level, Pull, Scope
from tests.ledger.made_incidents import an_incident
from tests.ledger.world import World

POLICY = """version: 1
unlisted: allow
tools:
  pay:
    match: {host: api.example, method: POST, path: /v1/charges}
    value: {from: request.amount, scale: 0.01, currency: request.currency}
    undo: {tool: back, path: "/v1/refunds"}
  wire: {match: {host: wire.example}, hold: true}
  mail: {match: {host: mail.example}, undo: impossible}
  note: {match: {host: note.example}, value: {from: request.n, currency: points}}
  back: {match: {host: api.example, method: POST, path: /v1/refunds}}
"""
RUNS = {
    "r1": Identity("r1", "acme", agent="biller", release="v7"),
    "kid": Identity("kid", "acme", ("r1",), "biller", "v7"),
    "grandkid": Identity("grandkid", "acme", ("kid", "r1"), "helper", "v8"),
    "r2": Identity("r2", "acme", agent="biller", release="v8"),
    "r3": Identity("r3", "bolt", release="v7"),
}
INCIDENTS: dict[str, dict[str, Any]] = {
    "a1": {"kind": "run", "name": "r1", "tenant": "acme"},
    "a2": {"kind": "tool", "name": "pay", "tenant": "acme"},
    "a3": {"kind": "release", "name": "v7", "tenant": ""},
    "a4": {"kind": "tenant", "name": "acme", "tenant": "acme"},
    "a5": {"kind": "global", "name": "all tenants", "tenant": ""},
    "a6": {"kind": "run", "name": "nobody", "tenant": "acme"},
}


def a_busy_ledger(data: Path, calls: int = 240, seed: int = 7) -> World:
    """Closed by whoever asked for it. A cord is pulled over the run `kid` for the incident `a1`."""
    world, dice = World(data), random.Random(seed)
    policy = load(POLICY)
    free = dict.fromkeys(policy.ceilings_of, ())
    world.policy = replace(policy, ceilings=(), ceilings_of=free, windows={})
    for who in RUNS.values():
        grant = Grant(who.run, who.tenant if not who.parent else "", parent=who.parent)
        world.store.mint(
            grant, who.run.encode(), actor="ann", at_us=world.now_us, policy=world.policy
        )
    for number in range(calls):
        if number == calls // 3:
            _opened(world)
        if number == calls // 2:
            pull = Pull(Level.HALT, Scope.RUN, "kid", "round and round", "detector:loop", 0)
            with world.store.transaction(durable=True):
                pull = replace(pull, at_us=world.now_us)
                world.store._open_batch().trip(pull, incident="a1")
        if number == calls * 3 // 4:
            world.store.release(
                Level.HALT, Scope.RUN, "kid", reason="mended", actor="bob", at_us=world.now_us
            )
        _call(world, dice, f"c{number:04}")
        world.wait(dice.choice((0, 1, 7)))
    return world


def _opened(world: World) -> None:
    for name, about in INCIDENTS.items():
        times = {"opened_us": world.now_us, "updated_us": world.now_us}
        an_incident(world.conn, name, **times, first_call="c0040", **about)


def _call(world: World, dice: random.Random, name: str) -> None:
    who = dice.choice([*RUNS.values(), None])
    effect = dice.choice(("write", "write", "write", "read", "model"))
    tool = dice.choice(("pay", "pay", "mail", "note", "wire", "unlisted"))
    body = f"{tool} {dice.randrange(calls_alike(tool))}"
    host = f"{'api' if tool == 'pay' else tool}.example"
    ask = world.ask(
        name, effect=effect, tool=tool, body=body, claimant=who, host=host, may_wait=True
    )
    call = replace(ask.call, arguments=tuple(_arguments(dice, tool).items()))
    ask = replace(ask, call=call, request=replace(ask.request, body=b""))
    world.asks[name] = ask
    decision = world.decided(ask)
    if decision.verdict.action == "allow" and dice.random() < 0.95:
        status = dice.choice((200, 200, 200, None, 404))
        sent, cost = dice.random() < 0.9, dice.choice((None, 0, 1_237))
        world.settle(name, status=status, sent=sent, cost_microusd=cost)
        if sent and status is None and dice.random() < 0.3:
            state = dice.choice((CallState.DONE, CallState.NOT_SENT))
            world.store.resolve(name, state, reason="asked", actor="ann", at_us=world.now_us)


def calls_alike(tool: str) -> int:
    """Of how many different bodies a tool is sent: some are sent again, and replayed."""
    return 12 if tool == "pay" else 1_000


def _arguments(dice: random.Random, tool: str) -> dict[str, tuple[Argument, ...]]:
    if tool == "note":
        return {"n": (Decimal("0.1"),)}
    if tool != "pay" or dice.random() < 0.2:
        return {}
    currency = dice.choice((("eur",), ("usd",), ("usd",), ()))
    return {"amount": (dice.choice((100, 1_999, Decimal("0.5"))),), "currency": currency}
