"""One transaction of the store: what it has read, what it has changed and not yet written.

The store's memory (cords, open calls, the policy in force) changes only when the transaction has
committed, so that a rolled back one leaves no trace in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ledger import tokens
from ledger.events import Journal
from ledger.records import Claimant
from ledger.sqlite import sqlite3
from ledger.tokens import Resolved, Token
from ledger.windows import Committed, Windows
from policies.call import Identity
from policies.policy import Policy
from policies.verdict import Level, Pull, Pulls, Reason, Scope

TOKENS_MAX = 10_000  # remembered ones; beyond it they are read again

OpenCalls = dict[str, int | None]
"""The calls that were let through and have not ended, with the row of the claim each holds."""


@dataclass(slots=True)
class Memory:
    """What the store knows without asking the database; equal to it between transactions."""

    pulls: Pulls = field(default_factory=dict)
    open_calls: OpenCalls = field(default_factory=dict)
    policies: dict[str, int] = field(default_factory=dict)
    tokens: dict[bytes, Token] = field(default_factory=dict)
    windows: Committed = field(default_factory=dict)


class Batch:
    """Made when a transaction starts; `write` before its commit, `remember` after it."""

    def __init__(self, conn: sqlite3.Connection, memory: Memory, redact_key: bytes) -> None:
        self.conn = conn
        self.journal = Journal(redact_key)
        self.windows = Windows(conn, memory.windows)
        self.pulls: Mapping[tuple[Level, Scope, str], Pull] = memory.pulls
        self.broken: Exception | None = None
        self.must_last = False  # holds what a power cut may not lose
        self._memory = memory
        self._opened: OpenCalls = {}
        self._closed: set[str] = set()
        self._policies: dict[str, int] = {}
        self._tokens_changed = False

    # Who calls

    def resolve(self, claimant: Claimant, now_us: int) -> Resolved:
        if claimant is None:
            return None, Reason.CREDENTIALS_REQUIRED
        if isinstance(claimant, Identity):
            return claimant, None
        token = self._memory.tokens.get(claimant.token_hash)
        if token is None:
            token = tokens.by_hash(self.conn, claimant.token_hash)
            if token is not None and not self._tokens_changed:
                self._memory.tokens[claimant.token_hash] = token
        return tokens.checked(token, claimant, now_us)

    def tokens_changed(self) -> None:
        """What is remembered of tokens holds no more, whether this transaction commits or not."""
        self._tokens_changed = True
        self.must_last = True
        self._memory.tokens.clear()

    # Cords

    def pull(self, pull: Pull) -> bool:
        """Latch a cord; False when it is pulled already."""
        name = (pull.level, pull.scope, pull.subject)
        if name in self.pulls:
            return False
        self.conn.execute(
            "INSERT INTO pull (level, scope, subject, reason, actor, at_us) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (*name, pull.reason, pull.actor, pull.at_us),
        )
        self.pulls = {**self.pulls, name: pull}
        self.must_last = True
        return True

    def release(self, level: Level, scope: Scope, subject: str) -> Pull | None:
        name = (level, scope, subject)
        pull = self.pulls.get(name)
        if pull is not None:
            self.conn.execute(
                "DELETE FROM pull WHERE level = ? AND scope = ? AND subject = ?", name
            )
            self.pulls = {key: kept for key, kept in self.pulls.items() if key != name}
            self.must_last = True
        return pull

    # Calls

    def opened(self, call_id: str, claim: int | None) -> None:
        self._opened[call_id] = claim

    def is_open(self, call_id: str) -> bool:
        if call_id in self._closed:
            return False
        return call_id in self._opened or call_id in self._memory.open_calls

    def closed(self, call_id: str) -> int | None:
        """The call has ended; the row of its claim, if it holds one."""
        self._closed.add(call_id)
        if call_id in self._opened:
            return self._opened[call_id]
        return self._memory.open_calls[call_id]

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
        opened = [entry for entry in self._opened.items() if entry[0] not in self._closed]
        closed = [(call_id,) for call_id in self._closed if call_id not in self._opened]
        if opened:
            self.conn.executemany("INSERT INTO open_call (call_id, claim) VALUES (?, ?)", opened)
        if closed:
            self.conn.executemany("DELETE FROM open_call WHERE call_id = ?", closed)

    def remember(self) -> None:
        memory = self._memory
        memory.pulls = self.pulls
        memory.open_calls |= self._opened
        for call_id in self._closed:
            del memory.open_calls[call_id]
        memory.policies |= self._policies
        self.windows.remember()
        if len(memory.tokens) > TOKENS_MAX:
            memory.tokens.clear()
