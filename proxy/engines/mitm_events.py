"""What the engine says to its layers, and what they ask of it beyond mitmproxy's own hooks."""

from dataclasses import dataclass

from mitmproxy import http
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers import http as mhttp


@dataclass
class CutFlow(events.Event):
    """Ask the layers to end one flow at once, on both sides."""

    flow: http.HTTPFlow
    reason: str


@dataclass
class Unended(events.Event):
    """A request whose body has not ended in time: ask its stream to refuse it."""

    flow: http.HTTPFlow


@dataclass
class BrokenBody(mhttp.HttpEvent):
    """The framing of a request's body is broken: nobody can say where it ends."""

    why: str


class NotProcessed(str):
    """Why an exchange failed: the upstream has provably done nothing with its request. mitmproxy
    hands the words of an error on as they are."""

    __slots__ = ()


def not_processed(stream_id: int) -> mhttp.ReceiveHttp:
    why = NotProcessed("the upstream did not process the request")
    code = mhttp.ErrorCode.GENERIC_SERVER_ERROR
    return mhttp.ReceiveHttp(mhttp.ResponseProtocolError(stream_id, why, code))


@dataclass
class CallerHook(commands.StartHook):
    """A long body begins and nobody has judged yet who sends it; a refusal is left in the flow."""

    flow: http.HTTPFlow


@dataclass
class PartHook(commands.StartHook):
    """A part of a streamed upload must be asked for before it flows on; the hook leaves in the flow
    that it may not (`unsent`)."""

    flow: http.HTTPFlow


@dataclass
class Taken(mhttp.HttpEvent):
    """A stream that waited takes what its client sends again."""


@dataclass
class StoredHook(commands.StartHook):
    """The client takes more of a stored answer: the hook leaves the next of it in the flow (`part`;
    empty at the end)."""

    flow: http.HTTPFlow


@dataclass
class UnendedHook(commands.StartHook):
    """The request cannot end any more; the hook leaves the refusal in the flow."""

    flow: http.HTTPFlow


@dataclass
class DialledHook(commands.StartHook):
    """An upstream connection for the flow stands; its request has not been written yet."""

    flow: http.HTTPFlow


@dataclass
class DrawHook(commands.StartHook):
    """A stream came to more than it was granted; the hook leaves in the flow whether it may go on
    (`denied`)."""

    flow: http.HTTPFlow


@dataclass
class SettleHook(commands.StartHook):
    """A write's answer is about to flow, or the end of it: its outcome must be durable first."""

    flow: http.HTTPFlow
