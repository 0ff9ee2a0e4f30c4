"""The routes of the control API by which incidents are looked at, opened, seen to and closed."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Literal

import structlog
from aiohttp import web

from ledger.connection import open_reader
from ledger.sqlite import sqlite3
from ledger.store import Store
from proxy import incident_acts, incidents
from proxy.control_access import Role, Route, actor
from proxy.control_service import SERVICE, Body, Service, act, read

log = structlog.get_logger()


class ListBody(Body):
    """The query of a list."""

    all: bool = False


class ShowBody(Body):
    """The query of a look. `incident` is an id, or the start of one."""

    incident: str


class OpenBody(Body):
    """`since` is a time, or how long ago; `tenant` tells whose tool, or whose run, is meant.
    `global` takes no name. `severity` is that of a new one, `trip` if left out; it makes an alert
    that is open a trip."""

    kind: Literal["run", "tenant", "tool", "release", "global"]
    name: str = ""
    tenant: str = ""
    since: str | None = None
    severity: Literal["alert", "trip"] | None = None
    reason: str


class OfOne(Body):
    """`incident` is an id, or the start of one."""

    incident: str


class AckBody(OfOne):
    """`owner` is who takes care of it; empty: who asks."""

    owner: str = ""


class NoteBody(OfOne):
    """A public note is for those who are affected."""

    text: str
    public: bool = False


class StepBody(OfOne):
    """A step of the runbook that was done, and what came of it."""

    step: str
    text: str = ""


class ProveBody(OfOne):
    """The digest of a regression test that was shown to fail and to pass, and where it lies."""

    digest: str
    where: str


class NotifiedBody(OfOne):
    """A message to a tenant that arrived: by which contact, which one, and where."""

    tenant: str
    contact: str
    digest: str
    to: str


class CloseBody(OfOne):
    """`waive` is why there is no regression test that is proven."""

    reason: str
    waive: str = ""


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
    service = request.app[SERVICE]
    answer: dict[str, Any] = await _read(
        service, lambda reader: incidents.shown(reader, asked.incident, service.settings.config)
    )
    return web.json_response(answer)


async def _open(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, OpenBody)
    who, now_us = actor(request), service.clock.now_us()

    def meant(reader: sqlite3.Connection) -> incident_acts.Wanted:
        return incident_acts.wanted(reader, body.kind, body.name, body.tenant, body.since, now_us)

    wanted = await _read(service, meant)
    answer = await act(
        service,
        lambda store: incident_acts.opened(
            *(store, wanted), reason=body.reason, severity=body.severity, actor=who, at_us=now_us
        ),
    )
    if answer["new"]:
        log.info("incident.opened", incident=answer["id"], actor=who, reason=body.reason)
    return web.json_response(answer)


Act = Callable[[Store, str, str, int], dict[str, Any]]
"""Given the store, the whole id of an incident, who acts and when; gives the answer."""


async def _acted(
    request: web.Request, body: OfOne, event: str, does: Act, **said: str | None
) -> web.Response:
    """`said` goes into the log."""
    service = request.app[SERVICE]
    who, now_us = actor(request), service.clock.now_us()
    found = await _read(service, lambda reader: incidents.named(reader, body.incident))
    answer = await act(service, lambda store: does(store, found.id, who, now_us))
    log.info(event, incident=found.id, actor=who, **said)
    return web.json_response(answer)


async def _ack(request: web.Request) -> web.Response:
    body = await read(request, AckBody)

    def does(store: Store, one: str, who: str, at_us: int) -> dict[str, Any]:
        return incident_acts.acked(store, one, owner=body.owner, actor=who, at_us=at_us)

    return await _acted(request, body, "incident.acked", does, owner=body.owner or None)


async def _note(request: web.Request) -> web.Response:
    body = await read(request, NoteBody)

    def does(store: Store, one: str, who: str, at_us: int) -> dict[str, Any]:
        return incident_acts.noted(
            store, one, body.text, public=body.public, actor=who, at_us=at_us
        )

    return await _acted(request, body, "incident.noted", does)


async def _step(request: web.Request) -> web.Response:
    body = await read(request, StepBody)

    def does(store: Store, one: str, who: str, at_us: int) -> dict[str, Any]:
        return incident_acts.stepped(store, one, body.step, body.text, actor=who, at_us=at_us)

    return await _acted(request, body, "incident.step", does, step=body.step)


async def _prove(request: web.Request) -> web.Response:
    body = await read(request, ProveBody)

    def does(store: Store, one: str, who: str, at_us: int) -> dict[str, Any]:
        return incident_acts.proven(store, one, body.digest, body.where, actor=who, at_us=at_us)

    return await _acted(request, body, "incident.proven", does, digest=body.digest)


async def _notified(request: web.Request) -> web.Response:
    body = await read(request, NotifiedBody)

    def does(store: Store, one: str, who: str, at_us: int) -> dict[str, Any]:
        return incident_acts.notified(
            *(store, one, body.tenant, body.contact, body.digest, body.to), actor=who, at_us=at_us
        )

    return await _acted(request, body, "incident.notified", does, tenant=body.tenant)


async def _close(request: web.Request) -> web.Response:
    body = await read(request, CloseBody)

    def notes(reader: sqlite3.Connection) -> list[str]:
        return incident_acts.closing(reader, incidents.named(reader, body.incident))

    told = await _read(request.app[SERVICE], notes)

    def does(store: Store, one: str, who: str, at_us: int) -> dict[str, Any]:
        found = incident_acts.closed(
            store, one, reason=body.reason, waived=body.waive, actor=who, at_us=at_us
        )
        return {**found, "notes": told}

    return await _acted(request, body, "incident.closed", does, reason=body.reason)


ROUTES = (
    Route("GET", "/v1/incidents", _listed, Role.VIEW),
    Route("GET", "/v1/incidents/show", _shown, Role.VIEW),
    Route("POST", "/v1/incidents/open", _open, Role.PULL),
    Route("POST", "/v1/incidents/ack", _ack, Role.PULL),
    Route("POST", "/v1/incidents/note", _note, Role.PULL),
    Route("POST", "/v1/incidents/step", _step, Role.PULL),
    Route("POST", "/v1/incidents/prove", _prove, Role.RELEASE),
    Route("POST", "/v1/incidents/notified", _notified, Role.RELEASE),
    Route("POST", "/v1/incidents/close", _close, Role.RELEASE),
)
