"""Claims: the one right to perform a write. Found, taken, settled, and dropped when they expire.

The rules are in design.md section 5 and notes/store.md section 2. A claim is met by its key (the
one that was sent, or one derived from the body), or by its body under any key of the same run (or
of the same tenant, where the policy says so). A sent key that was answered through a claim which it
met by its body is an alias of that claim: from then on the claim is met by it, too.
`pending` and `unknown` claims never expire. Every function is called inside a transaction.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from ledger import vault
from ledger.sqlite import sqlite3
from ledger.states import ClaimAfter
from policies.call import Claim, ClaimState, Identity, ToolCall
from policies.policy import KeyRule

KEY_SHOWN_BYTES = 8  # the start of a claim's key, as the record shows it
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a write's claim belongs. `body_key` is None where the same body may be sent again.

    `other_key` is that of its body as the policy may have had it before an edit: a claim taken by
    run still stands when bodies are compared over a tenant, and the other way round.
    """

    key: bytes
    body_key: bytes | None
    other_key: bytes | None
    keep_us: int
    same_body_us: int


@dataclass(frozen=True, slots=True)
class Met:
    """A live claim. `key` is its own; `by_key` is False when it was met by its body alone."""

    row: int
    key: bytes
    by_key: bool
    claim: Claim


def digest(*parts: bytes) -> bytes:
    """SHA-256 over the parts, each with its length before it, so that no two lists are alike."""
    return hashlib.sha256(b"".join([len(part).to_bytes(4) + part for part in parts])).digest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def slot(call: ToolCall, identity: Identity, rule: KeyRule) -> Slot | None:
    """The claim that a write takes; None when the tool makes no claim for a write without a key,
    or when the write has no fingerprint: no stored answer could stand for it (a WebSocket).
    Of a write whose body is not read only its key can say that it is the same."""
    if not call.fingerprint:
        return None
    tenant, tool = _bytes(identity.tenant), _bytes(call.tool)
    same_body_us = rule.same_body_seconds * 1_000_000
    of_run = digest(b"derived", tenant, _bytes(identity.run), tool, call.fingerprint)
    of_tenant = digest(b"of tenant", tenant, tool, call.fingerprint)
    body_key, other = (of_run, of_tenant) if rule.per == "run" else (of_tenant, of_run)
    replays = rule.same_body == "replay" and not call.streamed
    met, met_before = (body_key, other) if replays else (None, None)
    if call.key is not None:
        sent = digest(b"sent", tenant, tool, _bytes(call.key))
        return Slot(sent, met, met_before, rule.keep_seconds * 1_000_000, same_body_us)
    if rule.missing != "derive" or call.streamed:
        return None
    return Slot(body_key, met, met_before, 0, same_body_us)


# Until when a claim that is done protects by its own key: that key's time or the body's, whichever
# is later. Its aliases may keep its row for longer.
_OWN_UNTIL = "max(created_us + keep_us, used_us + same_body_us)"
_FIND = (
    "SELECT id, key, call_id, state, fingerprint, answered, used_us, "  # noqa: S608 - text of here
    f"{_OWN_UNTIL}, expires_us, 0 FROM claim "
    "WHERE key IN (?1, ?2, ?3) OR body_key IN (?2, ?3) "
    "UNION ALL SELECT c.id, c.key, c.call_id, c.state, c.fingerprint, c.answered, c.used_us, "
    "max(a.until_us, c.used_us + c.same_body_us), c.expires_us, 1 "
    "FROM claim_alias a JOIN claim c ON c.id = a.claim WHERE a.key = ?1"
)


def find(conn: sqlite3.Connection, slot: Slot, now_us: int) -> Met | None:
    """The live claim that this write meets. Its key is free again when its time is over.

    By body, one that may still run or have happened comes before one that is done.
    """
    best: tuple[bool, int] | None = None
    met: Met | None = None
    for row in conn.execute(_FIND, (slot.key, slot.body_key, slot.other_key)).fetchall():
        row_id, key, call_id, state, fingerprint, answered, used_us, until_us, *more = row
        expires_us, by_alias = more
        done = state == "done"
        if by_alias or key == slot.key:
            if done and until_us <= now_us:
                if by_alias:
                    conn.execute("DELETE FROM claim_alias WHERE key = ?", (slot.key,))
                elif expires_us <= now_us:
                    _drop(conn, row_id)
                else:
                    _retire(conn, row_id, key, call_id)
                continue
            claim = Claim(call_id, ClaimState(state), fingerprint, True, bool(answered))
            return Met(row_id, key, True, claim)
        if done and used_us <= now_us - slot.same_body_us:
            continue
        if best is None or (not done, used_us) > best:
            best = (not done, used_us)
            claim = Claim(call_id, ClaimState(state), fingerprint, False, bool(answered))
            met = Met(row_id, key, False, claim)
    return met


def take(conn: sqlite3.Connection, slot: Slot, call: ToolCall, call_id: str, now_us: int) -> int:
    """Claim the write for this call, after `find` found nothing. Returns the claim's row."""
    cursor = conn.execute(
        "INSERT INTO claim (key, body_key, fingerprint, call_id, state, created_us, used_us, "
        "keep_us, same_body_us) VALUES (?, ?, ?, ?, 'pending', ?, ?, ?, ?)",
        (
            slot.key,
            None if slot.body_key == slot.key else slot.body_key,
            call.fingerprint,
            call_id,
            now_us,
            now_us,
            slot.keep_us,
            slot.same_body_us,
        ),
    )
    return int(cursor.lastrowid or 0)


