"""Costs in micro-dollars: tiers, days, parts; and the price list that is shipped.

What whole answers cost is in tests/cases/usage.yaml (test_meter.py).
"""

import json
from dataclasses import replace
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.meter.usage import TOKENS_MAX, Usage
from policies.prices import (
    PriceListError,
    Prices,
    UnknownModelError,
    cost_at,
    flat_rates,
    shipped_prices,
)

SHIPPED_PATH = Path(__file__).parents[2] / "policies" / "prices.json"
SHIPPED_TEXT = SHIPPED_PATH.read_bytes()
SHIPPED = shipped_prices()


def a_list(*models: dict[str, Any], **provider: Any) -> dict[str, Any]:
    made = {"url": "https://shop/", "models": list(models), **provider}
    source = {"package": "p", "version": "1", "license": "MIT"}
    return {"date": "2026-11-22", "source": source, "providers": {"shop": made}}


def a_model(name: str = "m", **members: Any) -> dict[str, Any]:
    return {"match": {"equals": [name]}, "prices": {"input": 1, "output": 1}, **members}


def load(raw: dict[str, Any]) -> Prices:
    return Prices.load(json.dumps(raw))


def a_usage(**numbers: Any) -> Usage:
    none = Usage("m", 0, 0, 0, 0, 0)
    return replace(none, **numbers)


# ---------------------------------------------------------------------------- costs


def cost(prices: dict[str, Any], usage: Usage) -> int:
    return load(a_list(a_model(prices=prices))).cost_microusd("shop", "m", usage)


def test_a_fraction_is_rounded_up_once() -> None:
    # 1 x 0.3 + 1 x 0.3 = 0.6, and not 1 + 1
    prices = {"input": 300_000, "output": 300_000}
    assert cost(prices, a_usage(input_tokens=1, output_tokens=1)) == 1
    # 3 x 0.3 + 1 x 0.3 = 1.2
    assert cost(prices, a_usage(input_tokens=3, output_tokens=1)) == 2
    assert cost(prices, a_usage()) == 0


@pytest.mark.parametrize(
    "input_tokens,expected", [(1000, 1000), (1001, 2002), (5000, 10_000), (5001, 15_003)]
)
def test_a_step_counts_for_all_tokens_above_it(input_tokens: int, expected: int) -> None:
    prices = {"input": [1_000_000, [5000, 3_000_000], [1000, 2_000_000]], "output": 0}
    assert cost(prices, a_usage(input_tokens=input_tokens)) == expected


def test_the_step_of_the_output_depends_on_the_input() -> None:
    prices = {"input": 0, "output": [1_000_000, [100, 4_000_000]]}
    assert cost(prices, a_usage(input_tokens=100, output_tokens=1000)) == 1000
    assert cost(prices, a_usage(input_tokens=101, output_tokens=10)) == 40


def test_a_part_without_a_price_costs_what_the_whole_does() -> None:
    usage = a_usage(
        input_tokens=100, cached_input_tokens=40, cache_creation_tokens=20,
        cache_creation_1h_tokens=10, output_tokens=50, reasoning_tokens=30,
    )  # fmt: skip
    assert cost({"input": 2_000_000, "output": 3_000_000}, usage) == 200 + 150
    # The hour's part of what is written has no price of its own: it costs what is written.
    prices = {"input": 2_000_000, "cached": 0, "created": 5_000_000, "output": 3_000_000}
    assert cost(prices, usage) == 40 * 2 + 20 * 5 + 150
    assert cost({**prices, "reasoning": 10_000_000}, usage) == 80 + 100 + 20 * 3 + 30 * 10


def test_a_token_that_is_in_two_parts_is_charged_once_as_the_dearer() -> None:
    prices = {"input": 2_000_000, "cached": 1_000_000, "audio": 9_000_000, "output": 0}
    usage = a_usage(input_tokens=100, cached_input_tokens=80, input_audio_tokens=60)
    assert cost(prices, usage) == 60 * 9 + 40 * 1


def test_searches_and_requests_are_counted_by_the_thousand() -> None:
    prices = {"input": 0, "output": 0, "searches": 10_000_000, "requests": 5_000_000}
    assert cost(prices, a_usage(web_searches=3)) == 3 * 10_000 + 5_000


