"""The route of the control API by which a person says how a call of unknown outcome ended."""

import structlog
from aiohttp import web

from ledger.states import CallState
from proxy import resolutions
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


ROUTES = (Route("POST", "/v1/calls/resolve", _resolve, Role.RELEASE),)
