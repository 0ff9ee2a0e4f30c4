"""Money at the edge: dollars as people and JSON write them, whole micro-dollars inside.

Exact both ways; the other way is `policies.ceilings.usd`.
"""

import re
from decimal import Decimal
from fractions import Fraction
from typing import Annotated

from pydantic import BeforeValidator

from policies.ceilings import MICRO
from policies.schema_bounds import AMOUNT_MAX, USD_DECIMALS

# No longer than it takes: what is not exact in it is refused, and no text makes a huge number.
_NUMBER = re.compile(r"[+-]?[0-9]{1,32}(\.[0-9]{1,32})?([eE][+-]?[0-9]{1,2})?", re.ASCII)


def microusd(amount: str | int | float | Decimal, *, signed: bool = False) -> int:
    """Dollars as whole micro-dollars. A float is taken as it is written out. Raises ValueError."""
    text = str(amount).strip()
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no amount of dollars; write 5 or 0.25")
    found = Fraction(text) * MICRO
    if found < 0 and not signed:
        raise ValueError(f"{text} is less than nothing")
    if abs(found) > AMOUNT_MAX:
        raise ValueError(f"{text} is more than {AMOUNT_MAX // MICRO} dollars")
    if found.denominator != 1:
        raise ValueError(f"{text} has more than {USD_DECIMALS} decimals")
    return int(found)


def _body(amount: object) -> int:
    if not isinstance(amount, str | int | float | Decimal):
        raise ValueError('write dollars, such as 5 or "0.25"')
    return microusd(amount)


def _signed_body(amount: object) -> int:
    if not isinstance(amount, str | int | float | Decimal):
        raise ValueError('write dollars, such as 5 or "-0.25"')
    return microusd(amount, signed=True)


Usd = Annotated[int, BeforeValidator(_body)]
"""In a body: dollars, as a number or as text. Here: micro-dollars."""

SignedUsd = Annotated[int, BeforeValidator(_signed_body)]
"""The same, and it may be less than nothing."""