def test_tokens_without_a_price_are_not_free() -> None:
    embeddings = {"input": 20_000}
    assert cost(embeddings, a_usage(input_tokens=100)) == 2
    with pytest.raises(UnknownModelError):
        cost(embeddings, a_usage(input_tokens=100, output_tokens=1))
    with pytest.raises(UnknownModelError):
        cost({}, a_usage())


def test_a_tier_changes_what_it_names_and_others_change_nothing() -> None:
    prices = load(
        a_list(a_model(tiers={"priority": {"input": 4_000_000}}, prices={
            "input": 2_000_000, "output": 3_000_000,
        }))
    )  # fmt: skip
    usage = a_usage(input_tokens=10, output_tokens=10)
    for tier, expected in (("", 50), ("priority", 70), ("unheard of", 50)):
        assert prices.cost_microusd("shop", "m", replace(usage, tier=tier)) == expected


def test_what_another_provider_serves_has_its_prices_without_its_tiers() -> None:
    raw = a_list(a_model(tiers={"priority": {"input": 9_000_000}}))
    raw["providers"]["reseller"] = {"url": "https://r/", "also": ["shop"], "models": []}
    usage = a_usage(input_tokens=1_000_000, tier="priority")
    assert load(raw).cost_microusd("shop", "m", usage) == 9_000_000
    assert load(raw).cost_microusd("reseller", "m", usage) == 1


def test_prices_that_change_later_hold_from_their_day() -> None:
    later = {"2026-12-01": {"input": 2_000_000}, "2027-01-01": {"input": 3_000_000}}
    prices = load(a_list(a_model(prices={"input": 1_000_000}, later=later)))
    usage = a_usage(input_tokens=10)
    for day, expected in (
        ("", 10), ("2026-11-30", 10), ("2026-12-01", 20), ("2026-12-31", 20), ("2030-01-01", 30),
    ):  # fmt: skip
        assert prices.cost_microusd("shop", "m", usage, day) == expected


def test_an_unknown_model_is_said_to_be_unknown() -> None:
    prices = load(a_list(a_model()))
    for provider, model in (("shop", "other"), ("nobody", "m"), ("shop", "m" * 300), ("shop", "")):
        with pytest.raises(UnknownModelError):
            prices.cost_microusd(provider, model, a_usage())
        with pytest.raises(LookupError):
            prices.estimate_microusd(provider, model, 1, 1)


def test_a_compact_date_finds_the_model_of_that_date() -> None:
    prices = load(a_list(a_model("m-2025-12-11")))
    assert prices.cost_microusd("shop", "M-20251211", a_usage(input_tokens=1_000_000)) == 1
    with pytest.raises(UnknownModelError):
        prices.cost_microusd("shop", "m-20251311", a_usage())


@given(
    st.integers(0, TOKENS_MAX), st.integers(0, TOKENS_MAX), st.integers(0, 10**9),
    st.integers(0, 10**9), st.integers(0, 10**9),
)  # fmt: skip
def test_integers_cost_what_decimals_do(
    input_tokens: int, cached: int, price: int, cached_price: int, output_price: int
) -> None:
    cached = min(cached, input_tokens)
    usage = a_usage(input_tokens=input_tokens, cached_input_tokens=cached, output_tokens=cached)
    rates = {
        kind: ((0, rate),)
        for kind, rate in (("input", price), ("cached", cached_price), ("output", output_price))
    }
    exact = sum(
        Decimal(tokens) * Decimal(rate) / 1_000_000
        for tokens, rate in (
            (input_tokens - cached, price), (cached, cached_price), (cached, output_price),
        )
    )  # fmt: skip
    assert cost_at(rates, usage) == int(Decimal(exact).to_integral_value(ROUND_CEILING))


def test_one_rate_for_unknown_models() -> None:
    usage = a_usage(input_tokens=100, cached_input_tokens=90, output_tokens=10)
    assert cost_at(flat_rates(15_000_000), usage) == 110 * 15


# ---------------------------------------------------------------------------- before the call


def test_the_estimate_takes_three_bytes_for_a_token_and_all_that_may_be_answered() -> None:
    prices = load(a_list(a_model(prices={"input": 2_000_000, "output": 5_000_000})))
    assert prices.estimate_microusd("shop", "m", 301, 1000) == 101 * 2 + 1000 * 5
    assert prices.estimate_microusd("shop", "m", 0, 0) == 0
    assert prices.estimate_microusd("shop", "m", -5, -5) == 0


