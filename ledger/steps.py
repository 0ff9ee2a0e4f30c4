"""Calls of the record as the detectors see them, live and from its rows: the same either way.

What an agent sent and was told comes in as digests, and is kept keyed and short, so that nobody who
reads the record can guess what it was.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from ledger.records import Ask, Outcome
from ledger.sqlite import sqlite3
from ledger.states import CallState, EventType
from policies.call import Effect, Identity, Traits
from policies.detectors.step import Kind, Step

KEYED_BYTES = 8


def keyed(digest: bytes, key: bytes) -> bytes:
    """A digest as the record has it; empty stays empty."""
    if not digest:
        return b""
    return hashlib.blake2b(digest, key=key, digest_size=KEYED_BYTES).digest()


def traits_told(traits: Traits, key: bytes) -> dict[str, Any]:
    """For the column `seen` of a call that was let through or replayed."""
    return {
        "action": keyed(traits.action, key).hex(),
        "recipient": keyed(traits.recipient, key).hex(),
        "human": keyed(traits.human, key).hex(),
        "mark": traits.mark,
    }


def asked(ask: Ask, who: Identity, key: bytes, *, replayed: bool = False) -> Step:
    """A call that was let through, before its answer; or one that was answered from the record."""
    call, traits = ask.call, ask.traits
    return Step(
        ask.at_us,
        Kind.MODEL if call.effect is Effect.MODEL else Kind.TOOL,
        ask.call_id,
        who.run,
        who.root,
        who.tenant,
        who.agent,
        who.release,
        len(who.ancestors),
        call.tool,
        call.host,
        keyed(traits.recipient, key),
        keyed(traits.action, key),
        human=keyed(traits.human, key),
        mark=traits.mark,
        is_write=call.effect is Effect.WRITE,
        replayed=replayed,
    )


def ended(step: Step, outcome: Outcome, key: bytes) -> Step:
    """The step with what came of the call."""
    status = outcome.status
    is_ok = outcome.state is CallState.DONE and status is not None and status < 400
    return step.ended(
        keyed(outcome.result, key),
        is_ok=is_ok and not outcome.failed,
        spend_microusd=outcome.cost_microusd or outcome.used_microusd or 0,
        tokens=outcome.used_tokens or (outcome.input_tokens or 0) + (outcome.output_tokens or 0),
    )


def outcome_told(outcome: Outcome, key: bytes) -> dict[str, Any]:
    """For the column `seen` of an outcome: what `ended` reads and no other column tells."""
    return {
        "result": keyed(outcome.result, key).hex(),
        "failed": outcome.failed,
        "used_microusd": 0 if outcome.cost_microusd else outcome.used_microusd or 0,
        "used_tokens": outcome.used_tokens or 0,
    }


# What `of_decision` reads, of the rows of calls that were let through or replayed.
DECISION = (
    *("type", "at_us", "call_id", "run", "tenant", "parent", "root", "agent", "release"),
    *("tool", "host", "effect", "seen"),
)
_OPEN = (
    f"SELECT {', '.join('d.' + name for name in DECISION)} FROM open_call o "  # noqa: S608 - ours
    "CROSS JOIN event d INDEXED BY event_call "
    "ON d.call_id = o.call_id AND d.call_id IS NOT NULL AND d.type = 'call.intent'"
)


def of_decision(row: Mapping[str, Any]) -> Step:
    """As `asked`, from the row of a decision."""
    told = orjson.loads(row["seen"] or b"{}")
    run, root = row["run"] or "", row["root"] or ""
    depth = len(told.get("ancestors", ())) or len({row["parent"] or root, root} - {run, ""})
    return Step(
        row["at_us"],
        Kind.MODEL if row["effect"] == Effect.MODEL else Kind.TOOL,
        row["call_id"],
        run,
        root,
        row["tenant"] or "",
        row["agent"] or "",
        row["release"] or "",
        depth,
        row["tool"] or "",
        row["host"] or "",
        bytes.fromhex(told.get("recipient", "")),
        bytes.fromhex(told.get("action", "")),
        human=bytes.fromhex(told.get("human", "")),
        mark=told.get("mark", 0),
        is_write=row["effect"] == Effect.WRITE,
        replayed=row["type"] == EventType.REPLAYED,
    )


def of_open(conn: sqlite3.Connection) -> dict[str, Step]:
    """The calls in flight, by their ids."""
    rows = (dict(zip(DECISION, row, strict=True)) for row in conn.execute(_OPEN))
    return {row["call_id"]: of_decision(row) for row in rows}
