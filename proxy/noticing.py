"""What is noticed of each call for the detectors: before it is judged, and when its answer came.

Nothing here judges, and nothing here can make a call fail: what cannot be noticed is logged, and
the call is then known by its head as it was sent. The reading itself is pure
(policies/detectors/noticing.py).
"""

from typing import TYPE_CHECKING

import structlog

from ledger.decoding import decoded
from policies.call import Effect, Request, ToolCall, Traits
from policies.detectors import answers, noticing
from policies.detectors.learning import ANSWER_BYTES_MAX, Learned
from policies.detectors.noticing import Told
from policies.detectors.volatile import HASHED_BYTES_MAX

if TYPE_CHECKING:
    from proxy.live import Live

log = structlog.get_logger()


class Beginning:
    """The first bytes of an answer, as they came: no more than count. `coding` is the value of its
    Content-Encoding."""

    __slots__ = ("body", "coding")

    def __init__(self, coding: str) -> None:
        self.coding = coding
        self.body = bytearray()

    def add(self, chunk: bytes | bytearray) -> None:
        left_bytes = HASHED_BYTES_MAX - len(self.body)
        if left_bytes > 0:
            self.body += chunk if len(chunk) <= left_bytes else chunk[:left_bytes]


def traits(request: Request, call: ToolCall, call_id: str, at_us: int) -> Traits:
    """What the detectors know it by, as the tool that it is known to mean. Never raises."""
    try:
        found = noticing.traits(request, call, at_us)
        if not found.mark and request.header(noticing.MARK_HEADER) is not None:
            log.debug("progress.unread", call=call_id)
    except Exception as failure:
        log.error("call.not_noticed", call=call_id, exc_info=failure)
        return Traits(noticing.unread(request, call))
    return found


def beginning(live: "Live", coding: str) -> Beginning | None:
    """What keeps the beginning of an answer whose head came. What a model says is never compared:
    its calls count by what they cost, and by the calls between them."""
    return None if live.call.effect is Effect.MODEL else Beginning(coding)


class Noticing:
    """Of one gate: it remembers what it learned of each tool's answers."""

    def __init__(self) -> None:
        self._learned = Learned()

    def heard(self, live: "Live", status: int | None, *, is_over: bool) -> Told:
        """What its answer told; nothing of a call whose answer never came, of a WebSocket and of a
        model's. `is_over` is False where its answer still flows. Never raises."""
        kept, live.beginning = live.beginning, None
        if kept is None or status is None:
            return Told()
        try:
            if not is_over and not live.answer_bytes:  # a long one, which nobody has seen yet
                told = Told(noticing.unknown(live.call_id))
            else:
                told = self._told(live, kept, status)
        except Exception as failure:
            log.error("answer.not_noticed", call=live.call_id, exc_info=failure)
            told = Told(live.digest.digest())
        if live.request.streamed:
            return Told(noticing.with_body(told.digest, live.body_digest), told.failed)
        return told

    def _told(self, live: "Live", kept: Beginning, status: int) -> Told:
        call, whole_bytes = live.call, live.answer_bytes
        body = bytes(live.answer[:HASHED_BYTES_MAX] if live.answer is not None else kept.body)
        is_cut = whole_bytes > len(body)
        if kept.coding:
            plain = decoded(body, kept.coding, HASHED_BYTES_MAX)
            if plain is not None:
                body, is_cut = plain.body, plain.is_cut
        told = noticing.result(
            status,
            body,
            call.dialect,
            longer_bytes=whole_bytes if is_cut else None,
            left_out=self._learned.left_out(call.tool),
        )
        if not is_cut and live.action:
            self._learned.feed(
                call.tool,
                live.action,
                told.digest,
                lambda: (
                    answers.message(body, call.dialect) if len(body) <= ANSWER_BYTES_MAX else None
                ),
            )
        return told
