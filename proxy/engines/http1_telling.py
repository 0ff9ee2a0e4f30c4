"""What a client is told: an answer of our own, the end of its upstream's, or nothing more."""

import asyncio
from typing import TYPE_CHECKING

import structlog

from policies.verdict import Reason
from proxy import head
from proxy.engines import http1_wire as wire
from proxy.engines.faults import OWN_FAILURE
from proxy.engines.http1_answering import Answering
from proxy.engines.http1_uploads import Upload
from proxy.engines.http1_websocket import Relay
from proxy.engines.waits import LINGER_SECONDS, UPLOAD_LINGER_SECONDS
from proxy.refuse import Refusal

if TYPE_CHECKING:
    from proxy.engines.arriving import Arriving
    from proxy.engines.http1_upstream import Upstream

log = structlog.get_logger()

STORED_PARTS = 4  # of 64 KiB: what is read of a file before its client is waited for


class Telling(Answering):
    """`is_unread`: more of the request may still come, which nobody reads."""

    upload: Upload | None
    is_unread: bool
    arriving: "Arriving | None"
    relay: Relay | None

    def closes(self) -> bool:
        return self.request.is_close or self.is_unread or self.is_uploading

    @property
    def is_uploading(self) -> bool:
        """Whether not all of a streamed body went upstream."""
        return self.upload is not None and not self.upload.is_over

    async def tell(self, reply: Refusal, *, is_close: bool) -> None:
        """An answer of our own."""
        self.answering = True
        is_close = is_close or self.closes()
        client, has_body = self.client, self.request.method != "HEAD"
        client.write(wire.reply_head(reply, is_close=is_close))
        if reply.file is not None:
            await self._stored(reply)
        elif reply.body and has_body:
            client.write(reply.body)
        self._answered(is_close=is_close)

    async def _stored(self, reply: Refusal) -> None:
        """A long stored answer, part by part: never all of it in memory. Raises TimeoutError for a
        client that takes nothing any more."""
        reader = reply.file
        if reader is None:
            return
        try:
            while not self.client.is_gone:
                async with asyncio.timeout(self.engine.timeouts.idle_seconds):
                    await self.client.drained()
                part = b"".join(reader.read() for _ in range(STORED_PARTS))
                if not part:
                    return
                self.client.write(part)
        finally:
            reader.close()

    async def tell_in_place(self, reply: Refusal | None) -> None:
        """What the agent is told where no answer came; one that has begun is cut off."""
        if self.answering:
            self.broken()
            return
        self.is_over = True
        if reply is None:
            self.client.over()
            self.client.hang_up()
        else:
            await self.tell(reply, is_close=False)

    async def not_recorded(self, reply: Refusal) -> None:
        self.drop_upstream()
        await self.settle(complete=False)
        await self.tell_in_place(reply)

    def tell_failure(self) -> None:
        """Something of ours raised before anything was sent."""
        reply = self.engine.gate.failure()
        self.client.write(wire.reply_head(reply, is_close=True) + reply.body)
        self.client.over()
        self.client.linger(LINGER_SECONDS)

    def whole(self) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None and self.is_uploading:
            upstream.abort()
        elif upstream is not None and self.live.is_write:
            self.engine.pool.drop(upstream)  # a stale one looks like an unknown outcome
        elif upstream is not None:
            self.engine.pool.give_back(upstream)
        self._answered(is_close=self.is_last or self.closes())

    def _answered(self, *, is_close: bool) -> None:
        """The client may go on: with its next request, or away."""
        self.is_over = True
        self.release()
        client = self.client
        client.over()
        if self.upload is not None and self.is_uploading:
            self.upload.stop()
            client.linger(LINGER_SECONDS if client.is_stranger else UPLOAD_LINGER_SECONDS)
        elif self.is_unread:
            client.linger(LINGER_SECONDS)
        elif is_close:
            client.close()
        else:
            client.go_on()

    def broken(self) -> None:
        """Only a connection that breaks says that what has begun does not end."""
        self.is_over = True
        self.drop_upstream()
        self.client.over()
        self.client.break_off(at_once=self.request.http10)

    def drop_upstream(self) -> None:
        """Close it at once; what has not left never does."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort()
        if self.upload is not None:
            self.upload.stop()

    def release(self) -> None:
        """The request's body is held no more."""
        if self.arriving is not None:
            self.arriving.release()

    # WebSocket: one write; every message of the client's looks at the cords again and counts

    def upgraded(self, fields: head.Headers, rest: bytes) -> None:
        if self.is_over or self.upstream is None:
            return
        try:
            self._upgraded(fields, self.upstream, rest)
        except Exception as failure:
            self.broke(failure)

    def _upgraded(self, fields: head.Headers, upstream: "Upstream", rest: bytes) -> None:
        live, self.status = self.live, 101
        self.touch(self.engine.timeouts.idle_seconds)
        self.fields = head.agent_headers(fields, live.decision, websocket=True)
        if live.catch is not None:
            live.catch.headed(101, self.fields)
        self.answering = True
        if self.is_left:
            self.interrupt(self._relayed)
            return
        self.client.write(wire.answer_head(101, self.fields))
        self.relay = Relay(self.client, upstream, self)
        self.client.divert(self.relay.from_client)
        self.relay.begin(rest)

    def client_takes(self) -> None:
        """A relay waits by itself for whoever takes nothing, and its upstream is not read then."""
        if self.relay is None:
            super().client_takes()

    def client_is_full(self) -> None:
        if self.relay is None:
            super().client_is_full()

    async def said(self, content: bytes) -> bool:
        self.touch(self.engine.timeouts.idle_seconds)
        try:
            stop = await self.engine.gate.message(self.live, content)
        except Exception as failure:
            self.broke(failure)
            return False
        if stop is None:
            return True
        self.engine.cut([self.live], stop)
        return False

    def told(self, content: bytes) -> None:
        self.touch(self.engine.timeouts.idle_seconds)
        self.engine.gate.body(self.live, content)

    def closed(self, failure: str) -> None:
        """The WebSocket is over."""
        self.why = failure
        self.interrupt(self._relayed)

    async def _relayed(self) -> None:
        own = Reason.POLICY_FAILURE if self.why == OWN_FAILURE else None
        await self.settle(complete=not self.why, fault=own, error=self.why)
        self.is_over = True
        self.client.over()
        self.client.hang_up()
