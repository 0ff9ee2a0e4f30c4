"""The routes of the control API by which some runs go first past the cords of an incident."""

import asyncio
import contextlib
from typing import Any

import structlog
from aiohttp import web

from ledger.connection import open_reader
from policies.verdict import Level, Scope
from proxy import going_first, incidents, pulling
from proxy.control_access import Role, Route, actor
from proxy.control_service import SERVICE, Body, Service, act, read

log = structlog.get_logger()


class OfOne(Body):
    """`incident` is an id, or the start of one."""

    incident: str
    reason: str


class Cord(Body):
    level: Level
    scope: Scope
    subject: str = ""


class OpenBody(OfOne):
    """The named runs of the release go first past these cords, and the next `places` that come."""

    cords: list[Cord]
    release: str
    runs: tuple[str, ...] = ()
    places: int = 0
    after_seq: int | None = None


async def _id(service: Service, start: str) -> str:
    def found() -> str:
        with contextlib.closing(open_reader(service.settings.data)) as reader:
            return incidents.named(reader, start).id

    return await asyncio.to_thread(found)


async def _open(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, OpenBody)
    who, now_us = actor(request), service.clock.now_us()
    one, policy = await _id(service, body.incident), service.decider.policy
    cords = [(cord.level, cord.scope, cord.subject) for cord in body.cords]
    answer = await act(
        service,
        lambda store: going_first.opened(
            store,
            policy,
            one,
            cords,
            release=body.release,
            runs=body.runs,
            places=body.places,
            reason=body.reason,
            actor=who,
            at_us=now_us,
            after_seq=body.after_seq,
        ),
    )
    for cord in cords:  # a start that pulled them again by the file HALT would end it
        warning = await asyncio.to_thread(pulling.struck, service.letterbox, cord)
        if warning:
            log.warning("canary.file", why=warning)
    log.info("canary.opened", incident=one, actor=who, release=body.release, reason=body.reason)
    return web.json_response(answer)


async def _end(request: web.Request) -> web.Response:
    """Answered when every engine has cut what may not go on."""
    service, body = request.app[SERVICE], await read(request, OfOne)
    who, now_us = actor(request), service.clock.now_us()
    one = await _id(service, body.incident)
    answer: dict[str, Any] = await act(
        service,
        lambda store: going_first.ended(store, one, reason=body.reason, actor=who, at_us=now_us),
    )
    swept = await service.fleet.sweep()
    log.info("canary.ended", incident=one, actor=who, reason=body.reason)
    return web.json_response({**answer, "cut": len(swept.cut)})


async def _widen(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, OfOne)
    who, now_us = actor(request), service.clock.now_us()
    one, policy = await _id(service, body.incident), service.decider.policy
    answer = await act(
        service,
        lambda store: going_first.widened(
            store, policy, one, reason=body.reason, actor=who, at_us=now_us
        ),
    )
    if going_first.is_bad(answer):
        await service.fleet.sweep()
    log.info("canary.judged", incident=one, actor=who, health=answer["health"])
    return web.json_response(answer)


ROUTES = (
    Route("POST", "/v1/incidents/canary", _open, Role.RELEASE),
    Route("POST", "/v1/incidents/canary/end", _end, Role.PULL),
    Route("POST", "/v1/incidents/canary/widen", _widen, Role.RELEASE),
)
