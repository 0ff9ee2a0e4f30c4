"""docs/limits.md lists every wait, queue and buffer of the code, each with its number."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise

import pytest

from proxy.settings import Settings
from tests.manual import ROOT, code, table

UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2, "s": 1, "characters": 1, "commits": 1}
LIMIT_NAME = re.compile(r"[A-Z][A-Z_]*(_MAX|_SECONDS|_THREADS|_BATCHES|_ATTEMPTS)")

# What is no wait, queue or buffer.
NO_LIMITS = {
    "policies.pricing.MICROUSD_MAX",
    "ledger.filters._UNITS_SECONDS",
    # What may be written into a policy; its mistakes tell the bounds.
    *("policies.document.INTEGER_DIGITS_MAX", "policies.schema_bounds.COUNT_MAX"),
    *("policies.schema_bounds.AMOUNT_MAX", "policies.argument_paths.STEPS_MAX"),
    *("policies.schema_grants.CONDITIONS_MAX", "policies.schema_grants.ONE_OF_MAX"),
    "policies.schema_grants.TOOL_BODY_BYTES_MAX",
    *("policies.schema_parts.KEEP_SECONDS_MAX", "policies.schema_parts.WINDOW_SECONDS_MAX"),
    "policies.schema_parts.NAME_CHARACTERS_MAX",
    *("policies.schema_records.PATTERNS_MAX", "policies.schema_records.PATTERN_CHARACTERS_MAX"),
    *("policies.schema_records.FIELDS_MAX", "policies.schema_records.TEXT_CHARACTERS_MAX"),
    "proxy.control_socket.ADDRESS_BYTES_MAX",  # the kernel's; longer paths go another way
    "policies.amounts.MOVED_MAX",  # what is an amount at all
    # How much of a text is shown or told.
    *("proxy.regression.RUNS_SHOWN_MAX", "proxy.regression_serving.ENDPOINTS_SHOWN_MAX"),
    *("proxy.scoping.NAMES_MAX", "proxy.scoping.CORDS_MAX"),
    "proxy.cli.incident_scope.NAMES_SHOWN_MAX",
    *("ledger.body_checks.FOUND_MAX", "ledger.checks.FOUND_MAX", "ledger.trial_reads.FOUND_MAX"),
    "ledger.seen.TEXT_CHARS_MAX",
    *("policies.match.HOST_CHARACTERS_MAX", "policies.match.OPERATION_CHARACTERS_MAX"),
    *("proxy.sentences.TEXT_CHARACTERS_MAX", "proxy.cli.records.POLL_SECONDS"),
    "proxy.cli.simulating.TELL_EVERY_SECONDS",
    *("proxy.cli.status.CALLS_SHOWN_MAX", "proxy.cli.pulled.IDS_SHOWN_MAX"),
    "proxy.cli.status.LIMITS_SHOWN_MAX",
    *("proxy.incidents.SHOWN_MAX", "proxy.cli.incidents.EVENTS_SHOWN_MAX"),
    *("policies.schema_runbook.STEPS_MAX", "proxy.walking.NAMES_SHOWN_MAX"),
    *("proxy.cli.recovered.RUNS_SHOWN_MAX", "ledger.incident_stamps.COMPARED_MAX"),
    *("ledger.incidents.LED_TO_IT_MAX", "ledger.incident_acts.SINCE_SECONDS"),
    *("proxy.notices.NAME_CHARACTERS_MAX", "proxy.notices.WHY_CHARACTERS_MAX"),
    *("proxy.notices.SUMMARY_CHARACTERS_MAX", "proxy.notices.CALLS_MAX"),
    *("proxy.sending.SAID_CHARACTERS_MAX", "ledger.deliveries.WRITES_SECONDS"),
    "ledger.deliveries.ROWS_MAX",
    # How much of an incident is in its report, which says what it leaves out.
    *("proxy.report_html.BYTES_MAX", "proxy.report_chart.MARKS_MAX"),
    *("proxy.report_decisions.DECISIONS_MAX", "proxy.report_decisions.READ_MAX"),
    *("proxy.report_decisions.KEPT_MAX", "proxy.report_scope.NAMES_SHOWN_MAX"),
    "proxy.reporting.TITLE_MAX",
    *("proxy.reporting.TIMELINE_MAX", "proxy.reporting.CALLS_MAX", "proxy.reporting.WRITES_MAX"),
    # Which runs count as active, and over which time a rate is told.
    *("proxy.pulling.ACTIVE_SECONDS", "proxy.screen.RATE_SECONDS"),
    # What a run may tell of itself, and how much of the record makes the detectors' state anew.
    *("proxy.own_acts.MARK_MAX", "proxy.own_acts.NOTE_CHARS_MAX"),
    *("ledger.steps.OPEN_MAX", "ledger.watching.ROWS_MAX"),
    # What may be a limit of a detector, and of how many calls one tells.
    *("policies.schema_detectors.COUNT_MAX", "policies.schema_detectors.MICROUSD_MAX"),
    *("policies.schema_detectors.SPAN_US_MAX", "policies.schema_detectors.PERCENT_MAX"),
    *("policies.schema_detectors.CALLS_KEPT_MAX", "policies.schema_detectors.RUNS_KEPT_MAX"),
    *("policies.detectors.loop.EVIDENCE_MAX", "policies.detectors.first_seen.CALLS_MAX"),
    # How much of a value is compared, and which number can be a mark.
    *("policies.detectors.recipients.VALUE_BYTES_MAX", "policies.detectors.noticing.MARK_MAX"),
}


def limits() -> Iterator[tuple[str, float]]:
    """Each name of the table with its number."""
    for what, told, named, why in table("Waits, queues and buffers"):
        names = code(named)
        numbers = [number for part in re.split(r", | x ", told) for number in [measured(part)]]
        assert len(names) == len(numbers), what
        assert why, what
        yield from zip(names, numbers, strict=True)


def measured(text: str) -> float:
    number, _, unit = text.partition(" ")
    return float(number.replace(",", "")) * UNITS[unit]


def in_the_code(name: str) -> float:
    """The number of a setting, a constant, a field's or an argument's default, or a literal."""
    if name in Settings.model_fields:
        return float(Settings.model_fields[name].default)
    if ": " in name:
        place, _, literal = name.partition(": ")
        assert literal in (ROOT / place).read_text("utf-8")
        return float(re.sub(r"\D", "", literal))
    path, owner = name.split("."), None
    for end in range(len(path) - 1, 0, -1):
        if (ROOT / "/".join(path[:end])).with_suffix(".py").exists():
            owner, path = import_module(".".join(path[:end])), path[end:]
            break
    for step, following in pairwise((*path, "")):
        if dataclasses.is_dataclass(owner) and not following:
            (owner,) = [f.default for f in dataclasses.fields(owner) if f.name == step]
        elif inspect.isroutine(owner):
            owner = inspect.signature(owner).parameters[step].default
        else:
            owner = getattr(owner, step)
    assert isinstance(owner, int | float), name
    return float(owner)


@pytest.mark.parametrize("name, number", list(limits()))
def test_a_limit_is_the_number_in_the_code(name: str, number: float) -> None:
    assert in_the_code(name) == number


def test_every_limit_in_the_code_is_in_readme() -> None:
    found = set()
    for path in [
        p for name in ("policies", "ledger", "proxy") for p in (ROOT / name).rglob("*.py")
    ]:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.parse(path.read_text("utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            found |= {f"{module}.{name}" for name in names if LIMIT_NAME.fullmatch(name)}
    found = {name for name in found if not name.startswith("proxy.demo.")}
    assert not found - {name for name, _ in limits()} - NO_LIMITS
