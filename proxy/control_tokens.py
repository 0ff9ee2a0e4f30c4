"""The routes of the control API by which tokens are made, listed and revoked: runs' and operators'.

A secret is in the answer that makes it, once, and nowhere else.
"""

from dataclasses import replace

from aiohttp import web

from ledger.tokens import Grant
from proxy import operations
from proxy.control_access import Role, Route, actor
from proxy.control_operators import enroll, operator_as_json, revoke
from proxy.control_service import SERVICE, Body, act, read
from proxy.money import Usd


class MintBody(Body):
    run: str
    tenant: str = ""
    parent: str = ""
    agent: str = ""
    release: str = ""
    tools: tuple[str, ...] | None = None
    expires_seconds: int | None = None
    budget_usd: Usd | None = None
    read_only: bool = False


class EnrollBody(Body):
    name: str
    role: Role


class RevokeBody(Body):
    name: str


async def _mint(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, MintBody)
    who, now_us = actor(request), service.clock.now_us()
    policy = service.decider.policy
    fields = body.model_dump(exclude={"expires_seconds", "budget_usd"})
    grant = Grant(**fields, budget_microusd=body.budget_usd)
    if body.expires_seconds is not None:
        grant = replace(grant, expires_us=now_us + body.expires_seconds * 1_000_000)
    minted = await act(service, lambda store: operations.mint(store, grant, who, now_us, policy))
    told = {**operations.token_as_json(minted.token), "secret": minted.secret}
    return web.json_response(told, status=201)


async def _enroll(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, EnrollBody)
    who, now_us = actor(request), service.clock.now_us()
    new = await act(service, lambda store: enroll(store, body.name, body.role, who, now_us))
    told = {**operator_as_json(new.operator), "secret": new.secret}
    return web.json_response(told, status=201)


async def _listed(request: web.Request) -> web.Response:
    tokens, operators = await act(
        request.app[SERVICE], lambda store: (store.tokens(), store.operators())
    )
    return web.json_response(
        {
            "tokens": [operations.token_as_json(each) for each in tokens],
            "operators": [operator_as_json(each) for each in operators],
        }
    )


async def _revoke(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, RevokeBody)
    who, now_us = actor(request), service.clock.now_us()
    tokens, operators = await act(service, lambda store: revoke(store, body.name, who, now_us))
    return web.json_response(
        {
            "revoked": [operations.token_as_json(each) for each in tokens],
            "dismissed": [operator_as_json(each) for each in operators],
        }
    )


ROUTES = (
    Route("POST", "/v1/tokens", _mint, Role.ADMIN),
    Route("GET", "/v1/tokens", _listed, Role.ADMIN),
    Route("POST", "/v1/tokens/revoke", _revoke, Role.ADMIN),
    Route("POST", "/v1/operators", _enroll, Role.ADMIN),
)
