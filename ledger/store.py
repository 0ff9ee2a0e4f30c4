"""The store: the one writer of the record. Admission and settlement in shared transactions.

One thread owns it. What it writes reaches the disk when `transaction` returns; whatever fails in
between is rolled back, in the database and in memory alike, and raises LedgerUnavailable. The
rules themselves come in as `judge`; this file decides nothing.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from sqlite_utils.db import Database

from ledger import claims, tokens, windows
from ledger.admission import Admission, Judge
from ledger.batch import Batch, Memory
from ledger.connection import Writer
from ledger.errors import LedgerBusy, LedgerError, LedgerUnavailable, unavailable
from ledger.migrations import migrate
from ledger.records import (
    Answer,
    Ask,
    Bearer,
    Claimant,
    Decision,
    Outcome,
    OwnState,
    Recovered,
)
from ledger.recovery import load, recover
from ledger.sqlite import sqlite3
from ledger.states import EventType, may_be_replayed
from ledger.tokens import Grant, Token
from ledger.vault import Vault
from policies import ceilings
from policies.call import Facts, Identity, ToolCall
from policies.ceilings import Count
from policies.policy import Policy, subjects
from policies.verdict import Action, Level, Pull, Pulls, Reason, Scope, Verdict

# The words that come with the store, so that the gate has one place to take them from.
__all__ = [
    "Answer",
    "Ask",
    "Bearer",
    "Claimant",
    "Decision",
    "Grant",
    "LedgerBusy",
    "LedgerError",
    "LedgerUnavailable",
    "Outcome",
    "OwnState",
    "Recovered",
    "Store",
    "Token",
]


class Store:
    """Made by `open`. Every change happens inside `transaction`, or in one of its own.

    LedgerError (but not LedgerUnavailable) is raised before anything is written: the transaction
    around it may go on.
    """

    def __init__(self, writer: Writer, vault_key: bytes, clock: Callable[[], int]) -> None:
        self._writer = writer
        self._conn = writer.conn
        self._clock = clock
        self._vault = Vault(vault_key)
        self._redact_key = hmac.digest(vault_key, b"pullcord redaction marks", hashlib.sha256)
        self._memory = Memory()
        self._batch: Batch | None = None
        self._reaped_to = ("", "")
        self.recovered = Recovered()

    @classmethod
    def open(
        cls,
        data: Path,
        vault_key: bytes,
        clock: Callable[[], int],
        busy_seconds: float = 5.0,
    ) -> Self:
        """Take the lock, bring the schema up to date, settle what a crash left open.

        `clock` tells UTC microseconds. `busy_seconds` is how long another program's lock is
        waited for. Raises LedgerBusy, LedgerUnavailable, and LedgerError for a newer schema.
        """
        writer = Writer(data, busy_seconds)
        try:
            store = cls(writer, vault_key, clock)
            try:
                migrate(Database(writer.conn))
                store._memory = load(writer.conn)
            except sqlite3.Error as error:
                raise unavailable(error) from error
            with store.transaction(durable=True):
                store.recovered = recover(store._open_batch(), store._memory, clock())
            writer.watch_files()
        except BaseException:
            writer.close()
            raise
        return store

    def close(self) -> None:
        self._writer.close()

    @property
    def pulls(self) -> Pulls:
        """The stored cords, as committed. A new mapping after each change; safe in any thread."""
        return self._memory.pulls

    # Transactions

    @contextmanager
    def transaction(self, durable: bool, *, patient: bool = True) -> Iterator[None]:
        """BEGIN IMMEDIATE to COMMIT. A durable commit is on the disk when this returns.

        One that is not patient fails at once, as locked, while another program holds a lock.

        One that is not is in the operating system's hands (a crash of ours loses nothing), unless
        it holds a claim, a cord or a token: then it is made durable all the same.
        """
        if self._batch is not None:
            raise LedgerError("a transaction is open already")
        try:
            self._writer.begin(durable=durable, patient=patient)
        except sqlite3.Error as error:
            raise self._writer.failed(error) from error
        batch = self._batch = Batch(self._conn, self._memory, self._redact_key)
        try:
            yield
            if batch.broken is not None:
                raise batch.broken
            batch.write()
            self._writer.commit()
        except sqlite3.Error as error:
            raise self._writer.failed(error) from error
        else:
            batch.remember()
        finally:
            self._batch = None
            self._writer.rollback()
        if batch.must_last and not durable:
            self.prove()

    def prove(self, *, patient: bool = True) -> None:
        """One durable commit, which takes all earlier ones to the disk with it."""
        with self.transaction(durable=True, patient=patient):
            self._conn.execute("UPDATE durable SET count = count + 1")

    @contextmanager
    def _joined(self) -> Iterator[Batch]:
        """The open transaction, or a durable one around this act alone."""
        if self._batch is None:
            with self.transaction(durable=True):
                yield self._open_batch()
            return
        batch = self._open_batch()
        try:
            yield batch
        except LedgerError:
            raise  # nothing was written
        except Exception as error:
            batch.broken = error
            raise

    def _open_batch(self) -> Batch:
        """The open transaction. After a failure in it every further step fails too."""
        if self._batch is None:
            raise LedgerError("no transaction is open")
        if self._batch.broken is not None:
            raise self._batch.broken
        return self._batch

    # Calls

    def admit(self, ask: Ask, policy: Policy, judge: Judge) -> Decision:
        """Judge one call and write what follows. Only inside `transaction`.

        If anything fails after the verdict, the whole transaction does, also when the caller
        catches what is raised here.
        """
        batch = self._open_batch()
        try:
            return Admission(batch, self._vault, ask, policy).decide(judge)
        except Exception as error:
            batch.broken = error
            raise

    def count(
        self, identity: Identity, call: ToolCall, policy: Policy, judge: Judge, now_us: int
    ) -> Verdict:
        """One more message of a call that was admitted: judged and charged like a call of its own.

        It leaves no row and takes no claim.
        """
        with self._joined() as batch:
            drawn = batch.windows.drawn(policy, call, identity)
            facts = Facts(now_us, identity, None, batch.pulls, None, drawn)
            verdict = judge(policy, call, facts)
            if verdict.action is Action.ALLOW:
                batch.windows.charge(drawn, now_us, frozenset(Count))
            elif verdict.pull is not None:
                self.pull(verdict.pull)
            return verdict

    def settle(self, outcome: Outcome) -> bool:
        """Record how an admitted call ended; False when it has ended already or never began."""
        with self._joined() as batch:
            if not batch.is_open(outcome.call_id):
                return False
            batch.journal.ended(outcome)
            claim = batch.closed(outcome.call_id)
            if claim is not None:
                self._settle_claim(claim, outcome)
                batch.must_last = True
            return True

    def _settle_claim(self, claim: int, outcome: Outcome) -> None:
        answer, after, answered = outcome.answer, outcome.claim_after, False
        if answer is not None and may_be_replayed(after, answer.status):
            answered = self._vault.put(self._conn, claim, outcome.call_id, answer)
        claims.settle(self._conn, claim, outcome.at_us, after, answered=answered)

    def refused(self, ask: Ask) -> Reason | None:
        """Why this claimant may not call at all, whatever it asks; nothing is recorded."""
        with self._joined() as batch:
            return batch.resolve(ask.claimant, ask.at_us)[1]

    def own_state(self, ask: Ask, policy: Policy) -> OwnState | Reason:
        """What the claimant may know about itself, or why it may know nothing."""
        with self._joined() as batch:
            identity, refused = batch.resolve(ask.claimant, ask.at_us)
            if identity is None or refused is not None:
                return refused or Reason.CREDENTIALS_REQUIRED
            over = {(scope, subject) for scope, subject in subjects(identity, "") if subject}
            over.add((Scope.GLOBAL, ""))
            pulls = [*policy.pulls.values(), *batch.pulls.values()]
            own = {Scope.RUN: identity.run, Scope.TENANT: identity.tenant}
            return OwnState(
                identity,
                tuple(pull for pull in pulls if (pull.scope, pull.subject) in over),
                tuple(
                    ceilings.limit(
                        ceiling, batch.windows.window(ceiling, own[ceiling.per]), ask.at_us
                    )
                    for ceiling in policy.ceilings
                    if ceiling.per in own
                ),
            )

    # Cords

    def pull(self, pull: Pull) -> bool:
        """Latch a cord. False, and no new row, when it is pulled already."""
        with self._joined() as batch:
            new = batch.pull(pull)
            if new:
                batch.journal.moved(
                    EventType.PULLED,
                    pull,
                    actor=pull.actor,
                    reason=pull.reason,
                    at_us=pull.at_us,
                )
            return new

    def release(
        self, level: Level, scope: Scope, subject: str, *, reason: str, actor: str, at_us: int
    ) -> Pull | None:
        """Lift a cord; the cord that was lifted, or None. It takes a person and a reason."""
        if not reason.strip() or not actor.strip():
            raise LedgerError("a cord is released by a named person with a reason")
        with self._joined() as batch:
            pull = batch.release(level, scope, subject)
            if pull is not None:
                batch.journal.moved(
                    EventType.RELEASED, pull, actor=actor, reason=reason, at_us=at_us
                )
            return pull

    # Tokens and policies

    def mint(
        self, grant: Grant, token_hash: bytes, *, actor: str, at_us: int, by: Bearer | None = None
    ) -> Token:
        """Record a token by its hash. `by` is the run's own token when a run mints for a child."""
        with self._joined() as batch:
            token = tokens.mint(self._conn, grant, token_hash, actor=actor, at_us=at_us, by=by)
            self._noted(batch, EventType.MINTED, token, actor=actor, at_us=at_us)
            return token

    def revoke(self, name: str, *, actor: str, at_us: int, reason: str = "") -> list[Token]:
        """Revoke a token by id, or a run's by its name, and what they minted. Those that went."""
        with self._joined() as batch:
            gone = tokens.revoke(self._conn, name, at_us)
            for token in gone:
                self._noted(
                    batch, EventType.REVOKED, token, actor=actor, at_us=at_us, reason=reason
                )
            return gone

    def tokens(self) -> list[Token]:
        with self._joined():
            return tokens.listed(self._conn)

    def _noted(
        self,
        batch: Batch,
        kind: EventType,
        token: Token,
        *,
        actor: str,
        at_us: int,
        reason: str = "",
    ) -> None:
        who = token.identity
        detail = f"token {token.id}" + (f": {reason}" if reason else "")
        batch.journal.noted(
            kind, at_us=at_us, actor=actor, detail=detail, run=who.run, tenant=who.tenant
        )
        batch.tokens_changed()

    def record_policy(self, digest: str, text: str, source: str, at_us: int) -> None:
        """Keep the text of a policy and note that it is in force from now on."""
        with self._joined() as batch:
            batch.store_policy(digest, text, source, at_us)
            batch.journal.noted(
                EventType.POLICY, at_us=at_us, actor=f"policy:{digest[:12]}", detail=source
            )
            batch.must_last = True

    # Housekeeping

    def probe(self) -> None:
        """Whether a call could be recorded now. Waits for nothing. Raises LedgerUnavailable."""
        self._writer.check_room()
        self.prove(patient=False)

    def checkpoint(self) -> None:
        """Take the write-ahead log over into the database. Raises LedgerUnavailable."""
        try:
            self._writer.checkpoint()
        except sqlite3.Error as error:
            raise self._writer.failed(error) from error

    def reap(self, limit: int = 100) -> int:
        """Drop up to `limit` expired claims with their answers, and empty windows. How many."""
        at_us = self._clock()
        with self._joined():
            count = claims.reap(self._conn, at_us, limit)
            self._reaped_to, dropped = windows.reap(self._conn, self._reaped_to, at_us, limit)
            return count + dropped
