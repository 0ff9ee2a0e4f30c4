"""Amounts as they stand in arguments: what they come to together, and how much a write moves."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from policies import conditions
from policies.call import Argument

MOVED_MAX = 10**15  # by one write in any currency; more, or finer, is no amount that was meant
_PARTS_MAX = 10**18
CURRENCY = re.compile(r"[A-Za-z]{3,8}")


@dataclass(frozen=True, slots=True)
class ToolValue:
    """How much a write of a tool moves: the amount at `path` of its arguments, times `scale`.

    The currency is `currency`, or what stands at `currency_path`.
    """

    path: str
    scale: Decimal = Decimal(1)
    currency: str = ""
    currency_path: str = ""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.path, self.currency_path) if self.currency_path else (self.path,)

    def of(self, arguments: Mapping[str, tuple[Argument, ...]]) -> tuple[str, Fraction | None]:
        """The currency, in capitals, and how much. Without a currency there is no amount."""
        currency = self.currency
        if self.currency_path:
            named = {str(value).upper() for value in arguments.get(self.currency_path, ())}
            currency = named.pop() if len(named) == 1 else ""
        if not CURRENCY.fullmatch(currency):
            return "", None
        amount = total(arguments.get(self.path, ()))
        moved = None if amount is None else amount * Fraction(self.scale)
        if moved is None or moved > MOVED_MAX or moved.denominator > _PARTS_MAX:
            return currency, None
        return currency, moved


def total(values: Iterable[Argument]) -> Fraction | None:
    """What they come to together, exactly; None where there are none, or one is no plain number."""
    amounts = [_number(value) for value in values]
    plain = [Fraction(amount) for amount in amounts if amount is not None and amount >= 0]
    return sum(plain, Fraction(0)) if plain and len(plain) == len(amounts) else None


def _number(value: Argument) -> Decimal | None:
    """Of a text with an exponent servers read different numbers."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return conditions.number(value) if "e" not in value.lower() else None
    return Decimal(value)
