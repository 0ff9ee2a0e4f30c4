"""Prices and costs of a policy, compiled. Mistakes in them: tests/cases/policy_errors.yaml."""

from decimal import Decimal

from policies.load import load
from policies.prices import shipped_prices
from policies.pricing import OwnPrice, Pricing, ToolCost

TEXT = """version: 1
prices:
  models:
    - {model: GPT-5*, input_usd_per_million_tokens: 1.25, output_usd_per_million_tokens: 10}
    - model: m
      provider: azure
      input_usd_per_million_tokens: 0.02
      output_usd_per_million_tokens: 0
      cached_usd_per_million_tokens: 0.000001
      cache_write_usd_per_million_tokens: 0
    - {model: free, input_usd_per_million_tokens: 0, output_usd_per_million_tokens: 0}
  unknown_model_usd_per_million_tokens: 12.5
  default_max_tokens: 100
tools:
  a: {match: {host: a.example}}
  b: {match: {host: b.example}, cost_usd: 0.05}
  c: {match: {host: c.example}, cost: {usd: 0.05}}
  d: {match: {host: d.example}, cost: {from: request.amount, scale: 0.01, max_usd: 9}}
  e: {match: {host: e.example}, cost: {from: response.usage.cost, reserve_usd: 0.5}}
"""


def test_a_policys_prices_are_whole_micro_dollars_for_a_million_tokens() -> None:
    assert load(TEXT).prices == Pricing(
        own=(
            OwnPrice("gpt-5*", "", {"input": ((0, 1_250_000),), "output": ((0, 10_000_000),)}),
            OwnPrice(
                "m", "azure", {"input": ((0, 20_000),), "cached": ((0, 1),), "created": ((0, 0),)}
            ),
            OwnPrice("free", "", {"input": ((0, 0),), "output": ((0, 0),)}),
        ),
        unknown_model_microusd=12_500_000,
        default_max_tokens=100,
    )


def test_costs_of_tools() -> None:
    policy = load(TEXT)
    assert {name: tool.cost for name, tool in policy.tools.items()} == {
        "a": None,
        "b": ToolCost(50_000),
        "c": ToolCost(50_000),
        "d": ToolCost(0, "request", "amount", Decimal("0.01"), 0, 9_000_000),
        "e": ToolCost(0, "response", "usage.cost", Decimal(1), 500_000),
    }
    assert policy.tools["d"].reads == ("amount",)
    assert policy.tools["e"].reads == ()


def test_a_policy_without_prices_has_the_shipped_ones() -> None:
    assert load("version: 1\n").prices == Pricing() == Pricing((), 100_000_000, 32_768)


def test_the_list_is_loaded_only_where_it_is_asked() -> None:
    """It takes longer than all else of a policy's loading, and commands must be quick."""
    shipped_prices.cache_clear()
    load(TEXT.replace("      provider: azure\n", ""))
    assert shipped_prices.cache_info().misses == 0
    load(TEXT)
    load(TEXT)
    assert shipped_prices.cache_info().misses == 1
