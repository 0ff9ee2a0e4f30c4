"""One POST to an alert channel: bounded in time and length, by TLS that is verified, never led on.

It goes straight there, not through the proxy and not through one of the environment. What comes
back is told in words of ours, and without the secrets that were sent.
"""

import asyncio
import contextlib
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

SEND_SECONDS = 10.0  # from the first packet to the last byte of the answer
ANSWER_BYTES_MAX = 64 * 1024
SAID_CHARACTERS_MAX = 200
RETRY_AFTER_SECONDS_MAX = 3_600.0
END_SECONDS = 0.5  # a channel that does not say goodbye is left

_AGAIN = frozenset({408, 425, 429})
_SHORTEST_SECRET = 4


@dataclass(frozen=True, slots=True)
class Message:
    """`secrets` are texts of it that must not be shown."""

    url: str = field(repr=False)
    body: bytes
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def host(self) -> str:
        return URL(self.url).host or ""


@dataclass(frozen=True, slots=True)
class Heard:
    """What became of it. `status` is None when nobody answered; `said` is a sentence for people."""

    status: int | None
    said: str
    retry_after_seconds: float | None = None

    @property
    def is_sent(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_final(self) -> bool:
        """To send the same again would bring the same."""
        return self.status is not None and 300 <= self.status < 500 and self.status not in _AGAIN


class Sender:
    """`trust` is the file of authorities that upstreams are trusted by; None for the system's."""

    def __init__(self, trust: Path | None, now_us: Callable[[], int]) -> None:
        self._trust = trust
        self._now_us = now_us
        self._session: aiohttp.ClientSession | None = None
        self._opening = asyncio.Lock()

    async def post(self, message: Message) -> Heard:
        """It fails never: what went wrong is told."""
        try:
            async with asyncio.timeout(SEND_SECONDS):
                return await self._post(message)
        except TimeoutError:
            return Heard(None, f"{message.host} did not answer within {SEND_SECONDS:g} seconds")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Heard(None, _why(message.host, error))

    async def close(self) -> None:
        if self._session is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await self._session.close()

    async def _opened(self) -> aiohttp.ClientSession:
        async with self._opening:
            if self._session is None:
                file = None if self._trust is None else str(self._trust)
                # Aside: to read some hundred certificates takes a while.
                context = await asyncio.to_thread(ssl.create_default_context, cafile=file)
                connector = aiohttp.TCPConnector(
                    ssl=context, limit=0, force_close=True, use_dns_cache=False, resolver=_Names()
                )
                self._session = aiohttp.ClientSession(
                    connector=connector,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    trust_env=False,
                    auto_decompress=False,
                )
            return self._session

    async def _post(self, message: Message) -> Heard:
        session = await self._opened()
        headers = {
            "user-agent": "pullcord",
            "content-type": "application/json",
            "accept-encoding": "identity",
            **dict(message.headers),
        }
        async with session.post(
            URL(message.url, encoded=True),
            data=message.body,
            headers=headers,
            allow_redirects=False,
        ) as answer:
            said = await _read(answer)
            again = _seconds(answer.headers.get("Retry-After", ""), self._now_us())
            return Heard(answer.status, _said(message, answer.status, said), again)


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    while len(body) < ANSWER_BYTES_MAX and (chunk := await answer.content.readany()):
        body += chunk
    return bytes(body[:ANSWER_BYTES_MAX])


def _said(message: Message, status: int, body: bytes) -> str:
    said = f"{message.host} answered {status}"
    words = _quoted(body.decode("utf-8", "replace"), message.secrets)
    if words and not 200 <= status < 300:
        said += f": {words}"
    if 300 <= status < 400:
        said += "; redirects are not followed: write the URL that it leads to"
    return said


def _quoted(text: str, secrets: Sequence[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = re.sub(re.escape(secret), "[redacted]", text, flags=re.IGNORECASE)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text[:SAID_CHARACTERS_MAX]


def _seconds(retry_after: str, now_us: int) -> float | None:
    """RFC 9110, section 10.2.3: seconds or a date. None for what is neither."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), RETRY_AFTER_SECONDS_MAX)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    seconds = at.timestamp() - now_us / 1e6
    return min(max(seconds, 0.0), RETRY_AFTER_SECONDS_MAX)


def _why(host: str, error: BaseException) -> str:
    """In a sentence of ours: aiohttp's words may hold what was sent."""
    cause: BaseException = error
    while isinstance(cause, aiohttp.ClientError) and isinstance(cause.__cause__, OSError):
        cause = cause.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate of {host} is not trusted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"{host} and pullcord could not agree on TLS"
    if isinstance(cause, socket.gaierror):
        return f"{host} does not resolve: {cause.strerror}"
    if isinstance(cause, aiohttp.ClientResponseError):
        return f"{host} answered what is no HTTP"
    if isinstance(cause, OSError) and cause.errno:
        return f"{host} cannot be reached: {os.strerror(cause.errno)}"
    return f"{host} broke off before its answer was whole"


class _Names(AbstractResolver):
    """The system's resolver, each name on a thread of its own for which no end of the process
    waits: a name server that is silent holds up nobody else."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[Any]] = loop.create_future()

        def tell(answers: list[Any] | None, failure: BaseException | None) -> None:
            if found.done():
                return
            if failure is not None:
                found.set_exception(failure)
            else:
                found.set_result(answers or [])

        def look_up() -> None:
            answers, failure = None, None
            try:
                answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
            except (OSError, ValueError) as error:
                failure = error if isinstance(error, OSError) else OSError(str(error))
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(tell, answers, failure)

        threading.Thread(target=look_up, name="alert names", daemon=True).start()
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=kind,
                proto=proto,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, _, proto, _, address in await found
        ]

    async def close(self) -> None:
        """It holds nothing."""
