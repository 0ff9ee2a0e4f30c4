"""How an answer may flow: when its outcome must be durable, and what of it is held until then."""

from dataclasses import dataclass

from policies.call import Dialect
from proxy.held import HeldResult, OneBehind
from proxy.live import Live
from proxy.usage_asked import WithoutUsage

_EVENTS = "text/event-stream"
_ENDED_BY_TRAILERS = "application/grpc"
"""A client of these knows no result before the trailers, so what comes before them may flow."""

Held = HeldResult | WithoutUsage | OneBehind


@dataclass(frozen=True, slots=True)
class Way:
    """`settles_first`: nothing flows before the outcome is durable; `settles_last`: the end of it
    does not. `held` keeps back what must not flow yet."""

    settles_first: bool = False
    settles_last: bool = False
    held: Held | None = None


_AT_ONCE = Way()


def way_of(live: Live, kind: str, coding: str, *, usage_asked: bool) -> Way:
    """`kind` is the answer's content type, `coding` its content coding."""
    events = kind.startswith(_EVENTS)
    held: Held | None = WithoutUsage() if usage_asked and events and not coding else None
    if not live.is_write:
        return Way(held=held) if held is not None else _AT_ONCE
    if events or kind.startswith(_ENDED_BY_TRAILERS):
        if events and not coding and live.call.dialect is Dialect.MCP:
            held = HeldResult()
        return Way(settles_last=True, held=held)
    return Way(settles_first=True, held=held)