# A claim protects until the time of its key is over, of each alias and of its body, whichever is
# last.
_UNTIL = (
    "max(created_us + keep_us, max(used_us, ?1) + same_body_us, "
    "coalesce((SELECT max(until_us) FROM claim_alias WHERE claim = ?2), 0))"
)
_USE = (
    "UPDATE claim SET used_us = max(used_us, ?1), "  # noqa: S608 - text of here
    f"expires_us = CASE WHEN state = 'done' THEN {_UNTIL} END WHERE id = ?2"
)
_SETTLE = (
    "UPDATE claim SET state = ?3, answered = ?4, used_us = max(used_us, ?1), "  # noqa: S608
    f"expires_us = CASE WHEN ?3 = 'done' THEN {_UNTIL} END WHERE id = ?2"
)


def bind(conn: sqlite3.Connection, slot: Slot, row: int, now_us: int) -> None:
    """This sent key, which met the claim by its body, was answered through it: it stands for this
    write as if it had been sent with it. Its fingerprint is the claim's, as the bodies are alike.
    `use` follows where the claim is done."""
    conn.execute(
        "INSERT OR REPLACE INTO claim_alias (key, claim, until_us) VALUES (?, ?, ?)",
        (slot.key, row, now_us + slot.keep_us),
    )


def use(conn: sqlite3.Connection, row: int, now_us: int) -> None:
    """Met again by its body: the time in which a body is protected starts anew."""
    conn.execute(_USE, (now_us, row))


def settle(
    conn: sqlite3.Connection, row: int, now_us: int, after: ClaimAfter, *, answered: bool
) -> None:
    """Write down how the claimed call ended. Protection of the body counts from here."""
    if after is ClaimAfter.RELEASED:
        _drop(conn, row)
        return
    # A claimed call that ends without a word about its claim may have happened.
    state = "done" if after is ClaimAfter.DONE else "unknown"
    conn.execute(_SETTLE, (now_us, row, state, answered))


def of_call(conn: sqlite3.Connection, call_id: str, key_start: bytes) -> tuple[int, str] | None:
    """The claim that a call has taken, if it is still there: its row and its state. `key_start` is
    the start of its key, as the record shows it."""
    row = conn.execute(
        "SELECT id, state FROM claim WHERE key >= ?1 AND key <= ?2 AND call_id = ?3",
        (key_start, key_start + b"\xff" * _DIGEST_BYTES, call_id),
    ).fetchone()
    return None if row is None else (int(row[0]), str(row[1]))


_OF_SETTLED = "SELECT key FROM event WHERE call_id = ? AND type = 'call.intent' AND key IS NOT NULL"


def settled(conn: sqlite3.Connection, call_id: str) -> tuple[int, ClaimAfter] | None:
    """The row of the claim that a settled call holds, and what became of it."""
    key = conn.execute(_OF_SETTLED, (call_id,)).fetchone()
    found = of_call(conn, call_id, bytes.fromhex(key[0])) if key else None
    if found is None or found[1] == "pending":
        return None
    return found[0], ClaimAfter(found[1])


def answer(conn: sqlite3.Connection, row: int) -> None:
    """From now on this claim's answer is kept."""
    conn.execute("UPDATE claim SET answered = 1 WHERE id = ?", (row,))


def resolve(conn: sqlite3.Connection, row: int, now_us: int, after: ClaimAfter) -> int | None:
    """A person says how a claimed call of unknown outcome ended; until when the claim protects
    now by its own key, None where it was released.

    An answer that was kept is dropped: it told of a failure.
    """
    vault.drop(conn, row)
    settle(conn, row, now_us, after, answered=False)
    own_until = f"SELECT {_OWN_UNTIL} FROM claim WHERE id = ?"  # noqa: S608 - text of here
    found = conn.execute(own_until, (row,)).fetchone()
    return None if found is None else int(found[0])


def forsake(conn: sqlite3.Connection, rows: Iterable[int]) -> None:
    """After a crash: whatever was in flight may have happened."""
    conn.executemany("UPDATE claim SET state = 'unknown' WHERE id = ?", [(row,) for row in rows])


def reap(conn: sqlite3.Connection, now_us: int, limit: int) -> int:
    """Drop up to `limit` claims that have expired, with their answers."""
    rows = conn.execute(
        "SELECT id FROM claim WHERE expires_us <= ? LIMIT ?", (now_us, limit)
    ).fetchall()
    for (row,) in rows:
        _drop(conn, row)
    return len(rows)


def _retire(conn: sqlite3.Connection, row: int, key: bytes, call_id: str) -> None:
    """The claim's key and body are free again, while its aliases still protect. It keeps the start
    of its key, by which its call finds it."""
    past = key[:KEY_SHOWN_BYTES] + digest(b"past", key, call_id.encode())[KEY_SHOWN_BYTES:]
    conn.execute("UPDATE claim SET key = ?, body_key = NULL WHERE id = ?", (past, row))


def _drop(conn: sqlite3.Connection, row: int) -> None:
    conn.execute("DELETE FROM claim WHERE id = ?", (row,))
    conn.execute("DELETE FROM claim_alias WHERE claim = ?", (row,))
    vault.drop(conn, row)
