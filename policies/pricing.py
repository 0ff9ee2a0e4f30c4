"""What a policy says of money: its own prices of models, then the shipped list, then one rate for
models that nobody knows; and what a call of a tool costs.

No request and no answer is read here (`costs.py` does); all sums are micro-dollars, rounded up.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from math import ceil
from typing import Literal

from policies.ceilings import MICRO
from policies.meter.usage import Usage
from policies.model_names import NAME_CHARACTERS_MAX
from policies.prices import (
    Rates,
    UnknownModelError,
    cost_at,
    expected,
    flat_rates,
    shipped_prices,
)

# Per million tokens. Of the models that are listed hardly one is dearer: it errs upwards.
UNKNOWN_MODEL_MICROUSD = 100 * MICRO
ANSWER_TOKENS = 32_768  # reserved for an answer whose length the request does not bound
# Reserved for what a request makes a model read without sending it (an earlier answer, a file, a
# picture elsewhere): as much as most models can read.
STORED_TOKENS = 128_000
MICROUSD_MAX = 10**15  # of one call; sums of it stay within 64 bits


@dataclass(frozen=True, slots=True)
class Priced:
    """What a model call costs. `is_known` is False where no price was found and the policy's rate
    for unknown models is charged: people must hear of it."""

    tokens: int
    microusd: int
    is_known: bool


@dataclass(frozen=True, slots=True)
class OwnPrice:
    """A price that the policy states: of the models that a glob names (in lower case), at one
    provider of the list, or at any."""

    model: str
    provider: str
    rates: Rates


@dataclass(frozen=True, slots=True)
class Pricing:
    """How model calls are priced: by the first price that fits and has one for all that was used.

    The list is loaded when it is first asked for, so that a policy is quickly checked.
    """

    own: tuple[OwnPrice, ...] = ()
    unknown_model_microusd: int = UNKNOWN_MODEL_MICROUSD
    default_max_tokens: int = ANSWER_TOKENS

    def provider_at(self, url: str) -> str | None:
        """Who bills for calls to this URL; None if the list knows nobody there."""
        return shipped_prices().provider_at(url)

    def cost(self, provider: str, models: Sequence[str], usage: Usage, day: str = "") -> Priced:
        """What was used. `models` are the names it may be listed by, the best first; `day` is when
        the call was made (2026-11-22)."""
        tokens = usage.input_tokens + usage.output_tokens
        for rates in self._found(provider, models, day, usage.tier):
            try:
                return Priced(tokens, cost_at(rates, usage), True)
            except UnknownModelError:
                continue  # a kind of token was used that has no price there
        return Priced(tokens, cost_at(flat_rates(self.unknown_model_microusd), usage), False)

    def estimate(self, provider: str, model: str, input_tokens: int, max_tokens: int) -> Priced:
        """What a call may cost that sends so many tokens and is answered with so many."""
        rates = next(self._found(provider, (model,), "", ""), None)
        used = rates or flat_rates(self.unknown_model_microusd)
        usage = expected(used, input_tokens, max_tokens)
        tokens = usage.input_tokens + usage.output_tokens
        return Priced(tokens, cost_at(used, usage), rates is not None)

    def _found(self, provider: str, models: Sequence[str], day: str, tier: str) -> Iterator[Rates]:
        for model in models:
            yield from self._own(provider, model)
        for model in models:
            try:
                yield shipped_prices().rates(provider, model, day, tier)
            except UnknownModelError:
                continue

    def _own(self, provider: str, model: str) -> Iterator[Rates]:
        if not model or len(model) > NAME_CHARACTERS_MAX:
            return
        name = model.lower()
        for price in self.own:
            if price.provider in ("", provider) and fnmatchcase(name, price.model):
                yield price.rates


@dataclass(frozen=True, slots=True)
class ToolCost:
    """What a call of a tool costs beside the tokens of a model: always the same (`microusd`), or an
    amount times `scale` in dollars. `path` leads to it in the request or in the answer's body, as
    paths of conditions do; where it leads to several, they are added up.

    `reserve_microusd` is held until the answer is read; `max_microusd` is charged where the request
    cannot be read, and None refuses it.
    """

    microusd: int = 0
    source: Literal["request", "response"] | None = None
    path: str = ""
    scale: Decimal = Decimal(1)
    reserve_microusd: int = 0
    max_microusd: int | None = None

    def of(self, amount: Fraction) -> int:
        """Micro-dollars of an amount that is not negative; never more than MICROUSD_MAX."""
        return min(ceil(amount * Fraction(self.scale) * MICRO), MICROUSD_MAX)
