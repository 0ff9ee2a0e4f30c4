"""The upstreams that aiohttp serves: an echo, model APIs in their own shapes, localstripe.

`api.echo.example` also in the clear, and by HTTP/2 as `h2.echo.example` (see http2.py).
"""

import asyncio
from typing import Any

from aiohttp import web

from tests.end_to_end.upstreams import http2, models, payments
from tests.end_to_end.upstreams.serving import JOURNAL, announce, gate, listener, tls


@web.middleware
async def noted(request: web.Request, handler: Any) -> web.StreamResponse:
    JOURNAL.note(request.host, request.method, request.path_qs, request.headers.items())
    return await handler(request)


async def echo(request: web.Request) -> web.Response:
    return web.json_response({"method": request.method, "body": await request.text()})


async def chunked(request: web.Request) -> web.StreamResponse:
    """Three chunks, no length."""
    answer = web.StreamResponse(headers={"Content-Type": "text/plain"})
    answer.enable_chunked_encoding()
    await answer.prepare(request)
    for word in ("one ", "two ", "three"):
        await answer.write(word.encode())
    return answer


async def zipped(request: web.Request) -> web.Response:
    """An echo in gzip, whatever was asked for."""
    answer = await echo(request)
    answer.enable_compression(web.ContentCoding.gzip)
    return answer


async def events(request: web.Request) -> web.StreamResponse:
    """Two events. The second waits for the gate of the path's name: the agent opens it when it has
    the first."""
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    await answer.write(b"data: first\n\n")
    await gate(request.match_info["gate"])
    await answer.write(b"data: last\n\n")
    return answer


async def websocket(request: web.Request) -> web.WebSocketResponse:
    answer = web.WebSocketResponse()
    await answer.prepare(request)
    async for message in answer:
        await answer.send_str(f"echo {message.data}")
    return answer


def echo_app() -> web.Application:
    app = web.Application()
    app.router.add_get("/chunked", chunked)
    app.router.add_route("*", "/events/{gate}", events)
    app.router.add_get("/socket/{any}", websocket)
    app.router.add_route("*", "/zipped/{any}", zipped)
    app.router.add_route("*", "/{path:.*}", echo)
    return app


async def main() -> None:
    app = web.Application(middlewares=[noted])
    app.add_domain("api.echo.example", echo_app())
    app.add_domain("api.openai.com", models.openai_app())
    app.add_domain("api.anthropic.com", models.anthropic_app())
    app.add_domain("api.stripe.com", payments.app())
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    secure, plain, second = listener(), listener(), listener()
    await web.SockSite(runner, secure, ssl_context=tls("http/1.1")).start()
    await web.SockSite(runner, plain).start()
    await http2.start(second)
    announce(web=secure, plain=plain, http2=second)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
