"""What the policy asks of the arguments of a call, and whether they are so.

A condition names an argument by its path; `arguments.py` says what stands there. All values that
stand at a path must hold; where none does, every condition fails but `absent`. What could not be
read with certainty never holds.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase

from policies.call import Argument, ToolCall

Wanted = str | int | Decimal | bool

# A number as JSON writes it (RFC 8259, section 6): no sign +, no leading nought, no blank, no
# underscore, no hexadecimal, ASCII digits alone, and short enough to be compared at no cost.
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]{0,39})(?:\.[0-9]{1,40})?)(?:[eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Condition:
    """One argument and what is asked of it; all that is given must hold."""

    path: str
    at_most: Decimal | None = None
    at_least: Decimal | None = None
    one_of: tuple[Wanted, ...] = ()
    like: str = ""
    length_at_most: int | None = None
    absent: bool = False

    def holds(self, value: Argument) -> bool:
        """Whether a value that stands there is as asked."""
        return (
            not self.absent
            and (self.at_most is None or _all(value, self.at_most.__ge__))
            and (self.at_least is None or _all(value, self.at_least.__le__))
            and (not self.one_of or any(_equal(value, wanted) for wanted in self.one_of))
            and (not self.like or (isinstance(value, str) and fnmatchcase(value, self.like)))
            and (
                self.length_at_most is None
                or (isinstance(value, str) and len(value) <= self.length_at_most)
            )
        )

    def __str__(self) -> str:
        """For people: `amount must be at least 1 and at most 5000`."""
        asked = []
        if self.absent:
            asked.append("absent")
        if self.at_least is not None:
            asked.append(f"at least {self.at_least}")
        if self.at_most is not None:
            asked.append(f"at most {self.at_most}")
        if self.one_of:
            words = ", ".join(_shown(wanted) for wanted in self.one_of)
            asked.append(words if len(self.one_of) == 1 else f"one of {words}")
        if self.like:
            asked.append(f"like {self.like}")
        if self.length_at_most is not None:
            asked.append(f"text of at most {self.length_at_most} characters")
        return f"{self.path} must be {' and '.join(asked)}"


def failing(conditions: Iterable[Condition], call: ToolCall) -> str:
    """The first condition that does not hold, for people; empty when all do.

    It names the argument and what is asked of it, never the value that was sent.
    """
    if call.own:
        return ""
    for condition in conditions:
        if wrong := _wrong(condition, call):
            return wrong
    return ""


def _wrong(condition: Condition, call: ToolCall) -> str:
    for path, why in call.unread:
        if path == condition.path:
            return f"{path} cannot be read for certain: {why}"
    values = next((found for path, found in call.arguments if path == condition.path), None)
    if values is None:
        return f"{condition.path} was not read"
    if not values:
        return "" if condition.absent else f"{condition}, and it is missing"
    return "" if all(condition.holds(value) for value in values) else str(condition)


def _readings(value: Argument) -> tuple[Decimal, ...]:
    """The numbers that servers may take a value for; none when it is no number.

    A text with an exponent is its mantissa to those that stop reading at the `e`.
    """
    if isinstance(value, bool) or value is None:
        return ()
    if not isinstance(value, str):
        return (Decimal(value),)
    found = _NUMBER.fullmatch(value)
    if found is None:
        return ()
    number, mantissa = Decimal(value), Decimal(found[1])
    return (number,) if number == mantissa else (number, mantissa)


def number(text: str) -> Decimal | None:
    """A number as JSON writes it; None for one that is longer than any that means something."""
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def _all(value: Argument, holds: Callable[[Decimal], bool]) -> bool:
    readings = _readings(value)
    return bool(readings) and all(holds(reading) for reading in readings)


def _equal(value: Argument, wanted: Wanted) -> bool:
    """Text equals text, a boolean a boolean, a number whatever is that number."""
    if isinstance(wanted, str):
        return isinstance(value, str) and value == wanted
    if isinstance(wanted, bool):
        return value is wanted
    return _all(value, lambda reading: reading == wanted)


def _shown(wanted: Wanted) -> str:
    return str(wanted).lower() if isinstance(wanted, bool) else str(wanted)
