"""What the 3 a.m. screen shows beside the proxy's own state: cords, rates, the drill, the clock.

Read from the record on connections that cannot write, within a bound of time: a part that cannot be
told is None, and the others are shown.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledger import activity, containment, holds, incident_reads, queries, untraced
from ledger.connection import DATABASE, open_reader
from ledger.errors import LedgerError, was_interrupted
from ledger.sqlite import sqlite3
from ledger.states import EventType
from policies.policy import Policy
from policies.verdict import Pull, Pulls, Scope, tool_of
from proxy import incidents, operations, process, signals
from proxy.letterbox import Letterbox

if TYPE_CHECKING:
    from ledger.trace import Size
    from proxy.pulling import Service

RATE_SECONDS = 60
STATUS_SECONDS = 1.0  # what cannot be read by then is left out

Answer = dict[str, Any]


async def status_of(service: "Service") -> Answer:
    """What the control API's status tells beside its own: `pulled`, `fleet`, `signals`, `drill`,
    `clock`, `halt_file`. It never fails: what cannot be told in time is None.
    """
    pulls, now_us = service.decider.latched, service.clock.now_us()
    cords = [*pulls.values(), *service.decider.policy.pulls.values()]
    waiting = _waiting(service.letterbox, pulls, now_us)
    known = {*pulls, *map(operations.cord_name, waiting)}
    in_memory = [cord for name, cord in service.decider.pulls.items() if name not in known]
    waiting += in_memory
    found, stepped_seconds, traced = await asyncio.gather(
        _in_time(
            asyncio.to_thread(
                _figures, service.settings.data, cords, now_us, service.settings.config
            )
        ),
        _in_time(_stepped_seconds(service)),
        _in_time(service.fleet.traced()),
    )
    screen = _screen(service.letterbox, waiting, cords, found or _Figures(), now_us)
    _tell_effective(screen["pulled"], service.decider.policy)
    screen["fleet"]["engines"] = len(service.fleet.workers)
    screen["limits"]["waiting"] = service.decider.waiting
    screen["signals"] = signals.rates_of(service.counts.signals.fleet(now_us))
    screen["trace"]["level"] = service.settings.trace
    screen["trace"]["behind"] = traced and traced["behind"]
    return {**screen, "clock": {"stepped_seconds": stepped_seconds}}


def status_on_disk(data: Path, now_us: int, policy: Policy | None = None) -> Answer:
    """The same when no proxy answers, from the store and the file alone. It never fails. `policy`
    is None when none can be read."""
    cords: list[Pull] = []
    engines: int | None = None
    failure: str | None = None
    try:
        with contextlib.closing(open_reader(data)) as reader:
            cords = queries.pulls(reader)
            engines = sum(map(process.lives, containment.worker_rows(reader)))
    except LedgerError as error:  # one that was never made holds no cord
        failure = str(error) if (data / DATABASE).exists() else None
    pulls = {operations.cord_name(cord): cord for cord in cords}
    letterbox = Letterbox(data)
    waiting = _waiting(letterbox, pulls, now_us)
    config = None if policy is None else Path(policy.source).parent
    screen = _screen(letterbox, waiting, cords, _figures(data, cords, now_us, config), now_us)
    _tell_effective(screen["pulled"], policy)
    screen["fleet"]["engines"] = engines
    bounds = policy and bounds_of(policy)
    return {**screen, "bounds": bounds, "ledger": {"error": failure}}


@dataclass(slots=True)
class _Figures:
    """What the record adds to the screen; None for what cannot be read in time."""

    counted: activity.Activity | None = None
    blocked: dict[str, int] = field(default_factory=dict)
    drill: queries.Row | None = None
    waiting: int | None = None
    incidents: Answer | None = None
    refusing: list[activity.Refusing] | None = None
    crossed: int | None = None
    unpriced: int | None = None
    trace_lost: int | None = None
    trace_failure: str | None = None
    traced: "Size | None" = None


def _figures(
    data: Path, cords: Iterable[Pull], now_us: int, config: Path | None = None
) -> _Figures:
    found = _Figures()
    with (
        contextlib.suppress(LedgerError),
        contextlib.closing(open_reader(data, busy_seconds=0)) as reader,
        activity.limited(reader, STATUS_SECONDS),
    ):
        found.incidents = incidents.on_screen(reader)
        found.incidents["next"] = _next_action(reader, config)
        found.drill = containment.last_drill(reader)
        found.counted = activity.activity(reader, now_us - RATE_SECONDS * 1_000_000)
        for cord in newest_first(cords):  # the one that everybody asks about
            if cord.at_us:  # a line of the policy tells no time
                found.blocked[cord.rule] = activity.refused_by(reader, cord.rule, cord.at_us)
        found.waiting = holds.waiting(reader, now_us)
        found.refusing = activity.refusing(reader, now_us - RATE_SECONDS * 1_000_000)
        hour_ago_us = now_us - 3_600 * 1_000_000
        found.crossed = activity.told(reader, EventType.CROSSED, hour_ago_us)
        found.unpriced = activity.told(reader, EventType.UNPRICED, hour_ago_us)
        found.trace_lost = sum(loss.messages for loss in untraced.losses(reader, hour_ago_us))
    _tell_traced(data, found)
    return found


def _next_action(reader: sqlite3.Connection, config: Path | None) -> Answer | None:
    """What the runbook says of the newest open incident."""
    one = next(iter(incident_reads.listed(reader, 1)), None)
    if one is None:
        return None
    from policies.document import MistakenFileError
    from proxy.runbook import next_action

    with contextlib.suppress(MistakenFileError):  # of the shipped one; the others count without
        action = next_action(reader, one, config)
        return action and {"incident": one.id, **action}
    return None


def _tell_traced(data: Path, found: _Figures) -> None:
    """What reads the trace is not loaded before somebody asks."""
    from ledger.trace import Size, open_trace, size
    from ledger.trace_schema import DATABASE as TRACE
    from ledger.trace_schema import no_room, unusable

    try:
        trace = open_trace(data, busy_seconds=0)
        if trace is None:
            found.traced = Size()
            return
        with contextlib.closing(trace), activity.limited(trace, STATUS_SECONDS):
            found.traced = size(trace)
        full = no_room(data)
        found.trace_failure = None if full is None else str(full)
    except LedgerError as error:
        found.trace_failure = str(error)
    except sqlite3.Error as error:
        if not was_interrupted(error):
            found.trace_failure = str(unusable(error, data / TRACE))


def _screen(
    letterbox: Letterbox, waiting: list[Pull], cords: list[Pull], found: _Figures, now_us: int
) -> Answer:
    pulled = [{**operations.pull_as_json(cord), "latched": False} for cord in waiting]
    pulled += [{**operations.pull_as_json(cord), "latched": True} for cord in newest_first(cords)]
    for cord in pulled:
        cord["blocked"] = found.blocked.get(cord["rule"])
    counted = found.counted
    return {
        "pulled": pulled,
        "fleet": {
            "runs": counted and counted.runs,
            "calls_per_minute": counted and counted.calls,
            "refused_per_minute": counted and counted.refused,
        },
        "incidents": found.incidents or {"open": None, "newest": [], "next": None},
        "holds": {"waiting": found.waiting},
        "limits": _limits(found),
        "trace": {
            "level": None,
            "messages": found.traced and found.traced.messages,
            "bytes": found.traced and found.traced.file_bytes,
            "behind": None,
            "lost_per_hour": found.trace_lost,
            "error": found.trace_failure,
        },
        "drill": found.drill and _drilled(found.drill, now_us),
        "halt_file": str(letterbox.path) if letterbox.path.exists(follow_symlinks=False) else None,
    }


def _limits(found: _Figures) -> Answer:
    """Which ceilings bind; `waiting` is the running proxy's to tell."""
    refusing = found.refusing
    return {
        "refused_per_minute": None if refusing is None else [asdict(each) for each in refusing],
        "crossed_per_hour": found.crossed,
        "unpriced_per_hour": found.unpriced,
        "waiting": None,
    }


