"""What the policy says of each detector: whether it acts, how, and with which limits."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from policies.detectors.runs import DETECTORS


class Mode(StrEnum):
    """What follows from a finding: nothing, a row, an alert too, or a cord as well."""

    OFF = "off"
    OBSERVE = "observe"
    ALERT = "alert"
    ENFORCE = "enforce"


class Response(StrEnum):
    """Which cord a trip pulls."""

    THROTTLE = "throttle"
    FREEZE_TOOL = "freeze_tool"
    FREEZE_RUN = "freeze_run"
    HALT_RUN = "halt_run"
    HALT_RELEASE = "halt_release"
    HALT_TENANT = "halt_tenant"


@dataclass(frozen=True, slots=True)
class Rule:
    """Of one detector. `then` None: the smallest cord that the evidence calls for (response.py);
    `limits` are of the detector's own kind."""

    mode: Mode
    limits: Any
    then: Response | None = None


SHIPPED: Mapping[str, Rule] = {
    name: Rule(Mode.ALERT, kind.limits) for name, kind in DETECTORS.items()
}
"""Where the policy says nothing."""
