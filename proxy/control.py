"""The control API of the running proxy: HTTP on a Unix socket, for operators of this machine.

Who is at the other end is told by the kernel, never by what is sent: only the proxy's own user
and root are answered (design, section 6). Every act goes through the decider, so that it is
judged and recorded like a call. Errors are `{"error": SENTENCE}`.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import structlog
from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from ledger.errors import LedgerError, LedgerUnavailable
from ledger.store import Store
from ledger.tokens import Grant
from policies.verdict import Level, Pull, Scope
from proxy import operations
from proxy.clock import Clock
from proxy.control_socket import bound, peer_uid, user_name
from proxy.decider import Decider
from proxy.gate import Gate, Live
from proxy.settings import Settings

log = structlog.get_logger()

BODY_BYTES_MAX = 64 * 1024  # the longest request is a reason and a list of tools
SHUTDOWN_SECONDS = 1.0  # no request here waits for anything but the ledger


class Service(Protocol):
    """The running proxy as this API needs it."""

    @property
    def decider(self) -> Decider: ...
    @property
    def gate(self) -> Gate: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def clock(self) -> Clock: ...

    @property
    def started_us(self) -> int:
        """When it was started, UTC microseconds."""

    @property
    def listening(self) -> str | None:
        """HOST:PORT at which agents reach it; None until the engine listens."""

    @property
    def policy_error(self) -> str | None:
        """Why the policy file as it is now does not load; None while it does."""

    def sweep(self) -> int:
        """Cut every live call that a halt stands over; how many those were."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PullBody(_Body):
    level: Level
    scope: Scope
    subject: str = ""
    reason: str = ""


class ReleaseBody(_Body):
    level: Level
    scope: Scope
    subject: str = ""
    reason: str


class MintBody(_Body):
    run: str
    tenant: str = ""
    parent: str = ""
    agent: str = ""
    release: str = ""
    tools: tuple[str, ...] | None = None
    expires_seconds: int | None = None


class RevokeBody(_Body):
    name: str


_SERVICE: web.AppKey[Service] = web.AppKey("service")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build(service: Service) -> web.Application:
    """The API over this service; `serve` puts it on a socket."""
    app = web.Application(middlewares=[_answered], client_max_size=BODY_BYTES_MAX)
    app[_SERVICE] = service
    app.add_routes(ROUTES)
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


# ---------------------------------------------------------------------------------- handlers


async def _healthz(_: web.Request) -> web.Response:
    return web.json_response({"ok": True})


async def _readyz(request: web.Request) -> web.Response:
    service = request.app[_SERVICE]
    reasons = []
    if service.decider.failure is not None:
        reasons.append(str(service.decider.failure))
    if service.policy_error is not None:
        reasons.append(f"the policy file does not load: {service.policy_error}")
    if service.listening is None:
        reasons.append("the engine does not listen")
    if not reasons:
        return web.json_response({"ready": True})
    body = {"ready": False, "reasons": reasons, "error": "; ".join(reasons)}
    return web.json_response(body, status=503)


async def _status(request: web.Request) -> web.Response:
    service = request.app[_SERVICE]
    policy, settings = service.decider.policy, service.settings
    failure = service.decider.failure
    standing = [*service.decider.pulls.values(), *policy.pulls.values()]
    cords = sorted(standing, key=lambda cord: (-cord.at_us, cord.rule))
    now_seconds = service.clock.monotonic_seconds()
    return web.json_response(
        {
            "pid": os.getpid(),
            "since": operations.timestamp(service.started_us),
            "up_seconds": max(0, service.clock.now_us() - service.started_us) // 1_000_000,
            "listening": service.listening,
            "identity": settings.identity,
            "data": str(settings.data),
            "policy": {
                "digest": policy.digest,
                "source": policy.source,
                "error": service.policy_error,
            },
            "ledger": {"error": failure and str(failure), "owed": service.decider.owed},
            "pulled": [operations.pull_as_json(cord) for cord in cords],
            "calls": [_live_as_json(live, now_seconds) for live in service.gate.live.values()],
        }
    )


async def _pull(request: web.Request) -> web.Response:
    service, body = request.app[_SERVICE], await _read(request, PullBody)
    policy = service.decider.policy
    actor, now_us = _actor(request), service.clock.now_us()
    wanted = Pull(body.level, body.scope, body.subject, body.reason, actor, now_us)

    cord, changed = await _act(service, lambda store: operations.pull(store, policy, wanted))
    cut = service.sweep()
    log.info("cord.pulled", rule=cord.rule, actor=actor, reason=body.reason, cut=cut)
    return web.json_response(
        {
            "pulled": operations.pull_as_json(cord),
            "changed": changed,
            "cut": cut,
            "undo": operations.undo_command(cord),
        }
    )


