"""The demo's figures, and what they must be. Pure: from the record and from what arrived upstream.

Every figure is read: from the rows of the ledger, and from the upstream's own count beside them.
The numbers that are written here are what the story and the demo's policy make of it, so a policy
without its limit, or a proxy that lets more through, is told in a sentence.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ledger.filters import moment
from ledger.states import CallState, EventType
from policies.call import Effect
from policies.verdict import Action, Reason
from proxy.demo import agent
from proxy.demo.upstream import CHARGE_CENTS, Upstream

RUN, TENANT = "demo-agent", "acme"
REFUND_TOOL = "payments.refunds.create"

REFUNDS = 5  # the `writes` ceiling of policy.yaml: the first one was right, four were not
NOTES = 1

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Figures:
    """What the ledger says. `contained_seconds` runs from the first looping call to the halt.

    `halted_us` is UTC microseconds; both are None when no halt was pulled for the run.
    """

    calls: int
    allowed: int
    refunds_asked: int
    effects: int
    open_or_unknown: int
    replays: int
    refusals: Mapping[str, int]
    halt_rule: str
    halted_us: int | None
    contained_seconds: float | None
    after_halt: Counter[tuple[str, str]]
    """Calls after the halt, by their effect and reason."""


def read(rows: Sequence[Row]) -> Figures:
    """The figures of the demo's run from all rows of the record, in order."""
    decided = [row for row in rows if row["decision"] and row["run"] == RUN]
    done = [row for row in rows if row["state"] == CallState.DONE]
    allowed = [row for row in decided if row["decision"] == Action.ALLOW]
    replays = [row for row in decided if row["decision"] == Action.REPLAY]
    halt = next((row for row in rows if _is_halt(row)), None)
    contained_seconds = None
    if halt and replays:
        contained_seconds = (_at_us(halt) - _at_us(replays[0])) / 1e6
    after = [row for row in decided if halt and row["seq"] > halt["seq"]]
    return Figures(
        calls=len(decided),
        allowed=len(allowed),
        refunds_asked=sum(row["tool"] == REFUND_TOOL for row in decided),
        effects=sum(row["effect"] == Effect.WRITE for row in done),
        open_or_unknown=len(allowed) - len(done),
        replays=len(replays),
        refusals=Counter(row["reason"] for row in decided if row["decision"] == Action.REFUSE),
        halt_rule=halt["actor"] if halt else "",
        halted_us=_at_us(halt) if halt else None,
        contained_seconds=contained_seconds,
        after_halt=Counter((row["effect"], row["reason"]) for row in after),
    )


def _is_halt(row: Row) -> bool:
    return (row["type"], row["rule"]) == (EventType.PULLED, f"halt:run:{RUN}")


def _at_us(row: Row) -> int:
    return moment(row["at"], 0)


def mistakes(
    figures: Figures, upstream: Upstream, agent_code: int | None, seconds_max: float
) -> Iterator[str]:
    """A sentence for each figure that is not what it must be."""
    yield from _mistakes_upstream(figures, upstream)
    yield from _mistakes_of_the_halt(figures, upstream, seconds_max)
    if figures.replays != agent.RETRIES:
        yield f"{figures.replays} repeats were answered from the record, not {agent.RETRIES}"
    if figures.open_or_unknown:
        yield f"{figures.open_or_unknown} calls that were let through did not end as done"
    if not figures.refusals.get(Reason.OVER_CEILING):
        yield "no call was told that a ceiling is reached"
    if agent_code != agent.STOPPED:
        yield f"the agent did not stop because it was told to (exit code {agent_code})"


def _mistakes_upstream(figures: Figures, upstream: Upstream) -> Iterator[str]:
    if len(upstream.refunds) != REFUNDS:
        yield f"the upstream made {len(upstream.refunds)} refunds; the limit is {REFUNDS}"
    if upstream.refunded_twice:
        yield f"the upstream refunded {', '.join(upstream.refunded_twice)} more than once"
    if len(upstream.notes) != NOTES:
        yield f"the upstream wrote {len(upstream.notes)} notes; the agent writes {NOTES}"
    if upstream.effects != figures.effects:
        yield f"the upstream made {upstream.effects} effects, the ledger has {figures.effects}"
    arrived = len(upstream.arrivals)
    if arrived != figures.allowed:
        yield f"{arrived} calls reached the upstream, the ledger let {figures.allowed} through"
    if untagged := arrived - _tagged(upstream):
        yield f"{untagged} of {arrived} calls arrived without their run and tenant"
    if any(arrival.has_credentials for arrival in upstream.arrivals):
        yield "the run's token reached the upstream"


def _tagged(upstream: Upstream) -> int:
    return sum((call.run, call.tenant) == (RUN, TENANT) for call in upstream.arrivals)


def _mistakes_of_the_halt(
    figures: Figures, upstream: Upstream, seconds_max: float
) -> Iterator[str]:
    if figures.halted_us is None:
        yield "the run was never halted"
        return
    late = sum(arrival.at_us > figures.halted_us for arrival in upstream.arrivals)
    if late:
        yield f"{late} calls reached the upstream after the halt"
    for effect in Effect:
        if not figures.after_halt[effect, Reason.HALTED]:
            yield f"no {effect} call was refused as halted after the halt"
    passed = sum(
        times for (_, reason), times in figures.after_halt.items() if reason != Reason.HALTED
    )
    if passed:
        yield f"{passed} calls after the halt were not refused as halted"
    if figures.contained_seconds is None or figures.contained_seconds > seconds_max:
        yield f"it took {figures.contained_seconds} s to contain; it may take {seconds_max:g} s"


def lines(figures: Figures, upstream: Upstream) -> Iterator[tuple[str, str]]:
    """What is shown at the end, each figure under its name."""
    dollars = len(upstream.refunds) * CHARGE_CENTS / 100
    refusals = ", ".join(f"{times} {reason}" for reason, times in sorted(figures.refusals.items()))
    tagged = _tagged(upstream)
    all_or_some = "all" if tagged == len(upstream.arrivals) else f"{tagged} of them"
    yield (
        "calls",
        f"{figures.calls} asked for, {len(upstream.arrivals)} reached the upstream, "
        f"{all_or_some} tagged",
    )
    yield (
        "effects let through",
        f"{upstream.effects} counted upstream, {figures.effects} in the ledger",
    )
    yield (
        "refunds",
        f"{figures.refunds_asked} asked for, {len(upstream.refunds)} made (${dollars:.2f}), "
        f"{len(upstream.refunded_twice)} made twice",
    )
    yield "replays", f"{figures.replays} answered from the record, none sent again"
    yield "refusals", f"{sum(figures.refusals.values())} ({refusals or 'none'})"
    if figures.contained_seconds is None or figures.halted_us is None:
        yield "time to contain", "never contained"
        return
    yield (
        "time to contain",
        f"{figures.contained_seconds:.1f} s from the first looping call to the halt "
        f"({figures.halt_rule})",
    )
    late = sum(arrival.at_us > figures.halted_us for arrival in upstream.arrivals)
    yield "after the halt", f"{late} calls reached the upstream, reads and model calls included"