def bounds_of(policy: Policy) -> Answer:
    """What nobody who wrote the policy bounded: what it leaves open by its own word, and what
    the shipped bounds are for."""
    return {
        "unbounded": list(policy.unbounded),
        "shipped": [str(ceiling) for ceiling in policy.ceilings if ceiling.shipped],
    }


def _tell_effective(pulled: list[Answer], policy: Policy | None) -> None:
    """Whether each cord can stop anything: one on a tool that the policy lacks cannot."""
    for cord in pulled:
        tool = cord["scope"] == Scope.TOOL
        cord["effective"] = (
            not tool or policy is None or operations.has_tool(policy, tool_of(cord["subject"])[1])
        )


def _drilled(row: queries.Row, now_us: int) -> Answer:
    """The last drill. A row that was cut short tells neither that it passed nor why not."""
    try:
        result = json.loads(row["detail"] or "")
        passed, why = bool(result["passed"]), str(result["why"])
    except (ValueError, KeyError, TypeError):
        passed, why = '"passed":true' in (row["detail"] or ""), ""
    return {
        "at": operations.timestamp(row["at_us"]),
        "age_seconds": max(0, now_us - row["at_us"]) // 1_000_000,
        "actor": row["actor"],
        "passed": passed,
        "why": why,
    }


def newest_first(cords: Iterable[Pull]) -> list[Pull]:
    return sorted(cords, key=lambda cord: (-cord.at_us, cord.rule))


def _waiting(letterbox: Letterbox, pulls: Pulls, now_us: int) -> list[Pull]:
    """Cords of the file HALT that are not in the store: it fails, or nobody runs."""
    letters = letterbox.waiting(now_us)
    return [cord for cord in letters if operations.cord_name(cord) not in pulls]


async def _in_time[Found](work: Awaitable[Found]) -> Found | None:
    try:
        async with asyncio.timeout(2 * STATUS_SECONDS):
            return await work
    except (TimeoutError, LedgerError):
        return None


async def _stepped_seconds(service: "Service") -> float:
    """Asked in the decider's turn, like whenever it judges: the clock remembers each look."""
    clock = service.clock
    return await service.decider.act(lambda _: clock.stepped_seconds(), durable=False)
