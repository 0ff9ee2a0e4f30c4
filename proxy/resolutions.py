"""A person's word on a call of unknown outcome, as the control API and the command line give it.

As in operations.py, the act runs inside a transaction of whoever owns the store.
"""

import shlex
from typing import Any

from ledger.queries import CALL_COLUMNS, Row
from ledger.resolution import Resolution
from ledger.states import CallState, EventType
from ledger.store import Store
from policies.call import Effect
from policies.policy import Policy
from proxy.operations import NotFound, OperationError, check_text, timestamp

Answer = dict[str, Any]

STATES = (CallState.DONE, CallState.NOT_SENT)
"""What a call of unknown outcome may be said to be."""


def resolved(
    store: Store,
    policy: Policy | None,
    call: str,
    state: CallState,
    *,
    reason: str,
    actor: str,
    at_us: int,
    dry_run: bool = False,
) -> Answer:
    """Raises OperationError, NotFound, and LedgerError for a call that is not unknown."""
    check_text("the reason", reason)
    if not dry_run and not any(each.isprintable() and not each.isspace() for each in reason):
        raise OperationError("a resolution needs a reason that can be read: --reason TEXT")
    done = store.resolve(call, state, reason=reason, actor=actor, at_us=at_us, dry_run=dry_run)
    if done is None:
        raise NotFound(
            f"the ledger has no call {call!r}; pullcord ledger query state:unknown lists the "
            "calls of unknown outcome"
        )
    return _as_json(done, policy)


def _as_json(done: Resolution, policy: Policy | None) -> Answer:
    until_us = done.protected_until_us
    return {
        "call": {name: done.call[name] for name in CALL_COLUMNS},
        "why_unknown": why_unknown(done.call),
        "state": done.state.value,
        "changed": done.changed,
        "actor": done.actor or None,
        "reason": done.reason or None,
        "at": done.at or None,
        "claim": None if done.claim is None else done.claim.value,
        "protected_until": None if until_us is None else timestamp(until_us),
        "give_back": _give_back(done, policy),
    }


def why_unknown(call: Row) -> str | None:
    """What the record says about how it became unknown."""
    ended = [row for row in call["events"] if row["type"] == EventType.OUTCOME]
    if not ended:
        return None
    status = f"the upstream answered {ended[-1]['status']}" if ended[-1]["status"] else ""
    return "; ".join(filter(None, (ended[-1]["reason"], status, ended[-1]["detail"]))) or None


def _give_back(done: Resolution, policy: Policy | None) -> list[str]:
    """What to type where money of a call that was not sent is still counted. How much it reserved
    is in no record; what it cost, as far as that was seen, is."""
    call = done.call
    if done.state is not CallState.NOT_SENT or not call["run"]:
        return []
    tool = policy.tool(call["tool"]) if policy else None
    priced = tool is not None and (tool.cost is not None or tool.model_api is not None)
    if call["effect"] != Effect.MODEL and not priced and call["cost_usd"] is None:
        return []
    amount = "AMOUNT" if call["cost_usd"] is None else f"{call['cost_usd']:.6f}"
    why = shlex.quote(f"call {call['id']} was not sent")
    over = (("run", call["run"]), ("tenant", call["tenant"]))
    return [
        f"pullcord budget adjust {scope} {shlex.quote(name)} --usd -{amount} --reason {why}"
        for scope, name in over
        if name
    ]
