"""What is noticed of each call for the detectors: before it is judged, and when its answer came.

Nothing here judges, and nothing here can make a call fail: what cannot be noticed is logged, and
the call is then known by its head as it was sent. The reading itself is pure
(policies/detectors/noticing.py).
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from ledger.decoding import decoded
from ledger.records import Ask, Outcome
from policies.call import Effect, Traits
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


def asked(ask: Ask) -> Ask:
    """With its traits, by the tool that it is known to mean. Never raises."""
    try:
        traits = noticing.traits(ask.request, ask.call, ask.at_us)
        if not traits.mark and ask.request.header(noticing.MARK_HEADER) is not None:
            log.debug("progress.unread", call=ask.call_id)
    except Exception as failure:
        log.error("call.not_noticed", call=ask.call_id, exc_info=failure)
        traits = Traits(noticing.unread(ask.request, ask.call))
    return replace(ask, traits=traits)


def beginning(live: "Live", coding: str) -> Beginning | None:
    """What keeps the beginning of an answer whose head came. What a model says is never compared:
    its calls count by what they cost, and by the calls between them."""
    return None if live.call.effect is Effect.MODEL else Beginning(coding)


class Noticing:
    """Of one gate: it remembers what it learned of each tool's answers."""

    def __init__(self) -> None:
        self._learned = Learned()

    def settled(self, live: "Live", outcome: Outcome, *, is_over: bool) -> Outcome:
        """The outcome with what its answer told; nothing of a call whose answer never came, of a
        WebSocket and of a model's. `is_over` is False where its answer still flows. Never raises.
        """
        kept, live.beginning = live.beginning, None
        if kept is None or outcome.status is None:
            return outcome
        try:
            if not is_over and not live.answer_bytes:  # a long one, which nobody has seen yet
                told = Told(noticing.unknown(live.call_id))
            else:
                told = self._told(live, kept, outcome.status)
        except Exception as failure:
            log.error("answer.not_noticed", call=live.call_id, exc_info=failure)
            told = Told(live.digest.digest())
        result = told.digest
        if live.request.streamed:
            result = noticing.with_body(result, live.body_digest)
        return replace(outcome, result=result, failed=told.failed)

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
