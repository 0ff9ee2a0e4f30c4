"""The control API of the running proxy: HTTP for operators, on a Unix socket and, if it is set, on
a TCP port of this machine.

Who may ask for what is decided before a handler runs (control_access.py). Every act goes through
the decider, so that it is judged and recorded like a call. Errors are `{"error": SENTENCE}`.
"""

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import structlog
from aiohttp import web
from pydantic import Field, ValidationError

from ledger.connection import open_reader
from ledger.errors import LedgerError, LedgerUnavailable
from policies.verdict import Level, Pull, Scope
from proxy import (
    control_alerts,
    control_budgets,
    control_calls,
    control_compensating,
    control_drill,
    control_holds,
    control_incidents,
    control_pruning,
    control_recovery,
    control_signals,
    control_tokens,
    operations,
    pulling,
    screen,
)
from proxy.control_access import (
    CALLER,
    Denied,
    Door,
    Handler,
    Refusals,
    Role,
    Route,
    SocketDoor,
    TcpDoor,
    actor,
    admit,
)
from proxy.control_client import HELD
from proxy.control_operators import ensure_one
from proxy.control_port import SHUTDOWN_SECONDS, bound_to, served
from proxy.control_service import SERVICE, Body, Service, read
from proxy.control_socket import bound

log = structlog.get_logger()

Seconds = Annotated[int, Field(ge=1, le=366 * 86_400)]


class PullBody(Body):
    level: Literal["freeze", "halt"]  # only a detector throttles
    scope: Scope
    subject: str = ""
    reason: str = ""
    for_seconds: Seconds | None = None
    dry_run: bool = False


class ReleaseBody(Body):
    level: Level
    scope: Scope
    subject: str = ""
    reason: str
    releases: tuple[str, ...] = ()
    after_seq: int | None = None


_DOOR: web.AppKey[Door] = web.AppKey("door")
_REFUSALS: web.AppKey[Refusals] = web.AppKey("refusals")
_ROLES: web.AppKey[dict[Any, Role | None]] = web.AppKey("roles")


def build(service: Service, door: Door | None = None) -> web.Application:
    """The API over this service behind this door: the socket's, if none is given."""
    app = web.Application(
        middlewares=[_answered], client_max_size=control_alerts.NOTIFICATION_BYTES_MAX
    )
    app[SERVICE], app[_DOOR] = service, door or SocketDoor()
    refusals = app[_REFUSALS] = Refusals(service)
    roles: dict[Any, Role | None] = {}
    for route in ROUTES:
        for method in (route.method, "HEAD") if route.method == "GET" else (route.method,):
            roles[app.router.add_route(method, route.path, route.handler)] = route.role
    app[_ROLES] = roles

    async def close(_: web.Application) -> None:
        await refusals.close()

    app.on_cleanup.append(close)
    return app


async def serve(app: web.Application, socket_path: Path) -> web.AppRunner:
    """Answer on the socket until the runner's `cleanup`. Raises ControlError."""
    listener = bound(socket_path)

    async def remove(_: web.Application) -> None:
        await asyncio.to_thread(socket_path.unlink, missing_ok=True)

    app.on_cleanup.append(remove)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    return runner


async def serve_port(service: Service, address: str) -> web.AppRunner:
    """Answer on the TCP port too, until the runner's `cleanup`. Raises ControlError, LedgerError.

    Where there is no operator yet, one is made, so that somebody can come in.
    """
    listener = bound_to(address)
    try:
        await ensure_one(service)
        return await served(build(service, TcpDoor(service, address)), listener)
    except BaseException:
        listener.close()
        raise


# ---------------------------------------------------------------------------------- handlers


async def _healthz(_: web.Request) -> web.Response:
    return web.json_response({"ok": True})


async def _readyz(request: web.Request) -> web.Response:
    service, caller = request.app[SERVICE], request[CALLER]
    reasons = []
    if service.decider.failure is not None:
        reasons.append(str(service.decider.failure))
    if service.policy_error is not None:
        reasons.append(f"the policy file does not load: {service.policy_error}")
    if service.drill.failure:
        reasons.append(f"the last drill failed: {service.drill.failure}")
    if service.listening is None or not service.fleet.workers:
        reasons.append("the engine does not listen")
    if not reasons:
        lost = (await service.fleet.traced())["lost"]
        warnings = [f"{lost} messages are missing from the trace"] if lost else []
        if caller is not None and caller.role.covers(Role.VIEW):
            warnings += service.sealing.warnings  # they name places
        return web.json_response({"ready": True, **({"warnings": warnings} if warnings else {})})
    body: dict[str, Any] = {"ready": False}
    if caller is not None and caller.role.covers(Role.VIEW):
        body |= {"reasons": reasons, "error": "; ".join(reasons)}
    return web.json_response(body, status=503)


