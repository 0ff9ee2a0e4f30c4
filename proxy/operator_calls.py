"""An operator's call, as operator_plans.py planned it: made once, bounded in time and length.

It goes by TLS to addresses that `dial.py` has vetted, with credentials that are bound to its host.
No redirect is followed. A halt of everything, and of the tool, stops it, and one that changes
something is stopped by their freezes, too; those of a run, a tenant or a release stop none: they
stand while an operator looks at what happened, or undoes it (design, section 3).
"""

import asyncio
import hashlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from policies.addresses import IPNetwork
from policies.policy import Policy
from policies.verdict import Level, Pull, Pulls, Scope
from proxy.credentials import Credential
from proxy.dial import Dialer, NotDialled
from proxy.operations import described, undo_command

if TYPE_CHECKING:
    from aiohttp.tracing import Trace

ANSWER_BYTES_MAX = 1 << 20
ANSWER_SECONDS = 15.0  # from the first packet to the last byte: a person waits for it
STOP_POLL_SECONDS = 0.1  # how often it is looked whether a halt came meanwhile
TLS_PORT = 443


@dataclass(frozen=True, slots=True)
class Plan:
    """One call as it would be made. `lacks` says what is missing, where it cannot be made so."""

    tool: str
    method: str
    host: str
    port: int
    target: str
    headers: tuple[tuple[str, str], ...]
    auth: str
    credential: Credential | None = field(repr=False)
    lacks: str
    allow: tuple[IPNetwork, ...] = ()
    body: bytes = b""

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}{'' if self.port == TLS_PORT else f':{self.port}'}{self.target}"


@dataclass(frozen=True, slots=True)
class Heard:
    """What the upstream said. `body` holds its first bytes; `digest` is their SHA-256."""

    status: int
    media_type: str
    coding: str
    location: str = field(repr=False)
    body: bytes = field(repr=False)
    is_cut: bool

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


class Unheard(Exception):
    """The upstream could not be asked, or did not answer; the message says why."""


# ---------------------------------------------------------------------------------- making it


def stopped(
    policy: Policy, pulls: Pulls, tool: str, levels: tuple[Level, ...] = (Level.HALT,)
) -> str:
    """Why no operator may call this tool now; empty where one may."""
    for level in levels:
        for scope, subject in ((Scope.GLOBAL, ""), (Scope.TOOL, tool)):
            name = (level, scope, subject)
            cord: Pull | None = pulls.get(name) or policy.pulls.get(name)
            if cord is not None:
                lift = undo_command(cord)
                stands = f"{described(cord)} stands, and stops operators, too"
                return f"{stands}; when it is safe: {lift}"
    return ""


def _unheard() -> None:
    return None


async def made(
    plan: Plan,
    dialer: Dialer,
    trust: Path,
    stops: Callable[[], str],
    sending: Callable[[], None] = _unheard,
) -> Heard:
    """Make the call. `trust` is the file of authorities that upstreams are trusted by; `stops` is
    asked, before its first byte and while it goes on, why it may not be made; `sending` is called
    just before its first byte. Raises Unheard."""
    if plan.lacks:
        raise Unheard(plan.lacks)
    making = asyncio.ensure_future(_made(plan, dialer, trust, stops, sending))
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            while not making.done():
                await asyncio.wait({making}, timeout=STOP_POLL_SECONDS)
                if not making.done() and (why := stops()):
                    raise Unheard(why)
            return making.result()
    except TimeoutError as late:
        limit = f"{plan.host} did not answer within {ANSWER_SECONDS:g} seconds"
        raise Unheard(str(late) or limit) from None
    except (aiohttp.ClientError, OSError) as error:
        raise Unheard(_why(plan, error)) from None
    finally:
        making.cancel()
        await asyncio.wait({making})


async def _made(
    plan: Plan,
    dialer: Dialer,
    trust: Path,
    stops: Callable[[], str],
    sending: Callable[[], None],
) -> Heard:
    try:
        context = ssl.create_default_context(cafile=str(trust))
    except OSError as error:
        raise Unheard(f"{trust} cannot be used: {error.strerror}") from None
    if why := stops():
        raise Unheard(why)
    connector = _Dialled(dialer, plan, context, stops, sending)
    headers = {"user-agent": "pullcord", "accept": "application/json", **dict(plan.headers)}
    headers |= {"accept-encoding": "identity"}
    if plan.credential is not None:
        headers[plan.credential.header] = plan.credential.value
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
            ) as session,
            session.request(
                plan.method,
                URL(plan.url, encoded=True),
                headers=headers,
                data=plan.body or None,
                allow_redirects=False,
            ) as answer,
        ):
            return await _read(answer)
    finally:
        connector.cut()  # or it would wait until the other side has said goodbye, too
        await asyncio.sleep(0)


async def _read(answer: aiohttp.ClientResponse) -> Heard:
    body = bytearray()
    while len(body) <= ANSWER_BYTES_MAX and (chunk := await answer.content.readany()):
        body += chunk
    return Heard(
        answer.status,
        answer.content_type,
        answer.headers.get("Content-Encoding", "").strip().lower(),
        answer.headers.get("Location", ""),
        bytes(body[:ANSWER_BYTES_MAX]),
        len(body) > ANSWER_BYTES_MAX,
    )


class _Dialled(aiohttp.BaseConnector):
    """One TLS connection to the plan's host, at an address that the dialer has vetted."""

    def __init__(
        self,
        dialer: Dialer,
        plan: Plan,
        context: ssl.SSLContext,
        stops: Callable[[], str],
        sending: Callable[[], None],
    ) -> None:
        super().__init__(force_close=True, limit=1)
        self._sending = sending
        self._dialer = dialer
        self._plan = plan
        self._context = context
        self._stops = stops
        self._transport: asyncio.Transport | None = None

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: "list[Trace]",
        timeout: aiohttp.ClientTimeout,
    ) -> ResponseHandler:
        plan = self._plan
        if self._transport is not None:
            # aiohttp sends DELETE and PUT again where the first connection broke off.
            raise Unheard(_broken(plan))
        connected = await self._dialer.dial(plan.host, plan.port, plan.allow)
        try:
            self._transport, handler = await self._loop.create_connection(
                self._factory, sock=connected, ssl=self._context, server_hostname=plan.host
            )
        except BaseException:
            connected.close()
            raise
        if why := self._stops():
            raise Unheard(why)
        self._sending()
        return handler


def _why(plan: Plan, error: BaseException) -> str:
    """In a sentence of ours: aiohttp's words may hold what was sent, and addresses."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate of {plan.host} is not trusted: {cause.verify_message}"
        if isinstance(cause, NotDialled):
            return str(cause)
        if isinstance(cause, aiohttp.ClientResponseError):
            return f"{plan.host} answered what is no HTTP"
        if isinstance(cause, ssl.SSLError):
            return f"{plan.host} and pullcord could not agree on TLS"
        if type(cause) in (OSError, ConnectionRefusedError) or cause.__cause__ is None:
            break
        cause = cause.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return f"{plan.host} cannot be asked: {cause.strerror}"
    return _broken(plan)


def _broken(plan: Plan) -> str:
    return f"{plan.host} broke off before its answer was whole"
