"""Which alerts of a monitoring system may pull which cord: the policy's allow-list.

Who sent an alert, and whether it was seen before, is not known here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from policies.verdict import Level, Scope


@dataclass(frozen=True, slots=True)
class Alert:
    """One entry of the list. An alert matches that has all these labels with exactly these values.

    `label` is the label of the alert that names the subject; without one, `subject` does. Both are
    empty for the global scope.
    """

    match: tuple[tuple[str, str], ...]
    level: Level
    scope: Scope
    label: str = ""
    subject: str = ""


def cord_for(alerts: Sequence[Alert], labels: Mapping[str, str]) -> tuple[Level, Scope, str] | None:
    """The cord that an alert with these labels may pull; None when it may pull none.

    The first entry that matches decides. Where its subject is missing, nothing is pulled: another
    entry, or a wider scope, is not what was meant.
    """
    for alert in alerts:
        if any(labels.get(name) != value for name, value in alert.match):
            continue
        subject = labels.get(alert.label, "") if alert.label else alert.subject
        if not subject and alert.scope is not Scope.GLOBAL:
            return None
        return alert.level, alert.scope, subject
    return None