async def _status(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    policy, settings = service.decider.policy, service.settings
    failure = service.decider.failure
    return web.json_response(
        {
            "pid": os.getpid(),  # which decides; the other one, when signalled, ends the proxy
            "proxy_pid": service.proxy_pid,
            "since": operations.timestamp(service.started_us),
            "up_seconds": max(0, service.clock.now_us() - service.started_us) // 1_000_000,
            "listening": service.listening,
            "control": settings.control,
            "identity": settings.identity,
            "data": str(settings.data),
            "policy": {
                "digest": policy.digest,
                "source": policy.source,
                "error": service.policy_error,
            },
            "prices": {"date": service.prices.date, "source": service.prices.source},
            "bounds": screen.bounds_of(policy),
            "ledger": {"error": failure and str(failure), "owed": service.decider.owed},
            "seals": service.sealing.as_json(),
            "notify": service.notifying.as_json(),
            "calls": await service.fleet.calls(),
            "workers": [{"id": worker.id, "pid": worker.pid} for worker in service.fleet.workers],
            **await pulling.status_of(service),
        }
    )


async def _pull(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, PullBody)
    who, now_us, lasts = actor(request), service.clock.now_us(), body.for_seconds
    until_us = None if lasts is None else now_us + lasts * 1_000_000
    wanted = Pull(Level(body.level), body.scope, body.subject, body.reason, who, now_us, until_us)
    if body.dry_run:
        operations.check(service.decider.policy, wanted)
        return web.json_response(await asyncio.to_thread(_previewed, service, wanted))
    operations.check(service.decider.policy, wanted)
    try:
        async with service.standing(wanted):
            answer = await pulling.pull(service, wanted)
    except LedgerUnavailable as failure:
        log.error("cord.not_stored", rule=wanted.rule, actor=who, error=str(failure))
        return web.json_response({"error": f"{failure}; {HELD}"}, status=503)
    log.info("cord.pulled", rule=wanted.rule, actor=who, reason=body.reason, cut=answer["cut"])
    return web.json_response(answer)


def _previewed(service: Service, cord: Pull) -> dict[str, Any]:
    with contextlib.closing(open_reader(service.settings.data)) as reader:
        return pulling.preview(reader, cord.level, cord.scope, cord.subject, cord.at_us)


async def _release(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, ReleaseBody)
    name, who = (body.level, body.scope, body.subject), actor(request)
    answer = await pulling.release(
        *(service, name),
        reason=body.reason,
        actor=who,
        releases=body.releases,
        after_seq=body.after_seq,
    )
    rule = answer["released"]["rule"]
    log.info("cord.released", rule=rule, actor=who, reason=body.reason, to=body.releases)
    return web.json_response(answer)


ROUTES = (
    Route("GET", "/healthz", _healthz, None),
    Route("GET", "/readyz", _readyz, None),
    Route("GET", "/v1/status", _status, Role.VIEW),
    Route("POST", "/v1/pull", _pull, Role.PULL),
    Route("POST", "/v1/release", _release, Role.RELEASE),
    *control_alerts.ROUTES,
    *control_budgets.ROUTES,
    *control_calls.ROUTES,
    *control_compensating.ROUTES,
    *control_drill.ROUTES,
    *control_holds.ROUTES,
    *control_incidents.ROUTES,
    *control_pruning.ROUTES,
    *control_recovery.ROUTES,
    *control_signals.ROUTES,
    *control_tokens.ROUTES,
)


# ---------------------------------------------------------------------------------- around them


@web.middleware
async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Who asks is looked at first; every failure becomes JSON with a sentence."""
    app = request.app
    # What is no route is told to those alone who may look.
    needed = app[_ROLES].get(request.match_info.route, Role.VIEW)
    try:
        await admit(app[_DOOR], request, needed)
        app[SERVICE].decider.flush()  # who asks finds in the record all that was answered before
        response = await handler(request)
    except Denied as denied:
        what = f"{denied.status} {request.method} {request.path}: {denied}"
        app[_REFUSALS].note(denied.actor, what)
        response = _failure(denied.status, str(denied))
        response.headers.update(denied.headers)
    except ValidationError as error:
        response = _failure(400, _told(error))
    except operations.NotFound as error:
        response = _failure(404, str(error))
    except operations.OperationError as error:
        response = _failure(400, str(error))
    except LedgerUnavailable as error:
        response = _failure(503, str(error))
    except LedgerError as error:
        response = _failure(409, str(error))
    except web.HTTPException as error:
        response = _failure(error.status, f"{request.method} {request.path}: {error.reason}")
    except Exception:
        log.exception("control.failed", path=request.path)
        response = _failure(500, "the proxy failed at this; the cause is in its log")
    response.headers["Server"] = "pullcord"
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _failure(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def _told(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in detail['loc']) or 'body'}: {detail['msg']}"
        for detail in error.errors()
    )