async def _release(request: web.Request) -> web.Response:
    service, body = request.app[_SERVICE], await _read(request, ReleaseBody)
    policy = service.decider.policy
    actor, now_us = _actor(request), service.clock.now_us()
    name = (body.level, body.scope, body.subject)

    def act(store: Store) -> Pull:
        return operations.release(
            store, policy, name, reason=body.reason, actor=actor, at_us=now_us
        )

    cord = await _act(service, act)
    log.info("cord.released", rule=cord.rule, actor=actor, reason=body.reason)
    written = policy.pulls.get(name)
    return web.json_response(
        {
            "released": operations.pull_as_json(cord),
            "still": None if written is None else operations.pull_as_json(written),
        }
    )


async def _mint(request: web.Request) -> web.Response:
    service, body = request.app[_SERVICE], await _read(request, MintBody)
    actor, now_us = _actor(request), service.clock.now_us()
    fields = body.model_dump(exclude={"expires_seconds"})
    if body.expires_seconds is not None:
        fields["expires_us"] = now_us + body.expires_seconds * 1_000_000
    minted = await _act(
        service, lambda store: operations.mint(store, Grant(**fields), actor, now_us)
    )
    return web.json_response(
        {**operations.token_as_json(minted.token), "secret": minted.secret}, status=201
    )


async def _tokens(request: web.Request) -> web.Response:
    tokens = await _act(request.app[_SERVICE], lambda store: store.tokens())
    return web.json_response({"tokens": [operations.token_as_json(token) for token in tokens]})


async def _revoke(request: web.Request) -> web.Response:
    service, body = request.app[_SERVICE], await _read(request, RevokeBody)
    actor, now_us = _actor(request), service.clock.now_us()
    revoked = await _act(service, lambda store: operations.revoke(store, body.name, actor, now_us))
    return web.json_response({"revoked": [operations.token_as_json(token) for token in revoked]})


ROUTES = (
    web.get("/healthz", _healthz),
    web.get("/readyz", _readyz),
    web.get("/v1/status", _status),
    web.post("/v1/pull", _pull),
    web.post("/v1/release", _release),
    web.post("/v1/tokens", _mint),
    web.get("/v1/tokens", _tokens),
    web.post("/v1/tokens/revoke", _revoke),
)


# ---------------------------------------------------------------------------------- around them


@web.middleware
async def _answered(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Who asks is looked at first; every failure becomes JSON with a sentence."""
    try:
        _actor(request)
        return await handler(request)
    except PermissionError as error:
        return _failure(403, str(error))
    except ValidationError as error:
        return _failure(400, _told(error))
    except operations.NotFound as error:
        return _failure(404, str(error))
    except operations.OperationError as error:
        return _failure(400, str(error))
    except LedgerUnavailable as error:
        return _failure(503, str(error))
    except LedgerError as error:
        return _failure(409, str(error))
    except web.HTTPException as error:
        return _failure(error.status, f"{request.method} {request.path}: {error.reason}")
    except Exception:
        log.exception("control.failed", path=request.path)
        return _failure(500, "the proxy failed at this; the cause is in its log")


def _failure(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


async def _read[Body: _Body](request: web.Request, model: type[Body]) -> Body:
    return model.model_validate_json(await request.read())


def _told(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in detail['loc']) or 'body'}: {detail['msg']}"
        for detail in error.errors()
    )


async def _act[Result](service: Service, act: Callable[[Store], Result]) -> Result:
    """In a transaction of the decider. An act that is refused must not fail its whole batch."""

    def attempt(store: Store) -> Result | Exception:
        try:
            return act(store)
        except LedgerUnavailable:
            raise
        except (operations.OperationError, LedgerError) as refused:
            return refused

    result = await service.decider.act(attempt)
    if isinstance(result, Exception):
        raise result
    return result


def _live_as_json(live: Live, now_seconds: float) -> Mapping[str, Any]:
    return {
        "id": live.call_id,
        "run": live.identity.run,
        "tenant": live.identity.tenant,
        "tool": live.call.tool,
        "effect": live.call.effect,
        "method": live.request.method,
        "host": live.request.host,
        "sent": live.sent,
        "seconds": round(max(0.0, now_seconds - live.asked_seconds), 1),
    }


def _actor(request: web.Request) -> str:
    """The name of the user at the other end. Raises PermissionError for any but ours and root."""
    transport = request.transport
    if transport is None:
        raise PermissionError("the connection is gone")
    uid = peer_uid(transport.get_extra_info("socket"))
    if uid not in (os.geteuid(), 0):
        raise PermissionError(f"user {uid} may not control this proxy; its own user or root may")
    return user_name(uid)
