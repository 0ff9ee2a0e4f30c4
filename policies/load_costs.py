"""The prices and costs of a policy file, compiled."""

from decimal import Decimal

from policies.ceilings import MICRO
from policies.document import Document, Mistake
from policies.mistakes import suggestion
from policies.prices import Rate, shipped_prices
from policies.pricing import OwnPrice, Pricing, ToolCost
from policies.schema import ToolRule
from policies.schema_costs import CostRule, ModelPriceRule, PricesRule


def pricing(rule: PricesRule) -> Pricing:
    return Pricing(
        own=tuple(_own(one) for one in rule.models),
        unknown_model_microusd=_microusd(rule.unknown_model_usd_per_million_tokens),
        default_max_tokens=rule.default_max_tokens,
    )


def unknown_providers(rule: PricesRule, read: Document) -> list[Mistake]:
    """A price at a provider whom the list does not know would never apply."""
    named = [(place, one.provider) for place, one in enumerate(rule.models) if one.provider]
    known = list(shipped_prices().providers) if named else []
    return [
        read.at(
            ("prices", "models", place, "provider"),
            f"the price list knows no provider {name!r}{suggestion(name, known)}",
        )
        for place, name in named
        if name not in known
    ]


def tool_cost(rule: ToolRule) -> ToolCost | None:
    if rule.cost_usd is not None:
        return ToolCost(microusd=_microusd(rule.cost_usd))
    return None if rule.cost is None else _cost(rule.cost)


def reads(rule: ToolRule) -> list[str]:
    """The arguments that say what a call of the tool costs."""
    cost = tool_cost(rule)
    return [cost.path] if cost is not None and cost.source == "request" else []


def _cost(rule: CostRule) -> ToolCost:
    if rule.source is None:
        return ToolCost(microusd=_microusd(rule.usd))
    body, _, path = rule.source.partition(".")
    return ToolCost(
        source="request" if body == "request" else "response",
        path=path,
        scale=rule.scale,
        reserve_microusd=_microusd(rule.reserve_usd),
        max_microusd=None if rule.max_usd is None else _microusd(rule.max_usd),
    )


def _own(rule: ModelPriceRule) -> OwnPrice:
    stated = {
        "input": rule.input_usd_per_million_tokens,
        "output": rule.output_usd_per_million_tokens,
        "cached": rule.cached_usd_per_million_tokens,
        "created": rule.cache_write_usd_per_million_tokens,
    }
    if not rule.output_usd_per_million_tokens and rule.input_usd_per_million_tokens:
        del stated["output"]  # it answers with none; what it does all the same is not free
    rates: dict[str, Rate] = {
        kind: ((0, _microusd(usd)),) for kind, usd in stated.items() if usd is not None
    }
    return OwnPrice(rule.model.lower(), rule.provider or "", rates)


def _microusd(usd: Decimal | None) -> int:
    return int((usd or Decimal(0)) * MICRO)
