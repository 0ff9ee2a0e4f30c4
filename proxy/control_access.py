"""Who may ask the control API for what: roles, the two doors, and the record of who was refused.

At the socket the kernel tells who asks. At the TCP port only a token counts: being on this machine
grants nothing there, because agents and browsers are on it, too (design, section 6).
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import structlog
from aiohttp import web

from ledger.errors import LedgerError, LedgerUnavailable
from ledger.records import Operator
from ledger.states import EventType
from proxy.control_service import Service
from proxy.control_socket import peer_uid, user_name
from proxy.identity import token_hash
from proxy.settings import host_and_port, is_loopback

log = structlog.get_logger()

ROW_SECONDS = 1.0  # who is refused more often gets one row with a count

UNKNOWN = "unknown"
"""The actor where nobody known asks; no operator and no user is recorded so."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,256}")  # RFC 6750, section 2.1; ours are shorter


class Role(StrEnum):
    """What an operator's token is good for. Each covers those before it."""

    VIEW = "view"
    PULL = "pull"
    RELEASE = "release"
    ADMIN = "admin"

    def covers(self, needed: "Role") -> bool:
        ladder = list(Role)
        return ladder.index(self) >= ladder.index(needed)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """One route of the API. `role` is what it takes; None: nothing, not even a token."""

    method: str
    path: str
    handler: Handler
    role: Role | None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the name under which acts are recorded, and the role."""

    name: str
    role: Role


CALLER: web.RequestKey[Caller | None] = web.RequestKey("caller")


def actor(request: web.Request) -> str:
    """The name under which this request is recorded."""
    caller = request.get(CALLER)
    return caller.name if caller else UNKNOWN


class Denied(Exception):
    """The request goes no further; the message says what it takes."""

    def __init__(self, status: int, message: str, actor: str = UNKNOWN) -> None:
        super().__init__(message)
        self.status = status
        self.actor = actor

    @property
    def headers(self) -> dict[str, str]:
        """RFC 9110, section 15.5.2: a 401 says which credentials would do."""
        return {"WWW-Authenticate": 'Bearer realm="pullcord"'} if self.status == 401 else {}


class Door(Protocol):
    """A way in."""

    async def caller(self, request: web.Request) -> Caller | None:
        """Who asks; None for one who shows nothing. Raises Denied."""


async def admit(door: Door, request: web.Request, needed: Role | None) -> None:
    """Note who asks on the request. Raises Denied for whoever has not the role."""
    caller = await door.caller(request)
    request[CALLER] = caller
    if needed is None:
        return
    if caller is None:
        raise Denied(
            401,
            f"this takes an operator's token with the role {needed}, sent as "
            "`Authorization: Bearer TOKEN`; make one: "
            f"pullcord token mint --role {needed} --name NAME",
        )
    if not caller.role.covers(needed):
        raise Denied(
            403, f"this takes the role {needed}; {caller.name} has {caller.role}", caller.name
        )


class SocketDoor:
    """The control socket: the proxy's own user and root may do everything, nobody else anything."""

    async def caller(self, request: web.Request) -> Caller:
        transport = request.transport
        if transport is None:
            raise Denied(403, "the connection is gone")
        uid = peer_uid(transport.get_extra_info("socket"))
        if uid not in (os.geteuid(), 0):
            message = f"user {uid} may not control this proxy; its own user or root may"
            raise Denied(403, message, user_name(uid))
        return Caller(user_name(uid), Role.ADMIN)


class TcpDoor:
    """The control port. `address` is the setting `control`."""

    def __init__(self, service: Service, address: str) -> None:
        self._service = service
        host, port = host_and_port(address)
        shown = f"[{host}]" if ":" in host else host
        names = {shown.lower(), "localhost"} if is_loopback(host) else {shown.lower()}
        self._hosts = {f"{name}:{port}" for name in names} | (names if port == 80 else set())

    async def caller(self, request: web.Request) -> Caller | None:
        self._check_way(request)
        sent = request.headers.getall("Authorization", [])
        if not sent:
            return None
        operator = await self._operator(sent)
        if operator is None:
            raise Denied(
                401,
                "this is no operator's token, or one that was revoked; a run's token opens "
                "nothing here",
            )
        name = f"operator:{operator.name}"
        try:
            return Caller(name, Role(operator.role))
        except ValueError:
            message = f"this version knows no role {operator.role!r}; mint another token"
            raise Denied(403, message, name) from None

    async def _operator(self, sent: list[str]) -> Operator | None:
        """Found by its hash: how long that takes tells nothing about the token. Raises 503."""
        scheme, _, secret = sent[0].partition(" ")
        secret = secret.strip()
        if len(sent) > 1 or scheme.lower() != "bearer" or not _TOKEN.fullmatch(secret):
            return None
        hashed = token_hash(secret)
        try:
            return await self._service.decider.act(
                lambda store: store.operator(hashed), durable=False
            )
        except LedgerUnavailable:  # which way it fails is not for everybody
            raise web.HTTPServiceUnavailable(
                reason="the ledger cannot tell who asks; use the control socket"
            ) from None

    def _check_way(self, request: web.Request) -> None:
        """Against pages in an operator's browser: a name that was rebound to this address (Host),
        and a form or a script of another site (Origin, Sec-Fetch-Site). Raises Denied."""
        headers = request.headers
        hosts = headers.getall("Host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            named = " or ".join(sorted(self._hosts))
            raise Denied(421, f"ask for {named}; the Host header names another place, or none")
        if not request.raw_path.startswith("/"):
            raise Denied(421, "this is no proxy; ask for a path")
        own = {f"http://{host}" for host in self._hosts}
        if any(origin.lower() not in own for origin in headers.getall("Origin", [])):
            raise Denied(403, "a page of another origin may not control this proxy")
        sites = headers.getall("Sec-Fetch-Site", [])
        if any(site not in ("same-origin", "none") for site in sites):
            raise Denied(403, "a page of another site may not control this proxy")


class Refusals:
    """Rows about who was refused: one at once, then at most one a second for each name.

    Names are those of operators and users, and `unknown` for all others together, so whoever
    floods the record as nobody hides no operator's refusal, and cannot fill the disk.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._more: dict[str, int] = {}
        self._last: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    def note(self, actor: str, what: str) -> None:
        self._last[actor] = what
        if actor in self._more:
            self._more[actor] += 1
            return
        self._more[actor] = 1
        task = asyncio.get_running_loop().create_task(self._tell(actor))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Write what was counted and is not written."""
        self._closing.set()
        await asyncio.gather(*self._tasks)

    async def _tell(self, actor: str) -> None:
        while count := self._more[actor]:
            self._more[actor] = 0
            await self._write(actor, self._last[actor], count)
            try:
                async with asyncio.timeout(ROW_SECONDS):
                    await self._closing.wait()
            except TimeoutError:
                continue
        del self._more[actor], self._last[actor]

    async def _write(self, actor: str, what: str, count: int) -> None:
        detail = what if count == 1 else f"{what} (the last of {count})"
        log.warning("control.refused", actor=actor, detail=detail)
        now_us = self._service.clock.now_us()
        try:
            await self._service.decider.act(
                lambda store: store.note(
                    EventType.REFUSED_ACT, actor=actor, at_us=now_us, detail=detail
                )
            )
        except LedgerError as error:
            log.error("control.refusal_not_recorded", error=str(error))
