"""One client connection: its bytes, in the clear or inside TLS, as requests in their order, and the
answers to them. Nothing is read ahead of an upload that waits; what comes before an answer is given
waits for it.
"""

import re
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import structlog

from policies.verdict import Reason
from proxy import head
from proxy.engines import heard
from proxy.engines import http1_wire as wire
from proxy.engines.arriving import Arriving
from proxy.engines.heard import Tunnel
from proxy.engines.http1_bodies import Body, framing_of
from proxy.engines.http1_connection import Connection
from proxy.engines.http1_exchange import Exchange
from proxy.engines.http1_framing import BrokenChunks, Framing
from proxy.engines.http1_hello import offers_http2_alone
from proxy.engines.http1_request import Broken, Incoming, begun, incoming, is_hopeless
from proxy.engines.http1_tls import Tls
from proxy.engines.http1_uploads import Upload, is_judged_by_head
from proxy.engines.waits import (
    DRAIN_BYTES_MAX,
    FIRST_CALL_SECONDS,
    LINGER_SECONDS,
    PIPELINED_BYTES_MAX,
)
from proxy.refuse import Refusal

if TYPE_CHECKING:
    from proxy.engines.http1 import HandOver, Http1Engine

log = structlog.get_logger()

_HEAD_END = b"\r\n\r\n"
_TLS_START_BYTES = 3
_TLS_START = re.compile(rb"\x16\x03[\x00-\x03]")


