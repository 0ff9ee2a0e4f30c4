"""The routes of the control API by which incidents are looked at and closed."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import structlog
from aiohttp import web

from ledger.connection import open_reader
from ledger.sqlite import sqlite3
from proxy import incidents
from proxy.control_access import Role, Route, actor
from proxy.control_service import SERVICE, Body, Service, act, read

log = structlog.get_logger()


class ListBody(Body):
    """The query of a list."""

    all: bool = False


class ShowBody(Body):
    """The query of a look. `incident` is an id, or the start of one."""

    incident: str


class CloseBody(Body):
    """`incident` is an id, or the start of one."""

    incident: str
    reason: str


async def _read[Found](service: Service, asked: Callable[[sqlite3.Connection], Found]) -> Found:
    def found() -> Found:
        with contextlib.closing(open_reader(service.settings.data)) as reader:
            return asked(reader)

    return await asyncio.to_thread(found)


async def _listed(request: web.Request) -> web.Response:
    asked = ListBody.model_validate(dict(request.query))
    service = request.app[SERVICE]
    answer: dict[str, Any] = await _read(
        service, lambda reader: incidents.listed(reader, closed=asked.all)
    )
    return web.json_response(answer)


async def _shown(request: web.Request) -> web.Response:
    asked = ShowBody.model_validate(dict(request.query))
    answer: dict[str, Any] = await _read(
        request.app[SERVICE], lambda reader: incidents.shown(reader, asked.incident)
    )
    return web.json_response(answer)


async def _close(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, CloseBody)
    who, now_us = actor(request), service.clock.now_us()
    found = await _read(service, lambda reader: incidents.named(reader, body.incident))
    answer = await act(
        service,
        lambda store: incidents.closed(
            store, found.id, reason=body.reason, actor=who, at_us=now_us
        ),
    )
    log.info("incident.closed", incident=found.id, actor=who, reason=body.reason)
    return web.json_response(answer)


ROUTES = (
    Route("GET", "/v1/incidents", _listed, Role.VIEW),
    Route("GET", "/v1/incidents/show", _shown, Role.VIEW),
    Route("POST", "/v1/incidents/close", _close, Role.RELEASE),
)
