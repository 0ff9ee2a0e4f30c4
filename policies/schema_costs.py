"""What calls cost, as it is written in the policy file: of tools, and of models where the shipped
list is not to be believed."""

from decimal import Decimal
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from policies import argument_paths
from policies.ceilings import MICRO
from policies.meter.usage import TOKENS_MAX
from policies.pricing import ANSWER_TOKENS, MICROUSD_MAX, UNKNOWN_MODEL_MICROUSD
from policies.schema_bounds import USD_DECIMALS
from policies.schema_parts import Glob, Name, Part, no_number

_DOLLARS = MICROUSD_MAX // MICRO
_BODIES = ("request", "response")


def _number(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError(no_number(value))
    number = Decimal(value)
    if not number.is_finite() or number < 0:
        raise ValueError(f"must be a number that is not negative, not {value}")
    return number


def _usd(value: object) -> Decimal:
    number = _number(value)
    if number > _DOLLARS:
        raise ValueError(f"must be at most {_DOLLARS}, not {value}")
    micro = number.scaleb(USD_DECIMALS)
    if micro != micro.to_integral_value():
        raise ValueError(f"must have at most {USD_DECIMALS} decimals")
    return number


def _more_than_nothing(value: object) -> Decimal:
    number = _usd(value)
    if not number:
        raise ValueError("must be more than 0: nothing may be free because it is unknown")
    return number


def _scale(value: object) -> Decimal:
    number = _number(value)
    if not 0 < number <= _DOLLARS:
        raise ValueError(f"must be more than 0 and at most {_DOLLARS}, not {value}")
    return number


def _place(value: object) -> str:
    body, _, path = value.partition(".") if isinstance(value, str) else ("", "", "")
    if body not in _BODIES or not path:
        raise ValueError("must be request.FIELD or response.FIELD, such as request.amount")
    argument_paths.checked(path)
    return str(value)


_AMOUNT = WithJsonSchema({"type": "number", "minimum": 0})

Usd = Annotated[Decimal, BeforeValidator(_usd), _AMOUNT]
PositiveUsd = Annotated[Decimal, BeforeValidator(_more_than_nothing), _AMOUNT]
Scale = Annotated[Decimal, BeforeValidator(_scale), _AMOUNT]
Place = Annotated[
    str,
    BeforeValidator(_place),
    WithJsonSchema({"type": "string", "pattern": r"^(request|response)(\.[^.]+)+$"}),
]


class CostRule(Part):
    """What a call of the tool costs: always the same, or an amount that its body tells."""

    usd: Usd | None = None
    """The same for every call; `cost_usd` of the tool is short for it."""
    source: Place | None = Field(default=None, alias="from")
    """A number in the request, named as in conditions, or in the answer's JSON: `request.amount`,
    `request.items[].price`, `response.usage.total`. Several are added up."""
    scale: Annotated[Scale, Field(json_schema_extra={"default": 1})] = Decimal(1)
    """Dollars for one of it: 0.01 where it is in cents."""
    max_usd: PositiveUsd | None = None
    """As much as a call can cost: charged where the request tells nothing that can be read. Left
    out: such a call is refused."""
    reserve_usd: PositiveUsd | None = None
    """Held until the answer tells the cost, and kept if it does not."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if (self.usd is None) is (self.source is None):
            raise ValueError("must hold 'usd' or 'from', one of the two")
        place = self.source or ""
        if not place and "scale" in self.model_fields_set:
            raise ValueError("must hold 'scale' only beside 'from'")
        if place.startswith("response.") is (self.reserve_usd is None):
            raise ValueError("must hold 'reserve_usd' where, and only where, it is from a response")
        if self.max_usd is not None and not place.startswith("request."):
            raise ValueError("must hold 'max_usd' only where it is from a request")
        return self


class ModelPriceRule(Part):
    """A model's price, in the place of the shipped list's."""

    model: Glob
    """A glob over the names of models, such as `gpt-5*`; upper and lower case are the same."""
    provider: Name | None = None
    """Whose: `openai`, `azure`, as the shipped list calls them. Left out: at all of them."""
    input_usd_per_million_tokens: Usd
    output_usd_per_million_tokens: Usd
    """0 where it answers with no tokens, as a model of embeddings does; of one that costs nothing
    at all, input is 0, too."""
    cached_usd_per_million_tokens: Usd | None = None
    """Of input that is read from a cache. Left out: what input costs."""
    cache_write_usd_per_million_tokens: Usd | None = None
    """Of input that is written to a cache. Left out: what input costs."""


class PricesRule(Part):
    """Prices of models where the shipped list is not to be believed, and of those it lacks."""

    models: list[ModelPriceRule] = []
    """The first that fits is the one."""
    unknown_model_usd_per_million_tokens: Annotated[
        PositiveUsd, Field(json_schema_extra={"default": UNKNOWN_MODEL_MICROUSD // MICRO})
    ] = Decimal(UNKNOWN_MODEL_MICROUSD // MICRO)
    """What any token costs of a model that has no price."""
    default_max_tokens: Annotated[int, Field(ge=1, le=TOKENS_MAX)] = ANSWER_TOKENS
    """Reserved for an answer whose length the request does not bound."""
