"""Ceilings as they are written in the policy file."""

from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from policies.ceilings import MICRO, Count, Per, Then
from policies.schema_parts import AtKeyError, Duration, Glob, Part, no_number

COUNT_MAX = 1_000_000_000  # a bucket of a window is a 32-bit count
AMOUNT_MAX = 10**15  # of bytes, tokens and micro-dollars: it adds up within 64 bits
USD_DECIMALS = 6  # money is whole micro-dollars
WAIT_SECONDS_MAX = 30  # clients of model APIs give up after 60 s and more

_NOT_OF_CALLS = frozenset({Per.TOOL, Per.DESTINATION})


def _amount(value: object) -> int | Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError(no_number(value))
    if not 0 <= value <= AMOUNT_MAX:
        raise ValueError(f"must be at least 0 and at most {AMOUNT_MAX}, not {value}")
    return value


# No union: of that, one mistake would be told once for each member.
Amount = Annotated[
    Any,
    AfterValidator(_amount),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": AMOUNT_MAX}),
]


class CeilingRule(Part):
    """A bound: on calls, money, concurrency, or what else is counted."""

    per: Annotated[Per, Field(strict=False)]
    """Whose count it is. A run's holds its descendants' too; a tree's is that of its root."""
    tool: Glob | None = None
    """Only calls of these tools count. Left out: all."""
    count: Annotated[Count, Field(strict=False)]
    at_most: Amount | None = None
    """A whole number, or dollars with up to six decimals for `spend_usd`."""
    within: Duration | None = None
    """A sliding window such as `1m`. Left out: a whole life."""
    then: Annotated[Then, Field(strict=False)] = Then.THROTTLE
    """What the ceiling does when it is met: refuse this call, pull the cord for its scope as well,
    let it wait for a person, or let it pass and tell."""
    wait_seconds: Annotated[int, Field(ge=0, le=WAIT_SECONDS_MAX)] = 0
    """How long a call may wait for room before it is refused, in a queue that is fair to tenants.
    """
    unbounded: bool = False
    """In place of `at_most`: this is to have no bound, not even the one that is shipped."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.unbounded:
            _beside_unbounded(self)
            return self
        if self.at_most is None:
            raise ValueError("must say 'at_most', or 'unbounded: true'")
        self._limited()
        if self.count is Count.IN_FLIGHT and self.within:
            wrong = "must not stand where in_flight is counted: that is a number at a time"
            raise AtKeyError("within", wrong)
        if self.count is Count.SPAWNED:
            self._of_runs()
        if self.count is Count.DESTINATIONS and self.per is Per.DESTINATION:
            raise AtKeyError("per", "must not be destination where destinations are counted")
        if self.wait_seconds and self.then is not Then.THROTTLE:
            raise AtKeyError("wait_seconds", "must stand only where 'then' is throttle")
        return self

    def _limited(self) -> None:
        """Raises AtKeyError for a limit that cannot be one of this count."""
        if self.count is Count.SPEND:
            if self.microusd() is None:
                raise AtKeyError("at_most", f"must have at most {USD_DECIMALS} decimals")
            if (self.microusd() or 0) > AMOUNT_MAX:
                raise AtKeyError("at_most", f"must be at most {AMOUNT_MAX // MICRO} dollars")
        elif not isinstance(self.at_most, int):
            wrong = f"must be a whole number where {self.count} are counted"
            raise AtKeyError("at_most", wrong)
        elif self.count not in (Count.TOKENS, Count.BYTES_UP) and self.at_most > COUNT_MAX:
            raise AtKeyError("at_most", f"must be at most {COUNT_MAX}, not {self.at_most}")

    def _of_runs(self) -> None:
        """Raises AtKeyError for what has no meaning where runs are started."""
        if self.per in _NOT_OF_CALLS:
            wrong = "must not be tool or destination where spawned is counted: runs have none"
            raise AtKeyError("per", wrong)
        if self.tool:
            raise AtKeyError("tool", "must not stand where spawned is counted: runs have none")
        if self.then in (Then.HOLD, Then.ALERT):
            wrong = f"must be throttle, freeze or halt where spawned is counted, not {self.then}"
            raise AtKeyError("then", wrong)

    def microusd(self) -> int | None:
        """`at_most` in micro-dollars; None where it is finer than that."""
        amount = Decimal(self.at_most or 0).scaleb(USD_DECIMALS)
        return int(amount) if amount == amount.to_integral_value() else None


def _beside_unbounded(rule: CeilingRule) -> None:
    """Raises AtKeyError."""
    beside = rule.model_fields_set - {"per", "count", "unbounded"}
    if beside:
        raise AtKeyError(sorted(beside)[0], "must not stand beside 'unbounded: true'")
    if (rule.per, rule.count) not in SHIPPED_FOR:
        wrong = (
            "must stand only where a bound is shipped: calls, spend_usd or in_flight per run or "
            "tenant, spawned per tree"
        )
        raise AtKeyError("unbounded", wrong)


SHIPPED_FOR = frozenset(
    (per, count)
    for per in (Per.RUN, Per.TENANT)
    for count in (Count.CALLS, Count.SPEND, Count.IN_FLIGHT)
) | {(Per.TREE, Count.SPAWNED), (Per.RUN, Count.SPAWNED)}
