"""The routes of the control API by which a person looks at calls that wait, and decides them.

What a call asks for is shown to those alone who may approve it: it may hold secrets of the world.
As in operations.py, each act runs inside a transaction of whoever owns the store.
"""

import base64
from typing import Any

import structlog
from aiohttp import web

from ledger.records import Arguments, Hold
from ledger.states import HoldState
from ledger.store import Store
from proxy import operations
from proxy.control_access import Role, Route, actor
from proxy.control_service import SERVICE, Body, act, read

log = structlog.get_logger()


class ShowBody(Body):
    """The query of a look."""

    ticket: str


class DecideBody(Body):
    ticket: str
    reason: str = ""


# ---------------------------------------------------------------------------------- acts


def listed(store: Store, now_us: int) -> dict[str, Any]:
    """All tickets that are still kept, the one that has waited longest first."""
    return {"holds": [hold_as_json(each, now_us) for each in store.holds(now_us)]}


def shown(store: Store, ticket: str, now_us: int) -> dict[str, Any]:
    """A ticket with all that the call asks for. Raises NotFound."""
    found = store.shown(ticket, now_us)
    if found is None:
        raise _no_such(ticket)
    hold, arguments = found
    return {**hold_as_json(hold, now_us), "arguments": arguments and _as_json(arguments)}


def decided(
    store: Store, ticket: str, to: HoldState, *, reason: str, actor: str, at_us: int
) -> dict[str, Any]:
    """Approve or reject. Raises NotFound, OperationError, and LedgerError where it is too late."""
    if len(reason) > operations.TEXT_CHARACTERS_MAX:
        most = f"the reason is longer than {operations.TEXT_CHARACTERS_MAX} characters"
        raise operations.OperationError(most)
    found = store.decide_hold(ticket, to, actor=actor, reason=reason, at_us=at_us)
    if found is None:
        raise _no_such(ticket)
    return hold_as_json(found, at_us)


def _no_such(ticket: str) -> operations.NotFound:
    return operations.NotFound(f"no ticket {ticket!r}; pullcord hold list shows them all")


# ---------------------------------------------------------------------------------- as JSON


def hold_as_json(hold: Hold, now_us: int) -> dict[str, Any]:
    is_open = hold.state in (HoldState.WAITING, HoldState.APPROVED)
    return {
        "ticket": hold.ticket,
        "state": hold.state.value,
        "run": hold.run,
        "tenant": hold.tenant,
        "agent": hold.agent or None,
        "tool": hold.tool,
        "what": hold.summary,
        "rule": hold.rule,
        "at": operations.timestamp(hold.at_us),
        "until": operations.timestamp(hold.until_us),
        "left_seconds": max(0, hold.until_us - now_us) // 1_000_000 if is_open else None,
        "decided": None if hold.decided_us is None else operations.timestamp(hold.decided_us),
        "actor": hold.actor or None,
        "reason": hold.reason or None,
        "used_by": hold.used_by or None,
    }


def _as_json(arguments: Arguments) -> dict[str, Any]:
    """The body as text where it is UTF-8, else in base64."""
    text: str | None = None
    try:
        text = arguments.body.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    return {
        "method": arguments.method,
        "url": arguments.url,
        "headers": [list(pair) for pair in arguments.headers],
        "body": text,
        "body_base64": None if text is not None else base64.b64encode(arguments.body).decode(),
        "body_bytes": len(arguments.body),
    }


# ---------------------------------------------------------------------------------- handlers


async def _listed(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    now_us = service.clock.now_us()
    return web.json_response(await act(service, lambda store: listed(store, now_us)))


async def _shown(request: web.Request) -> web.Response:
    service, now_us = request.app[SERVICE], request.app[SERVICE].clock.now_us()
    asked = ShowBody.model_validate(dict(request.query))
    return web.json_response(await act(service, lambda store: shown(store, asked.ticket, now_us)))


async def _approve(request: web.Request) -> web.Response:
    return await _decide(request, HoldState.APPROVED)


async def _reject(request: web.Request) -> web.Response:
    return await _decide(request, HoldState.REJECTED)


async def _decide(request: web.Request, to: HoldState) -> web.Response:
    service, body = request.app[SERVICE], await read(request, DecideBody)
    who, now_us = actor(request), service.clock.now_us()
    answer = await act(
        service,
        lambda store: decided(store, body.ticket, to, reason=body.reason, actor=who, at_us=now_us),
    )
    log.info(
        f"hold.{to.value}",
        ticket=body.ticket,
        run=answer["run"],
        tool=answer["tool"],
        actor=who,
        reason=body.reason,
    )
    return web.json_response(answer)


ROUTES = (
    Route("GET", "/v1/holds", _listed, Role.VIEW),
    Route("GET", "/v1/holds/show", _shown, Role.RELEASE),
    Route("POST", "/v1/holds/approve", _approve, Role.RELEASE),
    Route("POST", "/v1/holds/reject", _reject, Role.PULL),
)
