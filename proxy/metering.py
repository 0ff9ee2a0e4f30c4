"""What a call took and what it cost, for the record: a model's answer is metered as it flows by.

Nothing here judges or stops a call. Whatever fails here is logged once for that call: then nobody
knows what its answer told, and it is taken for as many tokens as its bytes may hold.
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from ledger.records import Outcome
from ledger.states import CallState
from policies import costs
from policies.meter.meter import EVENT_STREAM, SERVER_SENT_EVENTS, TOKEN_BYTES, Meter
from policies.meter.usage import TOKENS_MAX, Usage
from proxy import logs

if TYPE_CHECKING:
    from proxy.live import Live

log = structlog.get_logger()


class Metering:
    """Of one model call, from the head of its answer on. No method raises.

    `content_type` and `coding` are the answer's. What is coded (gzip, br) cannot be read.
    `has_failed` is by our own fault.
    """

    __slots__ = ("_live", "_meter", "has_failed", "is_stream")

    def __init__(self, live: "Live", content_type: str, coding: str = "") -> None:
        self._live = live
        self._meter: Meter | None = None
        self.has_failed = False
        kind = content_type.partition(";")[0].strip().lower()
        self.is_stream = kind in (SERVER_SENT_EVENTS, EVENT_STREAM)
        if coding.strip().lower() not in ("", "identity"):
            return
        try:
            # What was asked for is read only if the answer names no model that has a price.
            self._meter = Meter(content_type, "")
        except Exception as failure:
            self._failed(failure)

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the answer."""
        if self._meter is None:
            return
        try:
            self._meter.feed(chunk)
        except Exception as failure:
            self._failed(failure)

    def is_final(self, *, is_whole: bool) -> bool:
        """Whether what was told is all that the call came to: of an answer that came to its end, or
        said that it did. What a provider thinks unseen is in no other."""
        try:
            meter = self._meter
            return meter is not None and meter.is_final and (is_whole or meter.is_closed)
        except Exception as failure:
            self._failed(failure)
            return False

    def told(self) -> Usage | None:
        """What was told; of an answer that went on or broke off after it, with what was seen since.
        None if nothing was, or nothing that can be read."""
        if self._meter is None:
            return None
        try:
            usage = self._meter.usage()
            if usage is None or self._meter.is_final:
                return usage
            return self._meter.so_far(usage.input_tokens)
        except Exception as failure:
            self._failed(failure)
            return None

    def so_far(self, input_tokens: int) -> Usage:
        """What a running stream came to: as told, else by what was seen. `input_tokens` is the
        estimate of what it was asked with."""
        try:
            if self._meter is not None:
                return self._meter.so_far(input_tokens)
        except Exception as failure:
            self._failed(failure)
        given = min(-(-self._live.answer_bytes // TOKEN_BYTES), TOKENS_MAX)
        return Usage("", input_tokens, 0, 0, given, 0)

    def seen(self, input_tokens: int) -> Usage | None:
        """By what was seen of an answer that told nothing; None if no words were."""
        if self._meter is None or not self._meter.output_bytes:
            return None
        return self.so_far(input_tokens)

    def _failed(self, failure: Exception) -> None:
        self._meter, self.has_failed = None, True
        log.error("model.not_metered", call=self._live.call_id, exc_info=failure)


def day_of(at_us: int) -> str:
    """The day in UTC (2026-11-22), for prices that are known to change."""
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).date().isoformat()


def settled(live: "Live", outcome: Outcome, *, is_whole: bool) -> Outcome:
    """The outcome with what the call used, and what its answer told of that. No failure here
    keeps it from being recorded: what was reserved then stays."""
    if outcome.state is CallState.NOT_SENT or (live.asked is None and live.tool.cost is None):
        return outcome
    try:
        return _settled(live, outcome, is_whole)
    except Exception as failure:
        log.error("call.not_priced", call=live.call_id, exc_info=failure)
        return outcome


def _settled(live: "Live", outcome: Outcome, is_whole: bool) -> Outcome:
    status, metering, asked = outcome.status, live.metering, live.asked
    told = metering.told() if metering else None
    usage = told
    if usage is None and metering and asked and status is not None and status < 400:
        usage = metering.seen(asked.input_tokens)
    body = bytes(live.answer) if live.answer is not None else None
    is_final = metering is not None and metering.is_final(is_whole=is_whole)
    granted = (live.spending.tokens, live.spending.microusd) if live.spending else None
    used = costs.settled(
        live.policy,
        live.tool,
        live.request,
        live.call,
        costs.Answer(status, is_whole, usage, body, is_final, granted),
        day_of(outcome.at_us),
        asked,
    )
    if asked and not asked.is_told:
        told = None  # of work that is done later, say
    _warned(live, told, used, status)
    cost = _cost(live, told, used, status, is_whole)
    if asked and told and not is_final:
        cost = asked.cost(told, day_of(outcome.at_us)).microusd  # seen; charged may be more
    return replace(
        outcome,
        input_tokens=told.input_tokens if told else None,
        output_tokens=told.output_tokens if told else None,
        cost_microusd=cost,
        used_tokens=used.tokens,
        used_microusd=used.microusd,
    )


def _cost(
    live: "Live", told: Usage | None, used: costs.Settled, status: int | None, is_whole: bool
) -> int | None:
    """What the call is known to have cost; None if that is only an estimate."""
    if told is not None:
        return used.microusd
    if live.asked is not None or not is_whole or status is None or status >= 500:
        return None
    if used.microusd is not None:
        return used.microusd
    fixed = live.tool.cost is not None and live.tool.cost.source != "response"
    return live.call.worth.spend_microusd if fixed else None


def _warned(live: "Live", told: Usage | None, used: costs.Settled, status: int | None) -> None:
    """Refusals and breaks of a provider cost nothing and say nothing; a good answer should."""
    if live.asked is None:
        return
    if not used.is_known:
        logs.unpriced(live.call_id, told.model if told else "", live.asked.model)
    failed = live.metering is not None and live.metering.has_failed
    if told is None and not failed and status is not None and 200 <= status < 300:
        log.info("model.unmetered", call=live.call_id, host=live.request.host)