def test_embeddings_are_estimated_by_their_input() -> None:
    prices = load(a_list(a_model(prices={"input": 2_000_000})))
    assert prices.estimate_microusd("shop", "m", 300, 4096) == 200


def test_pictures_and_speech_are_estimated_at_their_own_price() -> None:
    """Nobody can say before what a model will answer with that makes them."""
    prices = {"input": 0, "output": 2_000_000, "output_image": 30_000_000}
    assert load(a_list(a_model(prices=prices))).estimate_microusd("shop", "m", 0, 10) == 300
    prices = {"input": 0, "output_audio": 8_000_000}
    assert load(a_list(a_model(prices=prices))).estimate_microusd("shop", "m", 0, 10) == 80


# ---------------------------------------------------------------------------- the list


def test_the_shipped_list_is_loaded_once() -> None:
    assert shipped_prices() is shipped_prices()
    assert shipped_prices().date == Prices.load(SHIPPED_TEXT).date


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "{}", json.dumps({**a_list(), "providers": []}),
     json.dumps(a_list(a_model(prices={"input": 1.5}))),
     json.dumps(a_list(a_model(prices={"input": -1}))),
     json.dumps(a_list(a_model(prices={"input": True}))),
     json.dumps(a_list(a_model(prices={"input": [1, [2]]}))),
     json.dumps(a_list(a_model(prices={"inptu": 1}))),
     json.dumps(a_list(a_model(match={"equal": ["m"]}))),
     json.dumps(a_list(a_model(match={"equals": "m"}))),
     json.dumps(a_list(a_model(match={"regex": ["("]}))),
     json.dumps(a_list(a_model(), also=["nobody"]))],
)  # fmt: skip
def test_a_broken_list_is_an_error_that_says_what_to_type(text: str) -> None:
    with pytest.raises(PriceListError, match=r"config/make_prices\.py"):
        Prices.load(text)


def test_the_shipped_list_says_whose_data_it_is_and_of_which_day() -> None:
    raw = json.loads(SHIPPED_TEXT)
    assert raw["source"]["package"] == "genai-prices"
    assert "Permission is hereby granted" in " ".join(raw["source"]["license_text"])
    assert SHIPPED.source == f"genai-prices {raw['source']['version']} (MIT)"
    assert SHIPPED.date == raw["date"] >= "2026-11-22"


@pytest.mark.parametrize(
    "provider,model",
    [("openai", "gpt-4o-2024-08-06"), ("openai", "gpt-5.1"), ("azure", "gpt-4o-2024-11-20"),
     ("openai", "ft:gpt-4o-2024-08-06:acme::9abc"), ("openai", "text-embedding-3-small"),
     ("anthropic", "claude-haiku-4-5-20251001"), ("google", "gemini-2.5-pro"),
     ("google", "claude-sonnet-4-5@20250929"), ("aws", "amazon.nova-lite-v1:0"),
     ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
     ("aws", "arn:aws:bedrock:us-east-1:1:inference-profile/"
             "us.anthropic.claude-sonnet-4-5-20250929-v1:0")],
)  # fmt: skip
def test_the_shipped_list_knows_the_names_that_providers_use(provider: str, model: str) -> None:
    assert SHIPPED.cost_microusd(provider, model, a_usage(input_tokens=1_000_000)) > 0


@pytest.mark.parametrize(
    "url,provider",
    [("https://api.openai.com/v1/chat/completions", "openai"),
     ("https://acme.openai.azure.com/openai/deployments/x/chat/completions", "azure"),
     ("https://api.anthropic.com/v1/messages", "anthropic"),
     ("https://generativelanguage.googleapis.com/v1beta/models/x:generateContent", "google"),
     ("https://bedrock-runtime.us-east-1.amazonaws.com/model/x/converse", "aws"),
     ("https://api.openai.com.evil.example/v1/chat/completions", None),
     ("https://models.acme.example/v1/chat/completions", None)],
)  # fmt: skip
def test_who_bills_is_known_by_the_url(url: str, provider: str | None) -> None:
    assert SHIPPED.provider_at(url) == provider
