"""Prices: what usage costs, in integer micro-dollars, by the list in prices.json beside it.

No floats: prices are integers (micro-dollars for a million tokens, or for a thousand searches or
requests) and a cost is rounded up once. What a policy says beside the list, and what it charges for
a model that nobody knows, is in `pricing.py`; nothing is ever free because it is unknown.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import orjson

from policies.meter.usage import TOKENS_MAX, Usage
from policies.model_names import NameIndex, Rule

TOKEN_BYTES = 3  # of input for one token, before the call: design's rule, which errs upwards

_MILLION = 1_000_000
_SEARCHES_TO_MILLION = 1_000  # searches and requests are priced by the thousand

# The members of a price: kinds of input, kinds of output, what is counted by the thousand.
_KINDS = frozenset({
    "input", "cached", "created", "created_1h", "audio", "image",
    "output", "reasoning", "output_audio", "output_image",
    "searches", "requests",
})  # fmt: skip

_OUTPUTS = frozenset({"output", "output_audio", "output_image"})

_HOST_END = ("", "/", ":", "?", "#")

# Some gateways write gpt-5.2-20251211 for gpt-5.2-2025-12-11.
_COMPACT_DATE = re.compile(r"-(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")

# (from how many input tokens on, micro-dollars for a million); the first begins at none.
Rate = tuple[tuple[int, int], ...]
Rates = Mapping[str, Rate]


class UnknownModelError(LookupError):
    """The list has no price for this model, or none for a kind of token that it used."""


class PriceListError(ValueError):
    """The price list is not one: make it again with config/make_prices.py."""


@dataclass(frozen=True, slots=True)
class _Model:
    rates: Rates
    later: tuple[tuple[str, Rates], ...]  # the day from which other rates hold, the last one first
    tiers: Mapping[str, Rates]  # what differs in a service tier

    def on(self, day: str) -> Rates:
        return next((rates for begin, rates in self.later if begin <= day), self.rates)


@dataclass(frozen=True, slots=True)
class _Provider:
    url: re.Pattern[str]
    also: tuple[str, ...]  # providers whose models it serves, too
    names: NameIndex
    models: tuple[_Model, ...]


@dataclass(frozen=True, slots=True)
class Prices:
    """`date` is the day whose prices these are, `source` whose data they are and its licence."""

    date: str
    source: str
    providers: Mapping[str, _Provider]

    @staticmethod
    def load(text: bytes | str) -> "Prices":
        """Raises PriceListError."""
        try:
            raw = orjson.loads(text)
            source, providers = raw["source"], raw["providers"]
            return Prices(
                date=str(raw["date"]),
                source=f"{source['package']} {source['version']} ({source['license']})",
                providers={name: _provider(one, providers) for name, one in providers.items()},
            )
        except (ValueError, LookupError, TypeError, AttributeError, re.error) as fault:
            raise PriceListError(
                f"the price list cannot be read ({fault}); make it again: "
                "python config/make_prices.py DATE"
            ) from None

    def provider_at(self, url: str) -> str | None:
        """Who bills for calls to this URL; None if the list knows nobody there."""
        for name, one in self.providers.items():
            # The list's expressions leave open where the host ends.
            found = one.url.match(url)
            if found and (
                found[0].endswith("/") or url[found.end() : found.end() + 1] in _HOST_END
            ):
                return name
        return None

    def cost_microusd(self, provider: str, model: str, usage: Usage, day: str = "") -> int:
        """What a call cost, rounded up to a micro-dollar.

        `day` (2026-11-22) is when it was made, for prices that are known to change; the list's own
        date if empty. Raises UnknownModelError.
        """
        return cost_at(self.rates(provider, model, day, usage.tier), usage)

    def estimate_microusd(
        self, provider: str, model: str, input_bytes: int, max_tokens: int, day: str = ""
    ) -> int:
        """What a call may cost that sends so many bytes and may be answered with so many tokens.

        Raises UnknownModelError.
        """
        rates = self.rates(provider, model, day)
        return cost_at(rates, expected(rates, input_tokens(input_bytes), max_tokens))

    def rates(self, provider: str, model: str, day: str = "", tier: str = "") -> Rates:
        """What kinds of tokens cost, on a day and in a service tier. Raises UnknownModelError."""
        seller = self.providers.get(provider)
        if seller is None:
            raise UnknownModelError(f"no prices of {provider!r}")
        found = self._find(seller, model)
        if found is None:
            raise UnknownModelError(f"no price of {model[:80]!r} at {provider!r}")
        is_own, one = found
        if not (rates := one.on(day or self.date)):
            raise UnknownModelError(f"no price of {model[:80]!r} by its tokens")
        # What others serve has no tiers of theirs.
        return {**rates, **one.tiers[tier]} if is_own and tier in one.tiers else rates

    def _find(self, seller: _Provider, model: str) -> tuple[bool, _Model] | None:
        names = (model, _COMPACT_DATE.sub(r"-\1-\2-\3", model))
        sellers = [seller, *(self.providers[name] for name in seller.also)]
        for name in names if names[0] != names[1] else names[:1]:
            for one in sellers:
                if (number := one.names.find(name)) is not None:
                    return one is seller, one.models[number]
        return None


@cache
def shipped_prices() -> Prices:
    """The list of this version, from its package. The first call takes about 80 ms: programs make
    it at their start."""
    return Prices.load(files("policies").joinpath("prices.json").read_bytes())


def input_tokens(input_bytes: int) -> int:
    """An estimate made before a call, from how much is sent."""
    return min(-(-max(input_bytes, 0) // TOKEN_BYTES), TOKENS_MAX)


def expected(rates: Rates, input_tokens: int, max_tokens: int) -> Usage:
    """What a call may use that is answered with so many tokens: those of pictures and of speech
    where the model makes such. One whose output has no price, as of embeddings, answers with none.
    """
    has_output = not _OUTPUTS.isdisjoint(rates)
    given = max(0, min(max_tokens, TOKENS_MAX)) if has_output else 0
    return Usage(
        "", input_tokens, 0, 0, given, 0, output_audio_tokens=given, output_image_tokens=given
    )


def flat_rates(microusd_per_million: int) -> Rates:
    """One price for every token, as a policy may set it for unknown models."""
    rate: Rate = ((0, microusd_per_million),)
    return {"input": rate, "output": rate}


def cost_at(rates: Rates, usage: Usage) -> int:
    """Micro-dollars, rounded up. Raises UnknownModelError if tokens were used that `rates` have
    no price for."""
    owed = _input(rates, usage) + _output(rates, usage)
    for kind, number in (("searches", usage.web_searches), ("requests", 1)):
        if kind in rates:
            owed += number * _at(rates[kind], usage.input_tokens) * _SEARCHES_TO_MILLION
    return -(-owed // _MILLION)


def _provider(raw: Mapping[str, Any], providers: Mapping[str, Any]) -> _Provider:
    models, also = raw["models"], tuple(raw.get("also", ()))
    if not providers.keys() >= set(also):
        raise ValueError("`also` names a provider that is not in the list")
    return _Provider(
        url=re.compile(raw["url"]),
        also=also,
        names=NameIndex.of([Rule.read(model["match"]) for model in models]),
        models=tuple(_model(model) for model in models),
    )


def _model(raw: Mapping[str, Any]) -> _Model:
    later = raw.get("later", {})
    return _Model(
        rates=_read_rates(raw["prices"]),
        later=tuple((day, _read_rates(later[day])) for day in sorted(later, reverse=True)),
        tiers={name: _read_rates(rates) for name, rates in raw.get("tiers", {}).items()},
    )


def _read_rates(raw: object) -> Rates:
    if not isinstance(raw, dict) or raw.keys() - _KINDS:
        raise ValueError(f"a price has the members {', '.join(sorted(_KINDS))}, not {raw!r:.80}")
    return {kind: _read_rate(rate) for kind, rate in raw.items()}


def _read_rate(raw: object) -> Rate:
    """A number, or a list of the number and then of pairs: from which input on, which number."""
    base, *steps = raw if isinstance(raw, list) else [raw]
    rate = []
    for step in ([0, base], *steps):
        begin, price = step
        if type(begin) is not int or type(price) is not int or begin < 0 or price < 0:
            raise ValueError(f"a price is a whole number of micro-dollars, not {raw!r:.80}")
        rate.append((begin, price))
    return tuple(sorted(rate))


def _at(rate: Rate, input_tokens: int) -> int:
    """A step counts for all tokens of a call whose input is larger, not only for those above."""
    return next((price for begin, price in reversed(rate) if input_tokens > begin or not begin), 0)


def _input(rates: Rates, usage: Usage) -> int:
    """A part without a price of its own costs what the whole does. Where parts overlap, as in
    cached audio, a token is charged once, as the first of these that it may be: the dearer."""
    total, hour = usage.input_tokens, usage.cache_creation_1h_tokens
    if "created_1h" not in rates:
        hour = 0
    parts = (
        ("created_1h", hour),
        ("created", usage.cache_creation_tokens - hour),
        ("audio", usage.input_audio_tokens),
        ("image", usage.input_image_tokens),
        ("cached", usage.cached_input_tokens),
    )
    return _charged(rates, parts, "input", total, total)


def _output(rates: Rates, usage: Usage) -> int:
    parts = (
        ("output_image", usage.output_image_tokens),
        ("output_audio", usage.output_audio_tokens),
        ("reasoning", usage.reasoning_tokens),
    )
    return _charged(rates, parts, "output", usage.output_tokens, usage.input_tokens)


def _charged(
    rates: Rates, parts: tuple[tuple[str, int], ...], whole: str, total: int, input_tokens: int
) -> int:
    owed, left = 0, total
    for kind, number in parts:
        if kind in rates:
            number = min(max(number, 0), left)
            left -= number
            owed += number * _at(rates[kind], input_tokens)
    if not left:
        return owed
    if whole not in rates:
        raise UnknownModelError(f"no price of {whole} tokens")
    return owed + left * _at(rates[whole], input_tokens)
