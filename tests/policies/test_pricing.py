"""A policy's own prices before the shipped ones, and its rate for what has none."""

from fractions import Fraction

import pytest

from policies.meter.usage import Usage
from policies.model_names import NAME_CHARACTERS_MAX
from policies.prices import flat_rates, shipped_prices
from policies.pricing import MICROUSD_MAX, OwnPrice, Priced, Pricing, ToolCost

MILLION = 1_000_000
ONE = Usage("", MILLION, 0, 0, 0, 0)


def own(model: str, usd: int, provider: str = "") -> OwnPrice:
    return OwnPrice(model, provider, flat_rates(usd * MILLION))


@pytest.mark.parametrize(
    "provider,models,usd",
    [
        ("openai", ("gpt-4o",), 7),
        ("azure", ("gpt-4o",), 8),
        ("", ("gpt-4o",), 8),
        ("openai", ("GPT-4o-mini",), 9),
        # the name that was told, and then the one that was asked for
        ("openai", ("unheard-of", "gpt-4o"), 7),
        ("openai", ("gpt-4o-mini", "gpt-4o"), 9),
        # a price of the policy for what was asked, before the list's for what was told
        ("openai", ("o3", "gpt-4o"), 7),
    ],
)
def test_the_first_own_price_that_fits_is_the_one(
    provider: str, models: tuple[str, ...], usd: int
) -> None:
    pricing = Pricing((own("gpt-4o", 7, "openai"), own("gpt-4o", 8), own("gpt-*", 9)))
    assert pricing.cost(provider, models, ONE) == Priced(MILLION, usd * MILLION, True)


def test_the_list_comes_after_and_the_flat_rate_last() -> None:
    pricing = Pricing((own("gpt-5*", 7),), unknown_model_microusd=50 * MILLION)
    listed = shipped_prices().cost_microusd("openai", "gpt-4o", ONE)
    assert pricing.cost("openai", ("unheard-of", "gpt-4o"), ONE) == Priced(MILLION, listed, True)
    for models in ((), ("",), ("unheard-of",), ("gpt-5" + "x" * NAME_CHARACTERS_MAX,)):
        assert pricing.cost("openai", models, ONE) == Priced(MILLION, 50 * MILLION, False)
    assert pricing.cost("nobody", ("gpt-4o",), ONE) == Priced(MILLION, 50 * MILLION, False)


def test_a_flat_rate_is_for_all_tokens_of_whatever_kind() -> None:
    usage = Usage("", 100, 90, 0, 10, 5, output_audio_tokens=3, web_searches=2)
    assert Pricing(unknown_model_microusd=3 * MILLION).cost("", (), usage) == Priced(
        110, 330, False
    )


def test_a_price_without_output_leaves_output_to_the_next() -> None:
    pricing = Pricing((OwnPrice("m", "", {"input": ((0, MILLION),)}),))
    assert pricing.cost("", ("m",), ONE) == Priced(MILLION, MILLION, True)
    assert pricing.estimate("", "m", 10, 4_096) == Priced(10, 10, True)
    usage = Usage("", 10, 0, 0, 1, 0)
    assert pricing.cost("", ("m",), usage) == Priced(11, 1_100, False)


def test_an_own_price_that_lacks_what_was_used_leaves_it_to_the_next() -> None:
    pricing = Pricing((OwnPrice("m", "", {"input": ((0, MILLION),)}), own("m", 9)))
    assert pricing.cost("", ("m",), ONE).microusd == MILLION
    assert pricing.cost("", ("m",), Usage("", 10, 0, 0, 1, 0)) == Priced(11, 99, True)


def test_an_estimate_of_an_unknown_model_is_at_the_flat_rate() -> None:
    assert Pricing().estimate("", "nobodys", 10, 20) == Priced(30, 3_000, False)
    assert Pricing((own("nobodys", 0),)).estimate("", "nobodys", 10, 20) == Priced(30, 0, True)


def test_the_flat_rate_is_above_what_nearly_all_listed_models_cost() -> None:
    rates = [
        model.rates["output"][0][1]
        for provider in shipped_prices().providers.values()
        for model in provider.models
        if "output" in model.rates
    ]
    dearer = [rate for rate in rates if rate > Pricing().unknown_model_microusd]
    assert len(dearer) < len(rates) / 100


def test_a_tools_cost_is_rounded_up_and_never_more_than_can_be_counted() -> None:
    assert ToolCost().of(Fraction(1, 3)) == 333_334
    assert ToolCost().of(Fraction(0)) == 0
    assert ToolCost().of(Fraction(10**40)) == MICROUSD_MAX
