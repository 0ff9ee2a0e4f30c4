"""How much a write moves, compiled."""

from policies.amounts import ToolValue
from policies.schema_value import ValueRule

_REQUEST = "request."


def tool_value(rule: ValueRule | None) -> ToolValue | None:
    if rule is None:
        return None
    stands = rule.currency.startswith(_REQUEST)
    return ToolValue(
        path=rule.source.removeprefix(_REQUEST),
        scale=rule.scale,
        currency="" if stands else rule.currency.upper(),
        currency_path=rule.currency.removeprefix(_REQUEST) if stands else "",
    )


def reads(rule: ValueRule | None) -> tuple[str, ...]:
    """The arguments that say how much it is, which the record then keeps of each call."""
    value = tool_value(rule)
    return () if value is None else value.reads
