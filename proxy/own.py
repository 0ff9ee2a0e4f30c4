"""The agent's own view of itself, `http://pullcord.invalid/self`, and the little it may do there:
start runs of its own, and say that it made a step, got on, or has ended. It can loosen nothing.

The name is reserved (RFC 6761), so it is never resolved: a call to it ends here. What is done is
done by the decider (own_acts.py); here is only how it is asked for and told.
"""

import json
from typing import Any

from ledger.records import Ask, OwnState
from policies.ceilings import Ceiling, Count, Then, usd
from policies.verdict import Action, Level, Limit, Reason, Scope, Verdict
from proxy.judging import Judging
from proxy.refuse import Refusal, decision_header, refuse

HOST = "pullcord.invalid"
SELF, TOKENS, STEPS = "/self", "/self/tokens", "/self/steps"
PROGRESS, END = "/self/progress", "/self/end"
ACTS = (TOKENS, STEPS, PROGRESS, END)
BODY_BYTES_MAX = 64 * 1024  # the longest request is a list of tools

_REASONS = {403: Reason.TOOL_NOT_ALLOWED, 413: Reason.BODY_TOO_LARGE}
_METHODS = {SELF: ("GET", "HEAD"), **dict.fromkeys(ACTS, ("POST",))}


async def answered(ask: Ask, decider: Judging) -> Refusal:
    """The whole answer to a request for this host. Raises what the decider does."""
    request = ask.request
    acts = request.method == "POST" and request.path in ACTS
    if acts and len(request.body) <= BODY_BYTES_MAX:
        told = await decider.own_act(ask, request.body)
        if isinstance(told, tuple):
            return _answer(*told, ask)
        return _refusal(told, ask)
    state = await decider.own_state(ask)  # nobody we do not know is told anything
    if isinstance(state, Reason):
        return _refusal(state, ask)
    return _mistaken(ask) or _json(200, _view(state), ask)


def _mistaken(ask: Ask) -> Refusal | None:
    """What is wrong with a request that acts on nothing; None for a look at oneself."""
    request = ask.request
    methods = _METHODS.get(request.path)
    if methods is None:
        return _mistake(404, f"no {request.path} here; there are {', '.join(_METHODS)}", ask)
    if request.method not in methods:
        return _mistake(405, f"{request.path} answers {' and '.join(methods)} only", ask)
    if request.path != SELF:
        return _mistake(413, f"your request is longer than {BODY_BYTES_MAX} bytes", ask)
    return None


def _view(state: OwnState) -> dict[str, Any]:
    """Who pullcord takes the caller for, what stands over it, what is left of it."""
    who = state.identity
    # A cord on one of its tools stands in `pulled`, and does not stop the run.
    levels = {pull.level for pull in state.pulls if pull.scope is not Scope.TOOL}
    over = [(*window, limit) for window, limit in zip(state.windows, state.limits, strict=True)]
    # What only tells refuses nothing, and what some tools may spend is not what is left for all.
    left = [
        limit.remaining
        for ceiling, _, limit in over
        if ceiling.count is Count.SPEND and ceiling.then is not Then.ALERT and ceiling.tools == _ALL
    ]
    return {
        "run": who.run,
        "tenant": who.tenant,
        "parent": who.parent or None,
        "root": who.root,
        "agent": who.agent or None,
        "release": who.release or None,
        "tools": who.tools,
        "read_only": who.read_only,
        "halted": Level.HALT in levels,
        "frozen": Level.FREEZE in levels,
        "throttled": Level.THROTTLE in levels,
        "pulled": [{"rule": pull.rule, "reason": pull.reason} for pull in state.pulls],
        "budget_left_usd": usd(min(left)) if left else None,
        "ceilings": [_ceiling_as_json(*each) for each in over],
    }


_ALL = ("*",)


def _ceiling_as_json(ceiling: Ceiling, subject: str, limit: Limit) -> dict[str, Any]:
    """A ceiling, whose window it is, and what is left there. Money is dollars as text, exactly.

    `reset_seconds` is null where no time brings room: of a whole life, and of calls in flight.
    """
    is_money = ceiling.count is Count.SPEND
    within_us = ceiling.within_us
    return {
        "id": ceiling.id,
        "is": str(ceiling),
        "per": ceiling.per,
        "of": subject or None,
        "count": ceiling.count,
        "tools": None if ceiling.tools == _ALL else ceiling.tools,
        "then": ceiling.then,
        "unit": "usd" if is_money else ceiling.count,
        "at_most": usd(ceiling.at_most) if is_money else ceiling.at_most,
        "left": usd(limit.remaining) if is_money else limit.remaining,
        "within_seconds": None if within_us is None else within_us // 1_000_000,
        "reset_seconds": None if within_us is None else limit.reset_seconds or None,
    }


def _refusal(told: Verdict | Reason, ask: Ask) -> Refusal:
    """As for any other call, so that a client knows a limit for one."""
    if isinstance(told, Reason):
        told = Verdict(Action.REFUSE, told, "pullcord")
    return refuse(told, ask.call_id, request=ask.request)


def _mistake(status: int, message: str, ask: Ask) -> Refusal:
    return _json(status, {"error": {"message": message}}, ask)


def _json(status: int, body: object, ask: Ask) -> Refusal:
    return _answer(status, json.dumps(body), ask)


def _answer(status: int, body: str, ask: Ask) -> Refusal:
    action, reason = Action.ALLOW, Reason.ALLOWED
    if status >= 400:
        action, reason = Action.REFUSE, _REASONS.get(status, Reason.MALFORMED_REQUEST)
    headers = (
        ("content-type", "application/json"),
        ("cache-control", "no-store"),
        ("pullcord-decision", decision_header(action, reason, ask.call_id)),
    )
    return Refusal(status, headers, b"" if ask.request.method == "HEAD" else body.encode())
