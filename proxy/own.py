"""The agent's own view of itself, `http://pullcord.invalid/self`. It can loosen nothing.

The name is reserved (RFC 6761), so it is never resolved: a call to it ends here.
"""

import json

from ledger.records import OwnState
from policies.call import Request
from policies.verdict import Action, Level, Reason
from proxy.refuse import Refusal, decision_header

HOST = "pullcord.invalid"


def answer(request: Request, call_id: str, state: OwnState) -> Refusal:
    """`GET /self`: who pullcord takes the caller for, what stands over it, what is left of it."""
    if request.path != "/self":
        return _json(404, {"error": {"message": f"no {request.path} here; try /self"}}, call_id)
    if request.method not in ("GET", "HEAD"):
        return _json(405, {"error": {"message": "only GET is answered here"}}, call_id)
    who = state.identity
    body = {
        "run": who.run,
        "tenant": who.tenant,
        "parent": who.parent or None,
        "root": who.root,
        "agent": who.agent or None,
        "release": who.release or None,
        "tools": who.tools,
        "halted": any(pull.level is Level.HALT for pull in state.pulls),
        "frozen": any(pull.level is Level.FREEZE for pull in state.pulls),
        "pulled": [{"rule": pull.rule, "reason": pull.reason} for pull in state.pulls],
        "ceilings": [
            {
                "id": limit.name,
                "at_most": limit.at_most,
                "remaining": limit.remaining,
                "reset_seconds": limit.reset_seconds,
                "within_seconds": limit.window_seconds or None,
            }
            for limit in state.limits
        ],
    }
    return _json(200, body, call_id)


def _json(status: int, body: object, call_id: str) -> Refusal:
    headers = (
        ("content-type", "application/json"),
        ("cache-control", "no-store"),
        ("pullcord-decision", decision_header(Action.ALLOW, Reason.ALLOWED, call_id)),
    )
    return Refusal(status, headers, json.dumps(body).encode())
