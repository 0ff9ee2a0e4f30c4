"""Which cord an alert may pull: only what the list says, and nothing where a subject is missing."""

from collections.abc import Callable

import pytest

from policies.alerts import Alert, cord_for
from policies.policy import Policy
from policies.verdict import Level, Scope

LISTED = """
tools: {pay: {match: {host: a.example}}}
alerts:
  - {match: {alertname: Loop, severity: page}, pull: halt, scope: run, label: run_id}
  - {match: {alertname: Loop}, pull: freeze, scope: tenant, label: tenant}
  - {match: {alertname: Spend}, pull: freeze, scope: tool, subject: pay}
  - {match: {alertname: Breach}, pull: halt, scope: global}
"""

Build = Callable[[str], Policy]


@pytest.mark.parametrize(
    "labels, cord",
    [
        (
            {"alertname": "Loop", "severity": "page", "run_id": "r1", "tenant": "acme"},
            (Level.HALT, Scope.RUN, "r1"),
        ),
        ({"alertname": "Loop", "tenant": "acme"}, (Level.FREEZE, Scope.TENANT, "acme")),
        (
            {"alertname": "Loop", "severity": "warn", "run_id": "r1", "tenant": "acme"},
            (Level.FREEZE, Scope.TENANT, "acme"),
        ),
        ({"alertname": "Spend", "tool": "other"}, (Level.FREEZE, Scope.TOOL, "pay")),
        ({"alertname": "Breach", "subject": "r1"}, (Level.HALT, Scope.GLOBAL, "")),
    ],
)
def test_the_first_entry_that_matches_names_the_cord(
    labels: dict[str, str], cord: tuple[Level, Scope, str], a_policy: Build
) -> None:
    assert cord_for(a_policy(LISTED).alerts, labels) == cord


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"alertname": "Other", "run_id": "r1"},
        {"alertname": "loop", "tenant": "acme"},
        {"alertname": "Loop ", "tenant": "acme"},
        {"severity": "page", "run_id": "r1"},
        # It matches, and does not say whom it means; the next entry is not what was meant.
        {"alertname": "Loop", "severity": "page", "tenant": "acme"},
        {"alertname": "Loop", "severity": "page", "run_id": "", "tenant": "acme"},
    ],
)
def test_anything_else_pulls_nothing(labels: dict[str, str], a_policy: Build) -> None:
    assert cord_for(a_policy(LISTED).alerts, labels) is None


def test_a_policy_without_a_list_lets_no_alert_pull(a_policy: Build) -> None:
    assert a_policy("").alerts == ()
    assert cord_for((), {"alertname": "Loop"}) is None


def test_an_entry_is_all_that_its_rule_says(a_policy: Build) -> None:
    run, tenant, tool, everything = a_policy(LISTED).alerts
    match = (("alertname", "Loop"), ("severity", "page"))
    assert run == Alert(match, Level.HALT, Scope.RUN, label="run_id")
    assert tenant == Alert(match[:1], Level.FREEZE, Scope.TENANT, label="tenant")
    assert tool == Alert((("alertname", "Spend"),), Level.FREEZE, Scope.TOOL, subject="pay")
    assert everything == Alert((("alertname", "Breach"),), Level.HALT, Scope.GLOBAL)