class Client(Connection):
    """`tunnel` is what its CONNECT named and who asked for it. `is_stranger` until somebody we know
    has asked for something."""

    def __init__(self, engine: "Http1Engine") -> None:
        super().__init__()
        self.engine = engine
        self.tunnel: Tunnel | None = None
        self.is_stranger = True
        self.exchange: Exchange | None = None
        self.state = self._read_head
        self._heard_seconds = self.loop.time()
        self._first_seconds = self._heard_seconds + FIRST_CALL_SECONDS
        self._looked_bytes = 0  # of a head that is not whole
        self._works = 0  # that somebody waits for beside an exchange
        self._request: Incoming | None = None
        self._body: Body | None = None
        self._upload: Upload | None = None
        self._framing: Framing = framing_of(0)
        self._relayed: Callable[[bytes], None] | None = None

    def came(self) -> None:
        self.engine.came(self)

    def left(self) -> None:
        """Who has not sent all of his request has asked for nothing."""
        self._forget_body()
        if self.exchange is not None:
            self.exchange.left()

    def gone(self) -> None:
        self.engine.gone(self)

    def filled(self) -> None:
        if self.exchange is not None:
            self.exchange.client_is_full()

    def emptied(self) -> None:
        if self.exchange is not None:
            self.exchange.client_takes()

    # Requests

    def _read_head(self) -> None:
        data = self.pending = begun(self.pending)
        if not data or data == b"\r":
            return
        end = data.find(_HEAD_END)
        if end < 0:
            looked_bytes, self._looked_bytes = self._looked_bytes, len(data)
            if is_hopeless(data, looked_bytes):
                self._refuse_page(400)
            elif len(data) > head.HEAD_BYTES_MAX:
                self._refuse_page(431)
            return
        self.pending = data[end + len(_HEAD_END) :]
        self._looked_bytes = 0
        sni = self.tls.sni if self.tls is not None else None
        scheme = "https" if self.tls is not None else "http"
        try:
            request = incoming(data[:end], self.tunnel, scheme=scheme, sni=sni)
        except Broken as broken:
            self._refuse_page(broken.status)
            return
        self._heard_seconds = self.loop.time()
        self._begin(request)

    def _begin(self, request: Incoming) -> None:
        self.state = self._wait
        if request.method == "CONNECT":
            if request.length != 0:
                self._refuse_page(400)
                return
            self._spawn(self._greet(request))
        elif request.length == 0:
            self._call(Exchange(self, request))
        else:
            try:
                is_upload = is_judged_by_head(self.engine.gate, request)
            except Exception:
                self._failed()
                return
            if is_upload:
                self._begin_upload(request)
            else:
                self._begin_body(request)

    def _call(self, exchange: Exchange) -> None:
        self._request = self._body = None
        self.state = self._wait
        self.exchange = exchange
        exchange.begin()

    def _wait(self) -> None:
        """One answer after the other: what comes before the last one is given has a bound."""
        if len(self.pending) > PIPELINED_BYTES_MAX:
            self.drops = True
            if self.exchange is not None:
                self.is_gone = True
                self.exchange.left()
            self.abort()

    # Bodies

    def _begin_body(self, request: Incoming) -> None:
        greeted = not request.sent_credentials and self.tunnel is not None
        timeouts, limit = self.engine.timeouts, self.engine.body_bytes_max
        arriving = Arriving(
            self.engine.bodies, request.told, timeouts.idle_seconds, greeted, reading=self
        )
        arriving.begin(request.content_type)
        self._request = request
        self._body = Body(arriving, request.length, limit)
        self.state = self._read_body
        if arriving.announces_too_much():
            self._spawn(self._ask_caller(request, arriving))
        else:
            self._continue(request)

    def _continue(self, request: Incoming) -> None:
        if request.expects and not self.pending:
            self.write(wire.CONTINUE)

    def _read_body(self) -> None:
        body, request = self._body, self._request
        if body is None or request is None:
            return
        data, self.pending = self.pending, b""
        try:
            self.pending = body.feed(data)
        except BrokenChunks:
            self._refuse(head.Fault(Reason.MALFORMED_REQUEST, "its chunks are malformed"))
            return
        if body.came_bytes > DRAIN_BYTES_MAX:
            self.drops = True
            self.abort()
        elif body.has_ended and body.arriving.is_spooled:
            self.state = self._wait
            self._spawn(self._fetch(request, body))
        elif body.has_ended:
            self._judge(request, body, body.arriving.body())
        elif body.arriving.is_beyond(body.came_bytes):
            self._spawn(self._ask_caller(request, body.arriving))

    async def _fetch(self, request: Incoming, body: Body) -> None:
        content = await body.arriving.whole()
        if self._body is body:  # its client is still here
            self._judge(request, body, content)

    def _judge(self, request: Incoming, body: Body, content: bytes) -> None:
        request.fault = request.fault or body.fault()
        self._call(Exchange(self, request, content, body.arriving))

    def _refuse(self, fault: head.Fault) -> None:
        """The body cannot end: the request is judged as one that can only be refused."""
        body, request = self._body, self._request
        if body is None or request is None:
            return
        body.arriving.release()
        request.fault = request.fault or fault
        self.drops = True
        self._call(Exchange(self, request, arriving=body.arriving, is_unread=True))

    def _unended(self, now_seconds: float) -> None:
        """Refuse a request whose body has not ended in time."""
        body = self._body
        if body is not None and body.arriving.deadline_seconds < now_seconds and not self._works:
            self._refuse(body.arriving.fault())

    async def _ask_caller(self, request: Incoming, arriving: Arriving) -> None:
        """A long body begins. Only a known caller's is taken; meanwhile no more of it is read."""
        gate, seen = self.engine.gate, request.seen()
        refused = await gate.greet(request.credentials, seen)
        if refused is None:
            arriving.caller_known, self.is_stranger = True, False
            self._continue(request)
            return
        self._forget_body()
        fault = head.Fault(Reason.MALFORMED_REQUEST, "its caller is not known")
        reply = await gate.ask(fault, request.credentials, self.engine, seen)  # for the record
        self._reply(heard.as_refusal(reply), is_close=True, has_body=request.method != "HEAD")
        self.linger(LINGER_SECONDS)

    def _forget_body(self) -> None:
        """Nothing of the request that is on its way here is held."""
        if self._body is not None:
            self._body.arriving.release()
        self._request = self._body = None

    # Uploads

    def _begin_upload(self, request: Incoming) -> None:
        self._upload = Upload(self, is_chunked=request.length is None)
        self._framing = framing_of(request.length)
        self._call(Exchange(self, request, upload=self._upload))
        self.state = self._read_upload

    def _read_upload(self) -> None:
        upload = self._upload
        if upload is None:
            return
        data, self.pending = self.pending, b""
        try:
            content, self.pending = self._framing.feed(data)
        except BrokenChunks:
            self.drops = True
            if self.exchange is not None:
                self.exchange.upload_broke("its chunks are malformed")
            return
        upload.add(content)
        if self._framing.has_ended:
            self._upload, self.state = None, self._wait
            upload.end()

    # CONNECT, and what follows it

    async def _greet(self, request: Incoming) -> None:
        """At CONNECT only who is calling is judged; the calls inside are judged one by one."""
        gate, credentials = self.engine.gate, request.credentials
        named = heard.connecting(request.host, request.port, request.fields, http10=request.http10)
        tunnel = request.fault or head.read(named)
        if isinstance(tunnel, head.Fault):
            reply = await gate.ask(tunnel, credentials, self.engine, request.seen())
            self._reply(heard.as_refusal(reply), is_close=True)
            self.linger(LINGER_SECONDS)
            return
        refused = await gate.greet(credentials, tunnel)
        if refused is None:
            self.tunnel = Tunnel(request.host, request.port, credentials)
            self.is_stranger = False
            self.write(wire.ESTABLISHED)
            self.state = self._begin_tunnel
            return
        self._reply(refused, is_close=request.is_close)
        if request.is_close:
            self.close()
        else:
            self.state = self._read_head

    def _begin_tunnel(self) -> None:
        """TLS or HTTP, nothing else: what is neither fails to parse and is answered with 400."""
        start = self.pending = begun(self.pending)
        if start in (b"", b"\r") or (start[:1] == b"\x16" and len(start) < _TLS_START_BYTES):
            return
        is_tls = _TLS_START.match(start) is not None
        if is_tls and self.engine.hand_over is not None:
            is_alone = offers_http2_alone(start)
            if is_alone is None:  # a part of its hello is to come
                return
            if is_alone:
                self._hand_over(start, self.engine.hand_over)
                return
        self.state = self._read_head
        if self.tunnel is None or self.transport is None or not is_tls:
            return
        context = self.engine.certificates.context(self.tunnel.host)
        self.pending = b""
        self.flush()
        self.tls = Tls(context, self.transport.write, server_side=True)
        self.received(start)

    def _hand_over(self, start: bytes, to: "HandOver") -> None:
        """From here on somebody else has the connection."""
        self.flush()
        transport, self.transport = self.transport, None
        self.drops, self.pending = True, b""
        self.gone()
        self.ended.set()
        if transport is None or self.tunnel is None:
            return
        try:
            to(transport, self.tunnel, start)
        except BaseException:
            transport.abort()  # it is nobody's now
            raise

    # Telling

    def _reply(self, reply: Refusal, *, is_close: bool, has_body: bool = True) -> None:
        self.write(wire.reply_head(reply, is_close=is_close) + (reply.body if has_body else b""))

    def _refuse_page(self, status: int) -> None:
        """For what is no request. Nobody can say what follows it."""
        self.write(wire.page(status))
        self.linger(LINGER_SECONDS)

    def _failed(self) -> None:
        """Something of ours raised before anything was judged."""
        log.exception("engine.call_failed")
        self._forget_body()
        self._reply(self.engine.gate.failure(), is_close=True)
        self.linger(LINGER_SECONDS)

    def divert(self, to: Callable[[bytes], None]) -> None:
        """HTTP is over here."""
        self._relayed = to
        self.state = self._pass_on
        self.work_soon()

    def _pass_on(self) -> None:
        data, self.pending = self.pending, b""
        if self._relayed is not None:
            self._relayed(data)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._works += 1
        self.pause()
        self.engine.spawn(self._worked(work))

    async def _worked(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            self._failed()
        finally:
            self._works -= 1
            self.resume()
            self._heard_seconds = self.loop.time()

    # Ends

    def over(self) -> None:
        """The exchange is."""
        self.exchange = self._upload = None
        self._heard_seconds = self.loop.time()

    def go_on(self) -> None:
        """With the next request, once it takes the answers to the last ones."""
        self.once_taken(self._next)

    def _next(self) -> None:
        self.state = self._read_head
        self.work_soon()

    def swept(self, now_seconds: float) -> None:
        """Its deadlines are looked at."""
        try:
            self._unended(now_seconds)
            if self._is_overdue(now_seconds):
                self.end()
        except Exception:
            self.crashed()

    def _is_overdue(self, now_seconds: float) -> bool:
        """Whether it has to be hung up on."""
        if now_seconds > self.leave_seconds:
            return True
        if self._works or self.exchange is not None:
            return False
        if self.is_stranger:
            return now_seconds > self._first_seconds
        timeouts, idle_seconds = self.engine.timeouts, now_seconds - self._heard_seconds
        most = timeouts.idle_seconds if self.is_closing else timeouts.client_idle_seconds
        return self._body is None and idle_seconds > most
