"""What a model call took and what it cost, for the record: its answer is metered as it flows by.

Nothing here judges or stops a call. Whatever fails here is logged once for that call and leaves it
without tokens or without a cost; what it cost is never guessed.
"""

from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING

import structlog

from ledger.records import Outcome
from policies.meter.meter import Meter
from policies.meter.usage import Usage
from policies.model_request import read_model_request
from policies.prices import Prices, UnknownModelError

if TYPE_CHECKING:
    from proxy.gate import Live

log = structlog.get_logger()


def shipped_prices() -> Prices:
    """The price list of this version, from its package. About 80 ms: load it once, at the start."""
    return Prices.load(files("policies").joinpath("prices.json").read_bytes())


class Metering:
    """Of one model call, from the head of its answer on. No method raises.

    `content_type` is the answer's. Without `prices` tokens are told and nothing is priced.
    """

    __slots__ = ("_live", "_meter", "_prices")

    def __init__(self, live: "Live", content_type: str, prices: Prices | None) -> None:
        self._live = live
        self._prices = prices
        self._meter: Meter | None = None
        try:
            # What was asked for is read only if the answer names no model that the list knows.
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

    def metered(self, outcome: Outcome) -> Outcome:
        """The outcome with the tokens that the answer told, and their cost in micro-dollars."""
        if self._meter is None:
            return outcome
        try:
            usage = _told(self._meter)
            if usage is None:
                self._not_told(outcome)
                return outcome
            return replace(
                outcome,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cost_microusd=self._cost_microusd(usage, outcome.at_us),
            )
        except Exception as failure:
            self._failed(failure)
            return outcome

    def _cost_microusd(self, usage: Usage, at_us: int) -> int | None:
        """None if the list has no price for it: under the name that was told, or as asked for."""
        if self._prices is None:
            return None
        request = self._live.request
        day = datetime.fromtimestamp(at_us // 1_000_000, UTC).date().isoformat()
        url = f"{request.scheme}://{request.host}{request.path}"
        # A gateway that the list does not know bills what the maker of the API would.
        seller = self._prices.provider_at(url) or self._live.tool.model_api or ""
        if usage.model:
            try:
                return self._prices.cost_microusd(seller, usage.model, usage, day)
            except UnknownModelError:
                pass  # a deployment or a profile may be listed as it was asked for
        asked = read_model_request(request.path, request.body)
        model = asked.model if asked else ""
        try:
            return self._prices.cost_microusd(seller, model, usage, day)
        except UnknownModelError as unknown:
            names = {"model": usage.model or model, "asked": model}
            log.warning("model.unpriced", call=self._live.call_id, why=str(unknown), **names)
            return None

    def _not_told(self, outcome: Outcome) -> None:
        """Refusals and breaks of a provider cost nothing and say nothing; a good answer should."""
        status = outcome.status
        if status is not None and 200 <= status < 300:
            log.info("model.unmetered", call=self._live.call_id, host=self._live.request.host)

    def _failed(self, failure: Exception) -> None:
        self._meter = None
        log.error("model.not_metered", call=self._live.call_id, exc_info=failure)


def _told(meter: Meter) -> Usage | None:
    """What was told; of an answer that went on or broke off after it, with what was seen since."""
    usage = meter.usage()
    if usage is None or meter.is_final:
        return usage
    return meter.so_far(usage.input_tokens)
