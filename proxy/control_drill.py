"""The routes of `pullcord drill`: begin, pull and release a level, tell how it went, end.

What they let happen is in drilling.py. They take an admin: beginning one opens a port of this
machine's loopback to the drill's own token.
"""

import json
from typing import Annotated

from aiohttp import web
from pydantic import Field

from ledger.states import EventType
from policies.verdict import Level, Scope
from proxy import operations
from proxy.control_access import Role, Route, actor
from proxy.control_service import SERVICE, Body, act, read
from proxy.drilling import SUBJECTS

WHY_CHARACTERS_MAX = 300  # a sentence; the row must hold the figures beside it


class BeginBody(Body):
    port: Annotated[int, Field(ge=1, le=65535)]


class LevelBody(Body):
    level: Level
    scope: Scope


class LevelResult(Body):
    """How one level went: milliseconds until the pull returned and until the last write arrived
    (None: it was not measured), and writes that arrived before and after."""

    level: Level
    scope: Scope
    return_ms: float | None
    contain_ms: float | None
    before: Annotated[int, Field(ge=0)]
    after: Annotated[int, Field(ge=0)]


class ResultBody(Body):
    """`leaked`: it failed because a canary got past a cord, not because one could not fly."""

    passed: bool
    leaked: bool = False
    why: str = ""
    levels: Annotated[list[LevelResult], Field(max_length=len(Level) * len(Scope))]


async def _begin(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, BeginBody)
    if service.listening is None:
        raise operations.OperationError("the engine does not listen yet; try again")
    secret = await service.drill.begin(body.port)
    subjects = {scope.value: subject for scope, subject in SUBJECTS.items()}
    return web.json_response(
        {
            "listening": service.listening,
            "run": subjects["run"],
            "secret": secret,
            "subjects": subjects,
        },
        status=201,
    )


async def _pull(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, LevelBody)
    return web.json_response(await service.drill.pull(body.level, body.scope))


async def _release(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, LevelBody)
    await service.drill.release(body.level, body.scope)
    return web.json_response({})


async def _result(request: web.Request) -> web.Response:
    """Failed first, then recorded: a ledger that does not take the row hides no failure."""
    service, body = request.app[SERVICE], await read(request, ResultBody)
    who, now_us = actor(request), service.clock.now_us()
    halts = body.leaked and service.settings.failed_drill == "halt"
    why = body.why[:WHY_CHARACTERS_MAX] or "it gave no reason"
    told = body.model_copy(update={"why": "" if body.passed else why})
    detail = json.dumps(told.model_dump(mode="json"), separators=(",", ":"))
    if body.passed:
        service.drill.failure = ""
    else:
        await service.drill.failed(why, halts=halts)
    await act(
        service,
        lambda store: store.note(EventType.DRILLED, actor=who, at_us=now_us, detail=detail),
    )
    await service.drill.end()
    return web.json_response({"halted": halts})


async def _end(request: web.Request) -> web.Response:
    await request.app[SERVICE].drill.end()
    return web.json_response({})


ROUTES = (
    Route("POST", "/v1/drill", _begin, Role.ADMIN),
    Route("DELETE", "/v1/drill", _end, Role.ADMIN),
    Route("POST", "/v1/drill/pull", _pull, Role.ADMIN),
    Route("POST", "/v1/drill/release", _release, Role.ADMIN),
    Route("POST", "/v1/drill/result", _result, Role.ADMIN),
)
