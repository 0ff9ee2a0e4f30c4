"""The routes of the control API by which a person says how a call of unknown outcome ended, and
asks the upstream before."""

from functools import partial

import structlog
from aiohttp import web
from pydantic import Field

from ledger.states import CallState
from proxy import operator_calls, resolutions, verifying
from proxy.control_access import Role, Route, actor
from proxy.control_service import SERVICE, Body, act, read
from proxy.operations import OperationError

log = structlog.get_logger()


class ResolveBody(Body):
    """`call` is an id or the start of one."""

    call: str
    state: CallState
    reason: str = ""
    dry_run: bool = False


async def _resolve(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, ResolveBody)
    if body.state not in resolutions.STATES:
        raise OperationError(f"a call is resolved as {' or '.join(resolutions.STATES)}")
    who, now_us, policy = actor(request), service.clock.now_us(), service.decider.policy
    answer = await act(
        service,
        lambda store: resolutions.resolved(
            store,
            policy,
            body.call,
            body.state,
            reason=body.reason,
            actor=who,
            at_us=now_us,
            dry_run=body.dry_run,
        ),
    )
    if answer["changed"]:
        call = answer["call"]
        log.info(
            "call.resolved",
            call=call["id"],
            run=call["run"],
            tool=call["tool"],
            state=body.state,
            actor=who,
            reason=body.reason,
        )
    return web.json_response(answer)


class VerifyBody(Body):
    """`given` are values of places that the person knows, such as `request.customer`."""

    call: str
    given: dict[str, str] = Field(default_factory=dict)
    dry_run: bool = False


async def _verify(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, VerifyBody)
    decider = service.decider

    def stops(tool: str) -> str:
        return operator_calls.stopped(decider.policy, decider.pulls, tool)

    ask = verifying.Question(body.call, body.given, actor(request), body.dry_run)
    ground = verifying.ground(service.settings, service.listening, decider.policy, stops)
    answer = await verifying.verified(ask, ground, partial(act, service), service.clock.now_us)
    if not body.dry_run:
        heard = answer["heard"]
        log.info(
            "call.verified",
            call=answer["call"]["id"],
            tool=answer["plan"]["tool"],
            actor=ask.actor,
            status=heard and heard["status"],
            why=answer["why_unheard"],
        )
    return web.json_response(answer)


ROUTES = (
    Route("POST", "/v1/calls/resolve", _resolve, Role.RELEASE),
    Route("POST", "/v1/calls/verify", _verify, Role.RELEASE),
)
