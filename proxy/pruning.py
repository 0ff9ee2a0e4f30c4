"""`ledger prune`: old rows are taken out of the record step by step, so that no caller waits long.

The running proxy does it between its calls, the command line when no proxy runs. What goes, and
what it leaves behind, is in ledger/pruning.py. The trace is pruned too, where that is asked.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledger import pruning, trace
from ledger.chain import Head
from ledger.connection import open_reader
from ledger.filters import moment
from ledger.pruning import Pruned
from ledger.redact import redact_key
from ledger.store import Store
from proxy import process
from proxy.last_seal import compared
from proxy.operations import OperationError, timestamp
from proxy.pulling import acted
from proxy.sealing import covered, seal_alone, seal_keys, trace_head
from proxy.secret_keys import vault_key

if TYPE_CHECKING:
    from proxy.clock import Clock
    from proxy.control_service import Service

KEPT_SECONDS = 3_600  # the newest hour stays in any case: what is in it may still be under way
PAUSE_SECONDS = 0.02  # between two steps, at least, for the calls that wait

_SIZE = re.compile(r"(\d{1,15}) ?(|k|M|G|T)(i?)B?")
_POWERS = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4}

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to go: rows, messages of the trace older than a time, those above so many bytes."""

    before_us: int
    trace_before_us: int | None
    trace_bytes_max: int | None
    dry_run: bool

    @property
    def traces(self) -> bool:
        return self.trace_before_us is not None or self.trace_bytes_max is not None


def wanted(
    older: str, trace_older: str | None, trace_max: str | None, dry_run: bool, now_us: int
) -> Wanted:
    """From what was typed. Raises OperationError, and FilterError for what is no time."""
    before_us = moment(older, now_us)
    if before_us > now_us - KEPT_SECONDS * 1_000_000:
        raise OperationError("the newest hour stays in the ledger; write --older-than 90d, or 1h")
    return Wanted(
        before_us,
        None if trace_older is None else moment(trace_older, now_us),
        None if trace_max is None else size_bytes(trace_max),
        dry_run,
    )


def size_bytes(text: str) -> int:
    """`2GB` and `500MB` by thousands, `2GiB` by 1,024s. Raises OperationError."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise OperationError(f"{text!r} is no size: write 500MB, 2GB or 2GiB")
    unit: int = (1024 if found[3] else 1000) ** _POWERS[found[2]]
    return int(found[1]) * unit


async def pruned(service: "Service", wanted: Wanted, actor: str) -> Answer:
    """While the proxy runs. Raises LedgerError for rows that are not as they were recorded; what
    went before them is gone, and told in the record."""
    data, clock = service.settings.data, service.clock
    if wanted.dry_run:
        return await asyncio.to_thread(_previewed, data, wanted, clock.now_us())
    keys, done = service.sealing.keys, Pruned(next_seq=0)
    end = await service.sealing.traced()
    try:
        while done.next_seq is not None:
            step = _step(done.next_seq, wanted, keys, end, actor, clock.now_us())
            began_seconds = clock.monotonic_seconds()
            done += await acted(service, step)
            took_seconds = clock.monotonic_seconds() - began_seconds
            await asyncio.sleep(max(PAUSE_SECONDS, took_seconds))  # half of the time is the calls'
    finally:
        if done.rows:
            at_us, before = clock.now_us(), timestamp(wanted.before_us)
            await acted(
                service, lambda store: store.note_pruned(done, before, actor=actor, at_us=at_us)
            )
            await service.sealing.seal(service.decider.act)
    told = await asyncio.to_thread(_retained, data, wanted, clock.now_us)
    return _answer(wanted, done, told)


def pruned_alone(data: Path, wanted: Wanted, clock: "Clock", actor: str) -> Answer:
    """While no proxy runs. Raises LedgerBusy and LedgerError."""
    if wanted.dry_run:
        return _previewed(data, wanted, clock.now_us())
    keys, done = seal_keys(data), Pruned(next_seq=0)
    store = Store.open(data, vault_key(data), clock.now_us, alive=process.lives)
    with contextlib.closing(store):
        compared(data, store, keys.public, clock.now_us())
        end = trace_head(data, covered(store.last_seal()))
        try:
            while done.next_seq is not None:
                done += _step(done.next_seq, wanted, keys, end, actor, clock.now_us())(store)
        finally:
            if done.rows:
                at_us, before = clock.now_us(), timestamp(wanted.before_us)
                store.note_pruned(done, before, actor=actor, at_us=at_us)
                seal_alone(data, store, keys, at_us)
                store.checkpoint()
    return _answer(wanted, done, _retained(data, wanted, clock.now_us))


def _step(
    after_seq: int,
    wanted: Wanted,
    keys: pruning.Keys,
    end: Head,
    actor: str,
    at_us: int,
) -> Callable[[Store], Pruned]:
    return lambda store: store.prune(
        after_seq, wanted.before_us, keys, end, actor=actor, at_us=at_us
    )


def _previewed(data: Path, wanted: Wanted, at_us: int) -> Answer:
    done = Pruned(next_seq=0)
    with contextlib.closing(open_reader(data)) as reader:
        while done.next_seq is not None:
            done += pruning.planned(reader, done.next_seq, wanted.before_us, at_us)[1]
    return _answer(wanted, done, _kept(data) if wanted.traces else None)


def _retained(data: Path, wanted: Wanted, now_us: Callable[[], int]) -> Answer | None:
    """Several processes may write the trace; each step waits for the other's."""
    if not wanted.traces:
        return None
    before = _kept(data)
    if not before["messages"]:
        return {"messages": 0, "bytes": 0, "left": before}
    store = trace.TraceStore.open(data, redact_key(vault_key(data)), now_us)
    with contextlib.closing(store):
        gone = store.retain(wanted.trace_before_us, wanted.trace_bytes_max)
    return {"messages": gone.messages, "bytes": gone.kept_bytes, "left": _kept(data)}


def _kept(data: Path) -> Answer:
    """What the trace holds."""
    reader = trace.open_trace(data)
    if reader is None:
        return {"messages": 0, "bytes": 0}
    with contextlib.closing(reader):
        size = trace.size(reader)
    return {"messages": size.messages, "bytes": size.kept_bytes}


def _answer(wanted: Wanted, done: Pruned, told: Answer | None) -> Answer:
    return {
        "dry_run": wanted.dry_run,
        "before": timestamp(wanted.before_us),
        "rows": done.rows,
        "calls": done.calls,
        "trace": told,
    }
