"""Detectors as they are written in the policy file: `loop: enforce`, or mode, answer and limits.

The limits of each are the fields of its own `Limits`, so that there is one list of them. How a
field is written follows from the end of its name: `alert_every_us` is `alert_every: 20s`,
`trip_microusd` is `trip_usd: 2.00`, all others are whole numbers.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from decimal import Decimal
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, create_model

from policies.detectors.fan_out import LIVE_MAX
from policies.detectors.rules import Mode, Response
from policies.detectors.runs import DETECTORS
from policies.schema_parts import Part, duration_us, no_number

COUNT_MAX = 1_000_000
MICROUSD_MAX = 1_000_000 * 1_000_000
SPAN_US_MAX = 86_400 * 1_000_000
PERCENT_MAX = 100
CALLS_KEPT_MAX = 200  # each is remembered, of each run
RUNS_KEPT_MAX = 1_000  # each is remembered, of each tool, recipient or release

_FINE_DURATION = re.compile(r"([0-9]{1,9})\.([0-9]{1,3})s")
_KEPT_MAX: Mapping[str, int] = {
    "fan_out.alert_spawns": LIVE_MAX,
    "fan_out.trip_spawns": LIVE_MAX,
    "fan_out.trip_live": LIVE_MAX,
    "novelty.calls_max": CALLS_KEPT_MAX,
    "write_spike.tool_runs": RUNS_KEPT_MAX,
    "first_seen_destination.alert_runs": RUNS_KEPT_MAX,
    "first_seen_destination.trip_runs": RUNS_KEPT_MAX,
    "release.runs": RUNS_KEPT_MAX,
}
"""Beyond what is remembered a limit would never be met."""


class Unit(NamedTuple):
    """How fields whose names end so are written: under which end, read by what, up to which value
    of the field, and what that is for people."""

    end: str
    read: Callable[[object], int]
    most: int
    told: Callable[[int], str]
    json: Mapping[str, Any]


def _span_us(value: object) -> int:
    fine = _FINE_DURATION.fullmatch(str(value))
    if fine:
        return (int(fine[1]) * 1_000 + int(fine[2].ljust(3, "0"))) * 1_000
    return duration_us(str(value))


def _microusd(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError(no_number(value))
    amount = Decimal(value).scaleb(6)
    if amount != amount.to_integral_value():
        raise ValueError("must have at most 6 decimals")
    return int(amount)


def _told_span(span_us: int) -> str:
    return f"{span_us // 3_600_000_000}h"


def _told_usd(microusd: int) -> str:
    return f"{microusd // 1_000_000} dollars"


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        wrong = f"must be a number, not {value}" if isinstance(value, Decimal) else no_number(value)
        raise ValueError(wrong.replace("a number", "a whole number", 1))
    return value


_TEXT, _NUMBER, _INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}

UNITS: Mapping[str, Unit] = {
    "_us": Unit("", _span_us, SPAN_US_MAX, _told_span, _TEXT),
    "_microusd": Unit("_usd", _microusd, MICROUSD_MAX, _told_usd, _NUMBER),
    "_percent": Unit("_percent", _whole, PERCENT_MAX, str, _INTEGER),
    "": Unit("", _whole, COUNT_MAX, str, _INTEGER),
}
"""By the end of the field's name; the first that fits."""


def _unit(name: str) -> tuple[str, Unit]:
    return next((end, unit) for end, unit in UNITS.items() if name.endswith(end))


def written(name: str) -> str:
    """The key that stands for a field of limits in the file."""
    end, unit = _unit(name)
    return name.removesuffix(end) + unit.end if end else name


def read(detector: str, name: str, value: object) -> int:
    """A limit as its field has it. Raises ValueError for what cannot be one."""
    _, unit = _unit(name)
    most = _KEPT_MAX.get(f"{detector}.{name}", unit.most)
    found = unit.read(value)
    if not 1 <= found <= most:
        raise ValueError(f"must be more than 0 and at most {unit.told(most)}, not {value}")
    return found


def _checked(detector: str, name: str) -> Any:
    def check(value: object) -> object:
        read(detector, name, value)
        return value

    return Annotated[Any, AfterValidator(check), WithJsonSchema(dict(_unit(name)[1].json))]


def _short(value: object) -> object:
    """`loop: enforce`. YAML reads a bare `off` as false, and a `false` is what is meant by it."""
    return {"mode": value} if isinstance(value, str | bool) else value


def _mode(value: object) -> object:
    return Mode.OFF if value is False else value


def _or_mode(schema: dict[str, Any]) -> None:
    """In the JSON Schema: the mapping, or its mode."""
    whole, description = dict(schema), schema.get("description", "")
    whole.pop("description", None)
    schema.clear()
    schema |= {"anyOf": [whole, {"enum": [*Mode, False]}], "description": description}


class DetectorRule(Part):
    """What becomes of what a detector finds."""

    mode: Annotated[Mode, Field(strict=False), BeforeValidator(_mode)] = Mode.ALERT
    """`off`: nothing. `observe`: a row that says what would have been done. `alert`: somebody is
    told, too. `enforce`: a trip pulls its cord."""
    then: Annotated[Response, Field(strict=False)] | None = None
    """Which cord a trip pulls. Left out: the smallest that the evidence calls for."""


def _rule(detector: str) -> Any:
    title = "".join(word.title() for word in detector.split("_"))
    keys: dict[str, Any] = {
        written(one.name): (_checked(detector, one.name) | None, None)
        for one in fields(DETECTORS[detector].limits)
    }
    limits: Any = create_model(
        f"{title}Limits", __base__=Part, __doc__="Those that are left out are as shipped.", **keys
    )
    rule: Any = create_model(
        f"{title}Rule", __base__=DetectorRule, __doc__=DetectorRule.__doc__,
        limits=(limits, limits()),
    )  # fmt: skip
    return Annotated[rule, BeforeValidator(_short)]


FINDS: Mapping[str, str] = {
    "loop": "The same call with the same result, again and again.",
    "spiral": "A model is called again and again, and nothing comes of it.",
    "burn": "Money is spent, and nothing comes of it.",
    "fan_out": "Runs start runs: too many, too deep, too fast.",
    "novelty": "Of the last calls hardly one brought anything new.",
    "write_spike": "Many more writes than usual, of one run or of one tool.",
    "first_seen_destination": "Several runs write to somebody to whom nobody wrote before.",
    "release": "More calls of a release fail than of the one before it.",
}
"""What each detector tells, in a line."""

if set(FINDS) != set(DETECTORS):
    raise RuntimeError("a detector that is not told of, or the other way round")

_RULES: dict[str, Any] = {
    name: (_rule(name) | None, Field(None, description=finds, json_schema_extra=_or_mode))
    for name, finds in FINDS.items()
}
DetectorsRule: Any = create_model(
    "DetectorsRule", __base__=Part, __doc__="What is done about runaways, by what finds them.",
    **_RULES,
)  # fmt: skip
