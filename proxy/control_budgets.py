"""The routes of the control API by which budgets are looked at and corrected by hand."""

import structlog
from aiohttp import web

from policies.ceilings import Per
from proxy import budgeting
from proxy.control_access import Role, Route, actor
from proxy.control_service import SERVICE, Body, act, read
from proxy.money import SignedUsd, Usd

log = structlog.get_logger()


class ShowBody(Body):
    """The query of a look."""

    scope: Per
    subject: str = ""
    all: bool = False


class SetBody(Body):
    """`usd` null takes the budget away."""

    run: str
    usd: Usd | None
    reason: str


class AdjustBody(Body):
    scope: Per
    subject: str = ""
    usd: SignedUsd
    reason: str


async def _shown(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    policy, now_us = service.decider.policy, service.clock.now_us()
    asked = ShowBody.model_validate(dict(request.query))
    return web.json_response(
        await act(
            service,
            lambda store: budgeting.shown(
                store, policy, asked.scope, asked.subject, now_us, all_counts=asked.all
            ),
        )
    )


async def _adjust(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, AdjustBody)
    policy, now_us, who = service.decider.policy, service.clock.now_us(), actor(request)
    answer = await act(
        service,
        lambda store: budgeting.adjusted(
            store,
            policy,
            body.scope,
            body.subject,
            body.usd,
            reason=body.reason,
            actor=who,
            at_us=now_us,
        ),
    )
    log.info(
        "budget.adjusted",
        scope=body.scope,
        subject=body.subject,
        usd=answer["usd"],
        actor=who,
        reason=body.reason,
    )
    return web.json_response(answer)


async def _set(request: web.Request) -> web.Response:
    service, body = request.app[SERVICE], await read(request, SetBody)
    now_us, who = service.clock.now_us(), actor(request)
    answer = await act(
        service,
        lambda store: budgeting.budgeted(
            store, body.run, body.usd, reason=body.reason, actor=who, at_us=now_us
        ),
    )
    log.info("budget.set", **answer)
    return web.json_response(answer)


ROUTES = (
    Route("GET", "/v1/budgets", _shown, Role.VIEW),
    Route("POST", "/v1/budgets/adjust", _adjust, Role.ADMIN),
    Route("POST", "/v1/budgets/set", _set, Role.ADMIN),
)
