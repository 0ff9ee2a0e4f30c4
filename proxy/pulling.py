"""Pulling a cord and releasing it, whoever asks: the control API, a webhook, the command line.

A cord counts from its commit on; whoever pulled it is answered after every engine has acknowledged
and cut, with the proof that the record gives. The same acts on the store itself are for when no
proxy runs.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ledger import containment
from ledger.connection import open_reader
from ledger.errors import LedgerError, LedgerUnavailable
from ledger.records import Worker
from ledger.sqlite import sqlite3
from ledger.states import CallState
from policies.policy import Policy
from policies.verdict import Level, Pull, Pulls, Scope
from proxy import operations, process, screen
from proxy.budgeting import still_full
from proxy.letterbox import Letterbox
from proxy.screen import newest_first
from proxy.signals import Counts

if TYPE_CHECKING:
    from ledger.store import Store
    from proxy.clock import Clock
    from proxy.decider import Decider
    from proxy.fleet import Fleet
    from proxy.settings import Settings

ACTIVE_SECONDS = 300  # a run that called within that, or has a token that held, is an active one
GONE_SECONDS = 2.0  # how long an engine that was killed may take to vanish

Answer = dict[str, Any]

status_of = screen.status_of


class Service(Protocol):
    """The running proxy as it is needed here."""

    @property
    def decider(self) -> "Decider": ...
    @property
    def fleet(self) -> "Fleet": ...
    @property
    def settings(self) -> "Settings": ...
    @property
    def clock(self) -> "Clock": ...
    @property
    def letterbox(self) -> Letterbox: ...
    @property
    def counts(self) -> Counts: ...


# ---------------------------------------------------------------------------------- with a proxy


async def pull(service: Service, wanted: Pull) -> Answer:
    """Latch a cord, have every engine cut, and prove it from the record.

    Raises what `operations.pull` does, and LedgerUnavailable when it could not be stored.
    """
    clock, policy = service.clock, service.decider.policy
    began_seconds = clock.monotonic_seconds()
    cord, changed = await acted(service, lambda store: operations.pull(store, policy, wanted))
    swept = await service.fleet.sweep()
    took_seconds = clock.monotonic_seconds() - began_seconds
    with contextlib.suppress(LedgerError):  # it shows in the proof
        await service.decider.act(_nothing, durable=False)  # outcomes that wait are written with it
    cord = service.decider.pulls.get(operations.cord_name(cord), cord)
    proof = await asyncio.to_thread(proof_of, service.settings.data, cord)
    answer = _pulled(wanted, cord, changed, swept.cut, proof, swept.killed)
    answer["acknowledged"] = swept.acknowledged
    answer["acknowledged_ms"] = round(took_seconds * 1_000)
    return answer


async def release(
    service: Service,
    name: operations.CordName,
    *,
    reason: str,
    actor: str,
    releases: Sequence[str] = (),
    after_seq: int | None = None,
) -> Answer:
    """Lift a cord, or with `releases` let calls of these known good ones pass it; not one that was
    pulled behind the row `after_seq` of the record.

    Raises what `operations.release` does, and LedgerUnavailable.
    """
    policy, now_us = service.decider.policy, service.clock.now_us()

    def act(store: "Store") -> tuple[Pull, str]:
        cord = operations.release(
            store,
            policy,
            name,
            reason=reason,
            actor=actor,
            at_us=now_us,
            releases=tuple(releases),
            after_seq=after_seq,
        )
        return cord, still_full(store, policy, cord, now_us)

    cord, full = await acted(service, act)
    warning = await asyncio.to_thread(struck, service.letterbox, name)
    return _released(cord, releases, policy, service.decider.pulls, warning, full)


async def acted[Result](service: Service, act: "Callable[[Store], Result]") -> Result:
    """In a transaction of the decider. An act that is refused must not fail its whole batch."""

    def attempt(store: "Store") -> Result | Exception:
        try:
            return act(store)
        except LedgerUnavailable:
            raise
        except (operations.OperationError, LedgerError) as refused:
            return refused

    result = await service.decider.act(attempt)
    if isinstance(result, Exception):
        raise result
    return result


# ---------------------------------------------------------------------------------- without one


def pull_on_store(data: Path, wanted: Pull, policy: Policy | None, clock: "Clock") -> Answer:
    """Latch a cord while no proxy runs. Engines that outlived their decider cannot be told, so they
    are ended, and what they held is `unknown`.

    Raises what `operations.pull` does, LedgerBusy and LedgerError.
    """
    with operations.opened(data, clock.now_us) as store:
        cord, changed = operations.pull(store, policy, wanted)
        killed = store.workers()
        for worker in killed:
            _end(worker)
            store.forsake(worker.id, clock.now_us(), f"{cord.rule}: ended, for nobody decides")
    recovered = store.recovered.calls
    cord = store.pulls.get(operations.cord_name(cord), cord)
    answer = _pulled(wanted, cord, changed, (), proof_of(data, cord), killed)
    nobody = {"acknowledged": 0, "acknowledged_ms": 0, "up": False, "data": str(data)}
    return {**answer, **nobody, "recovered": recovered}


def release_on_store(
    data: Path,
    name: operations.CordName,
    policy: Policy | None,
    clock: "Clock",
    *,
    reason: str,
    actor: str,
    releases: Sequence[str] = (),
    after_seq: int | None = None,
) -> Answer:
    """Lift a cord while no proxy runs. Raises as `release` does, and LedgerBusy."""
    with operations.opened(data, clock.now_us) as store:
        cord = operations.release(
            store,
            policy,
            name,
            reason=reason,
            actor=actor,
            at_us=clock.now_us(),
            releases=tuple(releases),
            after_seq=after_seq,
        )
        full = still_full(store, policy, cord, clock.now_us())
    warning = struck(Letterbox(data), name)
    return _released(cord, releases, policy, store.pulls, warning, full)


# ---------------------------------------------------------------------------------- the record


def preview(
    reader: sqlite3.Connection, level: Level, scope: Scope, subject: str, now_us: int
) -> Answer:
    """What a cord would stop now, or a release let flow: the runs, and the calls in flight.

    Raises LedgerUnavailable.
    """
    blast = containment.blast(reader, scope, subject, now_us - ACTIVE_SECONDS * 1_000_000)
    return {
        "level": level,
        "scope": scope,
        "subject": subject,
        "runs": list(blast.runs),
        "calls": blast.calls,
        "writes": blast.writes,
    }


def proof_of(data: Path, cord: Pull) -> Answer | None:
    """What the record shows of a cord that was pulled; None when it cannot be read."""
    try:
        with contextlib.closing(open_reader(data)) as reader:
            proof = containment.proof(reader, cord.level, cord.scope, cord.subject)
            known = containment.is_known(reader, cord.scope, cord.subject)
    except LedgerError:
        return None
    return {
        "at": operations.timestamp(proof.pulled_us),
        "admitted_after": proof.admitted_after,
        "cut": [row["id"] for row in proof.cut if row["state"] != CallState.DONE],
        "already_done": [row["id"] for row in proof.cut if row["state"] == CallState.DONE],
        "unknown": list(proof.unknown),
        "unknown_writes": list(proof.unknown_writes),
        "not_sent": sum(row["state"] == CallState.NOT_SENT for row in proof.cut),
        "still_open": list(proof.still_open),
        "known": known,
    }


# ---------------------------------------------------------------------------------- answers


def _pulled(
    wanted: Pull,
    cord: Pull,
    changed: bool,
    cut: Iterable[str],
    proof: Answer | None,
    killed: Iterable[Worker],
) -> Answer:
    """`cut` counts what the record says was cut by it, and only without it what engines said: they
    also close calls that are done, or that another cord ended."""
    swept = set(cut)
    if proof is not None:
        swept = {*proof["cut"]} if changed else swept & {*proof["cut"]}
    longer = wanted.until_us is not None and (
        cord.until_us is None or cord.until_us > wanted.until_us
    )
    return {
        "pulled": operations.pull_as_json(cord),
        "changed": changed,
        "stands_longer": longer,
        "cut": len(swept),
        "undo": operations.undo_command(cord),
        "killed": [worker.pid for worker in killed],
        "proof": proof,
    }


def _released(
    cord: Pull,
    releases: Sequence[str],
    policy: Policy | None,
    pulls: Pulls,
    warning: str,
    full: str,
) -> Answer:
    """`still` is the policy's own cord of that name, `standing` whatever stands now; `full` what to
    do about the ceiling that pulled it."""
    written = policy.pulls if policy else {}
    still = written.get(operations.cord_name(cord))
    standing = newest_first([*pulls.values(), *written.values()])
    answer: Answer = {
        "released": operations.pull_as_json(cord),
        "narrowed_to": list(releases),
        "still": None if still is None else operations.pull_as_json(still),
        "standing": [operations.pull_as_json(each) for each in standing],
    }
    told = {"warning": warning, "full": full}
    return {**answer, **{name: text for name, text in told.items() if text}}


def struck(letterbox: Letterbox, name: operations.CordName) -> str:
    """Take a released cord out of the file HALT; what to know when that does not work."""
    try:
        letterbox.strike(*name)
    except OSError as error:
        return (
            f"{letterbox.path} cannot be changed ({error.strerror}): it pulls this cord again at "
            "the next start, unless you take it out"
        )
    return ""


def _end(worker: Worker) -> None:
    """Kill an engine and see it gone."""
    process.kill(worker)
    deadline = time.monotonic() + GONE_SECONDS
    while process.lives(worker) and time.monotonic() < deadline:
        time.sleep(0.01)


def _nothing(_: "Store") -> None:
    return None
