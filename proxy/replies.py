"""A verdict that lets nothing through, as the bytes that its caller is told."""

from dataclasses import replace

from ledger.records import Ask, Decision
from policies.call import Effect, Request, ToolCall
from policies.policy import UNLISTED
from policies.verdict import Action, Reason, Verdict
from proxy.refuse import Refusal, refuse, replay_headers
from proxy.rpc_ids import under_id

NOTHING_HEARD = Request("", "", "", 0, "/")
UNREAD = ToolCall(UNLISTED, Effect.WRITE, "", b"")


def told(reason: Reason, call_id: str, request: Request, call: ToolCall) -> Refusal:
    """A refusal that no line of the policy gave."""
    return refusal(Verdict(Action.REFUSE, reason, "pullcord"), call_id, request, call, "")


def refusal(verdict: Verdict, call_id: str, request: Request, call: ToolCall, run: str) -> Refusal:
    return refuse(verdict, call_id, call.dialect, call.rpc_id, run=run, request=request)


def answer(ask: Ask, decision: Decision, detail: str) -> Refusal:
    """A refusal, or the stored answer."""
    verdict, stored = decision.verdict, decision.answer
    if verdict.action is Action.REPLAY and stored is not None:
        headers, body = stored.headers, stored.body
        if ask.call.rpc_id is not None:
            headers, body = under_id(headers, body, ask.call.rpc_id)
        return Refusal(stored.status, replay_headers(headers, verdict, ask.call_id), body)
    if verdict.action is Action.REPLAY:
        verdict = replace(verdict, action=Action.REFUSE, reason=Reason.DONE_BUT_NOT_STORED)
    if detail and not verdict.detail:
        verdict = replace(verdict, detail=detail)
    run = decision.identity.run if decision.identity else ""
    return refusal(verdict, ask.call_id, ask.request, ask.call, run)
