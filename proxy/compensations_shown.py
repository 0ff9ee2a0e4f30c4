"""The writes of an incident and what would undo each, as JSON: without secrets, and with what to
type next. compensations.py makes the plan.
"""

from typing import Any

from ledger import queries
from ledger.open_incidents import Incident
from ledger.redact import mask
from ledger.states import CallState
from proxy import incidents
from proxy.compensations import Ground, State, Step, Steps, Uncontained
from proxy.operator_calls import Plan

BODY_SHOWN_MAX = 2_000  # characters of a body, for people

Answer = dict[str, Any]
_BY = ("id", "at", "tool", "state", "status")


def as_json(
    ground: Ground, incident: Incident, found: Steps, uncontained: Uncontained | None = None
) -> Answer:
    """The plan, with what to type next: to contain it, where it may go on."""
    told = [step_as_json(ground, one) for one in found.listed]
    return {
        "incident": incidents.as_json(incident),
        "steps": told,
        "totals": {state.value: count for state, count in found.totals.items()},
        "is_cut": found.is_cut,
        "uncontained": uncontained and uncontained.why,
        "next": uncontained.command if uncontained else _next(incident, told),
    }


def step_as_json(ground: Ground, one: Step) -> Answer:
    """One write, how far it is, and the call that would undo it."""
    return {
        "step": one.number,
        "call": {name: one.call[name] for name in queries.CALL_COLUMNS},
        "state": one.state.value,
        "reversibility": one.reversibility.value,
        "why": mask(one.why, ground.key) or None,
        "undo": None if one.plan is None else _plan_as_json(one.plan, ground.key),
        "by": one.by and {name: one.by[name] for name in _BY},
        "next": _next_of(ground, one),
    }


def _plan_as_json(plan: Plan, key: bytes) -> Answer:
    body = mask(plan.body.decode(), key)
    return {
        "tool": plan.tool,
        "method": plan.method,
        "url": mask(plan.url, key),
        "headers": [[name, mask(value, key)] for name, value in plan.headers],
        "body": body[:BODY_SHOWN_MAX] or None,
        "auth": plan.auth or None,
    }


def _next_of(ground: Ground, one: Step) -> str | None:
    """How to find out what nobody knows: by the read that the policy names, if it does."""
    call = one.call if one.state is State.VERIFY else one.by if one.state is State.UNKNOWN else None
    if call is None:
        return None
    if call["state"] != CallState.UNKNOWN or ground.policy.tool(call["tool"]).verify is None:
        return f"pullcord ledger show {call['id']}"
    return f"pullcord ledger resolve {call['id']} --verify"


def _next(incident: Incident, told: list[Answer]) -> str:
    """What to type now."""
    if any(one["state"] == State.READY for one in told):
        return f"pullcord incident compensate {incident.id} --do all"
    first = next((str(one["next"]) for one in told if one["next"]), None)
    return first or f"pullcord incident show {incident.id}"
