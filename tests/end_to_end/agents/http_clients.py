"""An agent with a plain HTTP client: `python http_clients.py CLIENT METHOD URL [BODY]`.

Nothing but the environment tells it of a proxy or of an authority. It prints the answer's body,
then the status on a line of its own. When an answer has several chunks, the file `TEST_GATE`
appears with the first.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

Answer = tuple[int, str]
Client = Callable[[str, str, str | None], Answer]


def open_gate() -> None:
    if "TEST_GATE" in os.environ:
        Path(os.environ["TEST_GATE"]).touch()


def with_requests(method: str, url: str, body: str | None) -> Answer:
    import requests

    with requests.request(method, url, data=body, stream=True, timeout=30) as answer:
        chunks = []
        for chunk in answer.iter_content(None):
            open_gate()
            chunks.append(chunk)
        return answer.status_code, b"".join(chunks).decode()


def with_httpx(method: str, url: str, body: str | None, *, http2: bool = False) -> Answer:
    import httpx

    with (
        httpx.Client(timeout=30, http2=http2) as client,
        client.stream(method, url, content=body) as answer,
    ):
        chunks = []
        for chunk in answer.iter_text():
            open_gate()
            chunks.append(chunk)
        return answer.status_code, "".join(chunks)


def with_httpx_h2(method: str, url: str, body: str | None) -> Answer:
    return with_httpx(method, url, body, http2=True)


def with_aiohttp(method: str, url: str, body: str | None) -> Answer:
    import aiohttp

    async def call() -> Answer:
        async with (
            aiohttp.ClientSession(trust_env=True) as session,
            session.request(method, url, data=body) as answer,
        ):
            chunks = []
            async for chunk in answer.content.iter_any():
                open_gate()
                chunks.append(chunk)
            return answer.status, b"".join(chunks).decode()

    return asyncio.run(call())


def with_urllib(method: str, url: str, body: str | None) -> Answer:
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, body.encode() if body else None, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def with_aiohttp_websocket(method: str, url: str, body: str | None) -> Answer:
    """Says the body and prints the echo. The status is the close code, or the refusal's."""
    import aiohttp

    async def call() -> Answer:
        try:
            async with (
                aiohttp.ClientSession(trust_env=True) as session,
                session.ws_connect(url) as socket,
            ):
                await socket.send_str(body or "")
                said = await socket.receive(timeout=30)
                await socket.close()
                return socket.close_code or 0, str(said.data)
        except aiohttp.WSServerHandshakeError as error:
            return error.status, str(error.headers or "")

    return asyncio.run(call())


def with_websockets(method: str, url: str, body: str | None) -> Answer:
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidStatus

    # Its other client reads and writes one TLS connection in two threads, which CPython 3.13.0 does
    # not guard: once in some fifty handshakes it waits for ever.
    async def talked() -> Answer:
        async with asyncio.timeout(30), connect(url) as socket:
            await socket.send(body or "")
            said = str(await socket.recv())
        return socket.close_code or 0, said

    try:
        return asyncio.run(talked())
    except InvalidStatus as refused:
        return refused.response.status_code, (refused.response.body or b"").decode()


CLIENTS: dict[str, Client] = {
    "requests": with_requests,
    "httpx": with_httpx,
    "httpx-h2": with_httpx_h2,
    "aiohttp": with_aiohttp,
    "urllib": with_urllib,
    "aiohttp-websocket": with_aiohttp_websocket,
    "websockets": with_websockets,
}


if __name__ == "__main__":
    name, method, url, *rest = sys.argv[1:]
    status, body = CLIENTS[name](method, url, rest[0] if rest else None)
    print(body)
    print(status)
