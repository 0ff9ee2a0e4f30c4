"""One transaction of the store: what it has read, what it has changed and not yet written.

The store's memory (cords, open calls, workers, policies) changes only when the transaction has
committed, so that a rolled back one leaves no trace in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ledger import cords, steps, tokens
from ledger.chain import Head
from ledger.cords import CordName
from ledger.events import PROGRAM, Journal
from ledger.open_incidents import OpenIncidents
from ledger.recent import Recent
from ledger.records import Bearer, Claimant, Worker
from ledger.redact import redact
from ledger.sqlite import sqlite3
from ledger.states import EventType
from ledger.steps import Forgotten
from ledger.tally import Tally
from ledger.tokens import Resolved, Token
from ledger.watching import Found, Watch
from ledger.windows import COMMITTED_MAX, Committed, InFlight, Leases, Windows, packed
from policies.call import Identity
from policies.detectors.step import Step
from policies.policy import Policy
from policies.verdict import Pull, Pulls, Reason

TOKENS_MAX = 10_000  # remembered ones; beyond it they are read again
UNPRICED_MAX = 1_000  # models without a price that are told of; names are the agents' to make up


class Held(NamedTuple):
    """What an open call holds: the row of its claim, if any; the worker that holds the call; what
    it reserved and occupies; and what the detectors know of it."""

    claim: int | None
    worker: str
    leases: Leases = ()
    step: Step | None = None


OpenCalls = dict[str, Held]
"""The calls that were let through and have not ended."""


@dataclass(slots=True)
class Memory:
    """What the store knows without asking the database; equal to it between transactions."""

    pulls: Pulls = field(default_factory=dict)
    open_calls: OpenCalls = field(default_factory=dict)
    policies: dict[str, int] = field(default_factory=dict)
    tokens: Recent[bytes, Token] = field(default_factory=lambda: Recent(TOKENS_MAX))
    windows: Committed = field(default_factory=lambda: Committed(COMMITTED_MAX))
    in_flight: InFlight = field(default_factory=dict)
    unpriced: set[str] = field(default_factory=set)
    workers: Mapping[str, Worker] = field(default_factory=dict)
    head: Head = field(default_factory=Head)
    watch: Watch = field(default_factory=Watch)
    tally: Tally = field(default_factory=Tally)
    incidents: OpenIncidents = field(default_factory=OpenIncidents)


class Batch:
    """Made when a transaction starts; `write` before its commit, `remember` after it."""

    def __init__(self, conn: sqlite3.Connection, memory: Memory, redact_key: bytes) -> None:
        self.conn = conn
        self.journal = Journal(redact_key, memory.head)
        self.tally = Tally()
        self.key = redact_key
        self.windows = Windows(conn, memory.windows, memory.in_flight)
        self.pulls: Pulls = memory.pulls
        self.workers: Mapping[str, Worker] = memory.workers
        self.broken: Exception | None = None
        self.must_last = False  # holds what a power cut may not lose
        self.incidents = memory.incidents
        self._memory = memory
        self._opened: OpenCalls = {}
        self._closed: set[str] = set()
        self._grown: OpenCalls = {}
        self._unpriced: set[str] = set()
        self._policies: dict[str, int] = {}
        self._tokens_changed = False
        self._fed = False

    # Who calls

    def resolve(self, claimant: Claimant | object, now_us: int) -> Resolved:
        """Who that is. A kind of principal that is not known here is refused, whatever it is."""
        if claimant is None:
            return None, Reason.CREDENTIALS_REQUIRED
        if isinstance(claimant, Identity):
            return claimant, None
        if not isinstance(claimant, Bearer):
            return None, Reason.PRINCIPAL_UNKNOWN
        token = self._memory.tokens.get(claimant.token_hash)
        if token is None:
            token = tokens.by_hash(self.conn, claimant.token_hash)
            if token is not None and not self._tokens_changed:
                self._memory.tokens.turn(now_us)
                self._memory.tokens[claimant.token_hash] = token
        return tokens.checked(token, claimant, now_us)

    def tokens_changed(self) -> None:
        """What is remembered of tokens holds no more, whether this transaction commits or not."""
        self._tokens_changed = True
        self.must_last = True
        self._memory.tokens.clear()

    # Cords

    def pull(self, pull: Pull) -> bool:
        """Latch a cord, or make the one that stands tighter; False when nothing changes."""
        cord = cords.name(pull)
        tighter = cords.tightened(self.pulls.get(cord), pull)
        if tighter is not None:
            self.put_pull(tighter)
        return tighter is not None

    def trip(self, pull: Pull, call_id: str = "", incident: str = "") -> None:
        """A ceiling or a detector pulls its cord over a call; told once, when it is new."""
        if self.pull(pull):
            self.journal.moved(
                EventType.PULLED,
                pull,
                actor=pull.actor,
                reason=pull.reason,
                at_us=pull.at_us,
                call_id=call_id,
                incident=incident,
            )

    def put_pull(self, pull: Pull) -> None:
        cords.write(self.conn, pull)
        self.pulls = {**self.pulls, cords.name(pull): pull}
        self.must_last = True

    def release(self, cord: CordName) -> Pull | None:
        pull = self.pulls.get(cord)
        if pull is not None:
            cords.drop(self.conn, cord)
            self.pulls = {key: kept for key, kept in self.pulls.items() if key != cord}
            self.must_last = True
        return pull

    def end_trial(
        self, incident: str, reason: str, actor: str, at_us: int, *, shut: bool = False
    ) -> list[Pull]:
        """No run goes first for this incident any more: its cords are as they were before, or hold
        it `shut` until somebody has seen why. Those that changed."""
        ended = [
            replace(pull, trial=replace(pull.trial, shut=reason) if shut and pull.trial else None)
            for pull in cords.tried_for(self.pulls.values(), incident)
        ]
        for pull in ended:
            self.put_pull(pull)
            self.journal.moved(
                EventType.PULLED,
                pull,
                actor=actor,
                reason=f"nobody goes first any more: {reason}",
                at_us=at_us,
                incident=incident,
            )
        return ended

    def tell(self, kind: EventType, text: str, who: Identity | None, tool: str, at_us: int) -> None:
        """Something that stops nobody and that somebody should know. Names in it may be an
        agent's, so secrets among them are masked."""
        self.journal.noted(
            kind,
            at_us=at_us,
            actor=PROGRAM,
            detail=redact(text, self.key),
            run=who.run if who else "",
            tenant=who.tenant if who else "",
            tool=tool,
        )

    # Workers

    def put_worker(self, worker: Worker) -> None:
        self.conn.execute(
            "INSERT OR REPLACE INTO worker (id, pid, started, seen_us) VALUES (?, ?, ?, ?)",
            (worker.id, worker.pid, worker.started, worker.seen_us),
        )
        self.workers = {**self.workers, worker.id: worker}

    def drop_worker(self, worker_id: str) -> None:
        self.conn.execute("DELETE FROM worker WHERE id = ?", (worker_id,))
        self.workers = {key: kept for key, kept in self.workers.items() if key != worker_id}

    def held_by(self, worker_id: str) -> list[str]:
        """The open calls of a worker."""
        calls = {**self._memory.open_calls, **self._opened}
        return [
            call_id
            for call_id, held in calls.items()
            if held.worker == worker_id and call_id not in self._closed
        ]

    # Calls

    def opened(self, call_id: str, held: Held) -> None:
        self._opened[call_id] = held

    def held(self, call_id: str) -> Held:
        """What an open call holds now."""
        found = self._grown.get(call_id) or self._opened.get(call_id)
        return found or self._memory.open_calls[call_id]

    def grown(self, call_id: str, leases: Leases) -> None:
        """A running call reserved more."""
        self._grown[call_id] = self.held(call_id)._replace(leases=leases)

    def is_open(self, call_id: str) -> bool:
        if call_id in self._closed:
            return False
        return call_id in self._opened or call_id in self._memory.open_calls

    def closed(self, call_id: str) -> Held:
        """The call has ended; what it held."""
        held = self.held(call_id)
        self._closed.add(call_id)
        return held

    def is_news(self, model: str) -> bool:
        """Whether this is the first call to a model without a price since the store was opened."""
        known = self._memory.unpriced | self._unpriced
        if model in known or len(known) >= UNPRICED_MAX:
            return False
        self._unpriced.add(model)
        return True

    # Detectors

    def watched(self, policy: Policy, at_us: int) -> bool:
        """Have the detectors know what the record tells, before the next row is told of. False
        where it cannot be read back: then nothing may pass."""
        watch = self._memory.watch
        if watch.is_made(policy.detectors):
            return True
        self.journal.write(self.conn)
        # What is read of rows that may yet be rolled back has to be forgotten with them.
        self._fed = self._fed or self.journal.head != self._memory.head
        return watch.make(self.conn, policy.detectors, at_us)

    def fed(self, step: Step) -> list[Found]:
        """What the detectors that cannot wait find over a step of which the row has been told, or
        is told next."""
        if not steps.counts(step.run, step.tenant, step.tool):
            return []
        self._fed = True
        return self._memory.watch.feed(step)

    def forgotten(self, what: Forgotten) -> None:
        """The detectors begin anew with it; a row tells so."""
        self._fed = True
        self._memory.watch.forget(what)

    # The policy

    def policy_id(self, policy: Policy, at_us: int) -> int:
        """The row of a policy's text, made when it is new."""
        known = self._memory.policies.get(policy.digest) or self._policies.get(policy.digest)
        if known is None:
            known = self.store_policy(policy.digest, policy.text, policy.source, at_us)
        return known

    def store_policy(self, digest: str, text: str, source: str, at_us: int) -> int:
        self.conn.execute(
            "INSERT OR IGNORE INTO policy (digest, source, at_us, text) VALUES (?, ?, ?, ?)",
            (digest, source, at_us, text),
        )
        (row_id,) = self.conn.execute(
            "SELECT id FROM policy WHERE digest = ?", (digest,)
        ).fetchone()
        self._policies[digest] = int(row_id)
        return int(row_id)

    # The end of the transaction

    def write(self) -> None:
        self.windows.write()
        self.journal.write(self.conn)
        # A call that was opened and closed in here never shows.
        opened = [
            (call_id, held.claim, held.worker, packed(held.leases))
            for call_id, held in {**self._opened, **self._grown}.items()
            if call_id not in self._closed
        ]
        closed = [(call_id,) for call_id in self._closed if call_id not in self._opened]
        if opened:
            self.conn.executemany(
                "INSERT OR REPLACE INTO open_call (call_id, claim, worker, leases) "
                "VALUES (?, ?, ?, ?)",
                opened,
            )
        if closed:
            self.conn.executemany("DELETE FROM open_call WHERE call_id = ?", closed)

    def forget(self) -> None:
        """The transaction has failed."""
        self.incidents.clear()
        for call_id in self._closed:
            held = self._memory.open_calls.get(call_id)
            if held is not None and held.step is not None:
                held.step.reopen()
        if self._fed:
            self._memory.watch.lost()

    def remember(self) -> None:
        memory = self._memory
        memory.pulls = self.pulls
        memory.workers = self.workers
        memory.head = self.journal.head
        memory.tally.add(self.tally)
        memory.open_calls |= self._opened
        memory.open_calls |= self._grown
        for call_id in self._closed:
            del memory.open_calls[call_id]
        memory.policies |= self._policies
        memory.unpriced |= self._unpriced
        self.windows.remember()
