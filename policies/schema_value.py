"""How much a write moves, as it is written in the policy file."""

from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

from policies import argument_paths
from policies.amounts import CURRENCY
from policies.schema_costs import Scale
from policies.schema_parts import Part

_REQUEST = "request."


def _place(value: object) -> str:
    if not isinstance(value, str) or not value.startswith(_REQUEST):
        raise ValueError("must be request.FIELD, such as request.amount")
    argument_paths.checked(value.removeprefix(_REQUEST))
    return value


def _currency(value: object) -> str:
    if isinstance(value, str) and value.startswith(_REQUEST):
        return _place(value)
    if not isinstance(value, str) or not CURRENCY.fullmatch(value):
        raise ValueError("must be a currency such as usd, or request.FIELD, where it stands")
    return value


class ValueRule(Part):
    """How much a write of the tool moves: what an incident may have cost."""

    source: Annotated[
        str,
        BeforeValidator(_place),
        WithJsonSchema({"type": "string", "pattern": r"^request(\.[^.]+)+$"}),
        Field(alias="from"),
    ]
    """A number in the request, named as in conditions: `request.amount`. Several are added up."""
    scale: Annotated[Scale, Field(json_schema_extra={"default": 1})] = Decimal(1)
    """What one of it is in its currency: 0.01 where it is in cents."""
    currency: Annotated[
        str,
        BeforeValidator(_currency),
        WithJsonSchema({"type": "string", "pattern": r"^([A-Za-z]{3,8}|request(\.[^.]+)+)$"}),
    ]
    """Always the same, such as `usd`, or where it stands: `request.currency`."""
