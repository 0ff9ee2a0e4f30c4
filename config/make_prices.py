"""Makes policies/prices.json from the data of genai-prices: python config/make_prices.py DATE

DATE is the day whose prices are wanted (2026-11-22), normally today. Needs genai-prices in its own
environment; pullcord does not. Prices that the data knows to change later are kept with their day.
What is left out: batches, which no answer names; prices by the hour, the page, the character. Where
a price depends on the hour of the day, the dearest is taken.
"""

import json
import sys
from collections.abc import Iterator
from datetime import date
from decimal import ROUND_CEILING, Decimal
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from genai_prices.data import providers
from genai_prices.types import (
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)

TARGET = Path(__file__).resolve().parent.parent / "policies" / "prices.json"
PACKAGE = "genai-prices"
# The data's words and ours; policies/prices.py says what ours mean.
KINDS = {
    "input_mtok": "input",
    "cache_read_mtok": "cached",
    "cache_write_mtok": "created",
    "cache_write_1h_mtok": "created_1h",
    "input_audio_mtok": "audio",
    "input_image_mtok": "image",
    "output_mtok": "output",
    "output_reasoning_mtok": "reasoning",
    "output_audio_mtok": "output_audio",
    "output_image_mtok": "output_image",
    "web_searches_kcount": "searches",
    "requests_kcount": "requests",
}
LISTS = {
    "ClauseEquals": "equals",
    "ClauseStartsWith": "starts_with",
    "ClauseEndsWith": "ends_with",
    "ClauseContains": "contains",
    "ClauseRegex": "regex",
}
TIERS = {"service_tier": {"priority", "fast", "flex"}, "speed": {"fast"}}


def microusd(price: Decimal) -> int:
    """Dollars for a million are micro-dollars for one: a million times as many for a million.

    Rounded up where the data has more digits, but for what a float left behind.
    """
    return int((price * 1_000_000).quantize(Decimal("0.001")).to_integral_value(ROUND_CEILING))


def rates(prices: ModelPrice) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for theirs, ours in KINDS.items():
        price = getattr(prices, theirs)
        if isinstance(price, TieredPrices):
            steps = [[tier.start, microusd(tier.price)] for tier in price.tiers]
            found[ours] = [microusd(price.base), *steps]
        elif price is not None:
            found[ours] = microusd(price)
    return found


def rule(clause: Any) -> dict[str, Any]:
    kind = type(clause).__name__
    if kind in LISTS:
        name = LISTS[kind]
        text = getattr(clause, name)
        return {name: [text if name == "regex" else text.lower()]}
    if kind == "ClauseAnd":
        return {"all": [rule(one) for one in clause.and_]}
    merged: dict[str, Any] = {}
    for one in clause.or_:
        for name, texts in rule(one).items():
            if name == "all" and name in merged:
                raise ValueError(f"two ands in one or: {clause}")
            merged[name] = merged.get(name, []) + texts
    return merged


def dearer(one: Any, other: Any) -> Any:
    pair = [price if isinstance(price, list) else [price] for price in (one, other)]
    return max(pair[0], pair[1], key=lambda price: price[0]) if one != other else one


def on(model: ModelInfo, day: date) -> dict[str, Any]:
    """The prices of a day: of the conditions that hold, the last; dearer ones by the hour too."""
    if isinstance(model.prices, ModelPrice):
        return rates(model.prices)
    held: list[dict[str, Any]] = []
    for one in reversed(model.prices):
        if isinstance(one.constraint, TimeOfDateConstraint):
            held.append(rates(one.prices))
        elif one.constraint is None or one.constraint.start_date <= day:
            held.append(rates(one.prices))
            break
    else:
        held.append(rates(model.prices[0].prices))
    merged = held[-1]
    for prices in held[:-1]:
        merged = {kind: dearer(merged.get(kind, rate), rate) for kind, rate in prices.items()}
    return merged


def changes(model: ModelInfo, day: date) -> Iterator[date]:
    if isinstance(model.prices, list):
        for one in model.prices:
            if isinstance(one.constraint, StartDateConstraint) and one.constraint.start_date > day:
                yield one.constraint.start_date


def tiers(model: ModelInfo, day: date) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variant in model.price_variants or []:
        [(what, value), *more] = variant.when.items()
        starts = variant.constraint
        is_held = starts is None or (
            isinstance(starts, StartDateConstraint) and starts.start_date <= day
        )
        if not more and value in TIERS.get(what, ()) and is_held:
            found.setdefault(value, rates(variant.prices))
    return found


def entry(model: ModelInfo, day: date) -> dict[str, Any]:
    """Models whose tokens have no price are listed too: their names must match no other entry."""
    found: dict[str, Any] = {
        "id": model.id,
        "match": rule(model.match),
        "prices": on(model, day),
    }
    if later := {str(start): on(model, start) for start in sorted(set(changes(model, day)))}:
        found["later"] = later
    if dear := tiers(model, day):
        found["tiers"] = dear
    return found


def provider_text(provider: Provider, day: date) -> str:
    """One line a model, so that a new list can be compared with the old one."""
    models = [json.dumps(entry(model, day), separators=(",", ":")) for model in provider.models]
    lines = ",\n".join(f"    {model}" for model in models)
    also = provider.fallback_model_providers or []
    head = f'   "url":{json.dumps(provider.api_pattern)},"also":{json.dumps(also)},"models":['
    return f"  {json.dumps(provider.id)}:{{\n{head}\n{lines}\n   ]}}"


def main(day: date) -> None:
    package = distribution(PACKAGE)
    [license_file] = [file for file in package.files or [] if file.name == "LICENSE"]
    head = {
        "about": "Prices of models. Made by config/make_prices.py; not for editing by hand.",
        "unit": "micro-dollars for a million tokens, or for a thousand searches or requests; "
        "[price, [more input than, price]] where the price depends on the call's input",
        "date": str(day),
        "source": {
            "package": PACKAGE,
            "version": package.version,
            "url": "https://github.com/pydantic/genai-prices",
            "license": "MIT",
            "license_text": license_file.read_text().splitlines(),
        },
    }
    listed = ",\n".join(provider_text(provider, day) for provider in providers)
    opening = json.dumps(head, indent=1).removesuffix("\n}")
    TARGET.write_text(f'{opening},\n "providers":{{\n{listed}\n }}\n}}\n', "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(date.fromisoformat(sys.argv[1]))
