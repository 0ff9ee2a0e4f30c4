"""A store on a real file, a clock that stands still until moved, and short ways to call."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ledger import queries
from ledger.connection import open_reader
from ledger.filters import parse
from ledger.records import Answer, Ask, Claimant, Decision, Outcome, Worker
from ledger.recovery import load
from ledger.sqlite import sqlite3
from ledger.states import CallState, ClaimAfter, outcome_of
from ledger.store import Store
from policies.call import NOTHING, Effect, Identity, Request, ToolCall, Worth
from policies.ceilings import Ceiling, Count, Per, Then
from policies.decide import decide
from policies.policy import KeyRule, Policy, Tool
from policies.verdict import Level, Pull, Scope

VAULT_KEY = b"0123456789abcdef0123456789abcdef"
START_US = 1_795_000_000_000_000
R1 = Identity("r1", "acme", agent="biller", release="2026-11-20.3")
HEADERS = (("content-type", "application/json"), ("x-odd", "caf\udce9"))


def a_ceiling(
    at_most: int,
    per: Per = Per.RUN,
    count: Count = Count.CALLS,
    within_seconds: int | None = 60,
    then: Then = Then.THROTTLE,
    **rest: Any,
) -> Ceiling:
    within_us = None if within_seconds is None else within_seconds * 1_000_000
    return Ceiling(f"{per}-{count}-{at_most}", per, count, at_most, within_us, then, **rest)


def a_policy(*ceilings: Ceiling, digest: str = "d1", **key_rule: Any) -> Policy:
    """A policy with the tools `pay`, `mail` and `read`; all ceilings bind all of them."""
    rule = KeyRule(**key_rule)
    tools = {name: Tool(name, key=rule) for name in ("pay", "mail", "read")}
    return Policy(
        digest=digest,
        source="policy.yaml",
        text=f"# {digest}",
        unlisted="refuse",
        tools=tools,
        by_host={},
        by_suffix={},
        pulls={},
        tenants={},
        ceilings=ceilings,
        ceilings_of=dict.fromkeys(tools, ceilings),
        windows={one.window or one.id: (one,) for one in ceilings},
    )


def a_pull(scope: Scope = Scope.RUN, subject: str = "r1", level: Level = Level.HALT) -> Pull:
    return Pull(level, scope, subject, "looks wrong", "ann", START_US)


def a_worker(worker_id: str = "w1", pid: int = 4711, started: str = "100") -> Worker:
    return Worker(worker_id, pid, started, START_US)


class Abandoned(Exception):
    pass


class World:
    def __init__(self, data: Path) -> None:
        self.data = data
        self.now_us = START_US
        self.policy = a_policy()
        self.judge: Any = decide
        self.asks: dict[str, Ask] = {}
        self.store = self.opened()

    def opened(self, **rest: Any) -> Store:
        return Store.open(self.data, VAULT_KEY, lambda: self.now_us, **rest)

    def reopen(self, **rest: Any) -> None:
        self.store.close()
        self.store = self.opened(**rest)

    @property
    def conn(self) -> sqlite3.Connection:
        return self.store._conn

    def ask(
        self,
        name: str = "a",
        *,
        effect: str = "write",
        tool: str = "pay",
        body: str = "x",
        key: str | None = None,
        claimant: Claimant = R1,
        target: str = "/v1/charges",
        may_wait: bool = False,
        worker: str = "",
        host: str = "api.example",
        worth: Worth = NOTHING,
    ) -> Ask:
        """An ask under a name, which is also its call id. Equal bodies have equal fingerprints."""
        method = "GET" if effect == "read" else "POST"
        request = Request(method, "https", host, 443, target)
        fingerprint = hashlib.sha256(body.encode()).digest()
        operation = f"{method} /v1/charges"
        call = ToolCall(tool, Effect(effect), operation, fingerprint, key, host=host, worth=worth)
        self.asks[name] = Ask(name, self.now_us, claimant, request, call, may_wait, worker)
        return self.asks[name]

    def read(self, name: str = "a", **rest: Any) -> Ask:
        return self.ask(name, effect="read", tool="read", **rest)

    def admit(self, *asks: Ask) -> list[Decision]:
        """All in one durable transaction."""
        with self.store.transaction(durable=True):
            return [self.store.admit(ask, self.policy, self.judge) for ask in asks]

    def decided(self, ask: Ask) -> Decision:
        """What the detectors that may wait make of it is done, too, as after each transaction."""
        (decision,) = self.admit(ask)
        self.store.follow()
        return decision

    def end(self, outcome: Outcome) -> bool:
        """Settled under the policy; and the same."""
        settled = self.store.settle(outcome, self.policy)
        self.store.follow()
        return settled

    def read_fast(self, name: str) -> Decision:
        """A read in a transaction that does not wait for the disk."""
        with self.store.transaction(durable=False):
            return self.store.admit(self.read(name), self.policy, self.judge)

    @contextmanager
    def failing(self, *, durable: bool = True) -> Iterator[None]:
        """A transaction that fails after all its work."""
        try:
            with self.store.transaction(durable=durable):
                yield
                raise Abandoned
        except Abandoned:
            pass

    def settle(
        self,
        name: str = "a",
        *,
        status: int | None = 200,
        sent: bool = True,
        complete: bool = True,
        body: bytes | None = None,
        reason: str = "",
        **metered: int | None,
    ) -> bool:
        """End a call as the gate would; the answer's body names the call."""
        call = self.asks[name].call
        state, after = outcome_of(
            call.effect,
            sent=sent,
            status=status,
            complete=complete,
            forwarded_key=call.key is not None,
            unauthorized=self.policy.tool(call.tool).key.unauthorized,
        )
        body = f"answer to {name}".encode() if body is None else body
        answer = None
        if call.effect is Effect.WRITE and status is not None and complete:
            answer = Answer(status, HEADERS, body)
        told = {"status": status, "answer": answer, "reason": reason, **metered}
        return self.store.settle(self.outcome(name, state, after, **told))

    def outcome(
        self,
        name: str,
        state: CallState = CallState.DONE,
        after: ClaimAfter = ClaimAfter.DONE,
        **rest: Any,
    ) -> Outcome:
        rest = {
            "status": 200,
            "latency_us": 1500,
            "response_digest": b"r" * 32,
            "response_bytes": 12,
            "answer": None,
            **rest,
        }
        return Outcome(name, self.now_us, state, after, **rest)

    def wait(self, seconds: float) -> None:
        self.now_us += round(seconds * 1_000_000)

    def check_memory(self) -> None:
        """What the store remembers is what its database holds."""
        memory, loaded = self.store._memory, load(self.conn)
        assert dict(memory.pulls) == dict(loaded.pulls)
        assert dict(memory.workers) == dict(loaded.workers)
        assert memory.open_calls == loaded.open_calls
        assert memory.in_flight == loaded.in_flight

    # What a second connection sees

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        reader = open_reader(self.data)
        try:
            return reader.execute(statement, values).fetchall()
        finally:
            reader.close()

    def calls(self, terms: str | Sequence[str] = "", **rest: Any) -> list[queries.Row]:
        reader = open_reader(self.data)
        try:
            return list(queries.calls(reader, parse(terms, self.now_us), **rest))
        finally:
            reader.close()

    def shown(self, name: str = "a") -> queries.Row:
        """The row of one call."""
        (row,) = self.calls(f"id:{name}")
        return row
