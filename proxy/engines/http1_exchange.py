"""One request of a client from read to answered: asked about, sent, its answer settled; and how it
is cut. Whatever raises here refuses it.
"""

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING

import structlog

from policies.call import Request
from policies.verdict import Reason
from proxy import head
from proxy.dial import NotDialled
from proxy.engines import faults, heard
from proxy.engines import http1_wire as wire
from proxy.engines.http1_request import Incoming
from proxy.engines.http1_telling import Telling
from proxy.engines.http1_uploads import Upload
from proxy.engines.http1_upstream import CLOSED_BEFORE_REQUEST, Upstream, Where
from proxy.engines.http1_websocket import Relay
from proxy.live import Live
from proxy.refuse import Refusal

if TYPE_CHECKING:
    from proxy.engines.arriving import Arriving
    from proxy.engines.http1 import Http1Engine
    from proxy.engines.http1_client import Client

log = structlog.get_logger()

_JOINED_BYTES = 64 * 1024  # of a body that is copied behind its head, to leave with it

_DISCONNECTED = "Client disconnected."


class Exchange(Telling):
    """`body` is the whole content, of an upload nothing. `deadline_seconds` is the loop's time."""

    def __init__(
        self,
        client: "Client",
        request: Incoming,
        body: bytes = b"",
        arriving: "Arriving | None" = None,
        *,
        upload: Upload | None = None,
        is_unread: bool = False,
    ) -> None:
        super().__init__()
        self.client = client
        self.engine: Http1Engine = client.engine
        self.request = request
        self.upload = upload
        self.is_unread = is_unread
        self.is_left = False
        self.cut_by = ""
        self.cutting: asyncio.Task[None] | None = None
        self.deadline_seconds = 0.0
        self.ended_mark = asyncio.Event()
        self.usage_asked = False
        self.upstream: Upstream | None = None
        self._body = body
        self.arriving = arriving
        self._live: Live | None = None
        self.relay: Relay | None = None
        self._not_dialled: NotDialled | None = None
        self._can_break = False
        self._again = b""  # what is sent once more if its connection had ended
        self._task: asyncio.Task[None] | None = None

    @property
    def live(self) -> Live:  # type: ignore[override]
        if self._live is None:
            raise RuntimeError("nobody let this call through")
        return self._live

    def begin(self) -> None:
        self._task = self.engine.begun(self.run())

    async def run(self) -> None:
        """The boundary: what is raised below refuses the call, or ends it where it has gone."""
        try:
            await self._called()
        except Exception:
            log.exception("engine.call_failed", call=self._live.call_id if self._live else "")
            await self._failed_here()
        finally:
            self._over()

    # Asking

    async def _called(self) -> None:
        request = self._read()
        gate, asked = self.engine.gate, self.request
        seen = asked.seen() if isinstance(request, head.Fault) else None
        answer = await gate.ask(request, asked.credentials, self.engine, seen, self.is_gone)
        if not isinstance(answer, Refusal) or answer.status != 407:
            self.client.is_stranger = False
        if isinstance(answer, Refusal):
            self.release()
            is_close = isinstance(request, head.Fault) or answer.status in heard.CLOSING
            await self.tell(answer, is_close=is_close)
            return
        self._live = answer
        self.engine.exchanges[answer.call_id] = self
        self.touch(self.engine.timeouts.first_byte_seconds)
        await self._forwarded(answer)

    def _read(self) -> Request | head.Fault:
        if self.request.fault is not None:
            return self.request.fault
        return head.read(self.request.head, self._body, streamed=self.upload is not None)

    def is_gone(self) -> bool:
        """Whether its client does not wait for an answer any more."""
        return self.client.is_gone

    # Sending

    async def _forwarded(self, live: Live) -> None:
        if self.is_gone():
            await self._not_sent(_DISCONNECTED)
            return
        if self.upload is not None:
            self.upload.begin(self)
        sent, rest = self._outgoing(live)
        fresh = live.is_write or self.upload is not None
        upstream, why = await self._taken(live, fresh=fresh)
        if upstream is None:
            await self._not_sent(why)
        elif self.is_gone() and live.gone is None:
            await self._not_sent(_DISCONNECTED)
        elif not upstream.is_open:
            await self._not_sent(CLOSED_BEFORE_REQUEST)
        elif (refused := self.engine.gate.sent(live)) is not None:
            self.engine.pool.give_back(upstream)
            self.upstream = None
            await self._not_sent(live.stopped_by, refused)
        else:
            self._send_request(live, upstream, sent, rest)
            await self.steps()

    async def _taken(self, live: Live, *, fresh: bool) -> tuple[Upstream | None, str]:
        """A connection, or why there is none."""
        asked = self.request
        where = Where(asked.host, asked.port, asked.scheme == "https")
        taking = self.engine.pool.take(where, live.tool.allow_addresses, fresh=fresh)
        try:
            self.upstream = await self._unless_cut(taking)
        except NotDialled as error:
            self._not_dialled = error
            return None, str(error)
        except OSError as error:
            return None, str(error)
        return (None, self.cut_by) if self.cut_by else (self.upstream, "")

    def _send_request(self, live: Live, upstream: Upstream, sent: bytes, rest: bytes = b"") -> None:
        asked = self.request
        is_repeatable = not live.is_write and live.asked is None and asked.length == 0
        upstream.begin(self, asked.method, websocket=_is_handshake(asked.fields))
        self._again = sent if is_repeatable and upstream.was_pooled else b""
        upstream.write(sent)
        if rest:
            upstream.write(rest)
        if self.upload is not None:
            self.upload.flow(upstream)

    def failed(self, why: str, *, unprocessed: bool = False) -> None:
        """A kept connection that had ended unseen: a read without a body is sent once more, on one
        that nobody has used (RFC 9112, section 9.3.1)."""
        upstream = self.upstream
        if self._again and upstream is not None and not upstream.answered_any:
            self.interrupt(self._once_more)
        else:
            super().failed(why, unprocessed=unprocessed)

    async def _once_more(self) -> None:
        live, sent, self._again = self.live, self._again, b""
        upstream, why = await self._taken(live, fresh=True)
        if upstream is None:
            await self.end_badly(why or _DISCONNECTED)
        elif (refused := self.engine.gate.sent(live)) is not None:
            self.drop_upstream()
            await self.settle(complete=False, error=live.stopped_by)
            await self.tell_in_place(refused)
        elif not self.is_left:
            self.touch(self.engine.timeouts.first_byte_seconds)
            self._send_request(live, upstream, sent)

    def _outgoing(self, live: Live) -> tuple[bytes, bytes]:
        """The head that goes upstream, and the body where it is here: together while that is
        short."""
        gate, asked = self.engine.gate, self.request
        body = gate.outgoing(live)
        self.usage_asked = body is not None
        content = self._body if body is None else body
        fields = head.upstream_headers(
            asked.fields,
            live.identity,
            gate.tag_headers,
            tagged=live.tool.tags,
            http2=False,
            uncoded=live.is_read_here,
        )
        length_bytes = None if self.upload is not None else len(content)
        framed = wire.upstream_fields(fields, length_bytes)
        self._body = b""
        begun = wire.request_head(asked.method, asked.target, framed)
        return (begun, content) if len(content) > _JOINED_BYTES else (begun + content, b"")

    async def _not_sent(self, why: str, refused: Refusal | None = None) -> None:
        reply = await self.settle(complete=False, error=why)
        await self.tell_in_place(refused or reply)

    # Settling

    async def settle(
        self,
        *,
        complete: bool,
        ended: bool = True,
        fault: Reason | None = None,
        error: str = "",
    ) -> Refusal | None:
        live = self.live
        if not complete and fault is None:
            fault = faults.fault_of(live, self.cut_by, self._not_dialled, error)
        left = self.is_left and live.sent and not self.cut_by
        return await self.engine.gate.settle(
            live,
            status=self.status,
            headers=wire.kept(self.fields) if complete else (),
            complete=complete,
            ended=ended,
            fault=fault,
            left=left,
            rule=self.cut_by,
            error=error,
        )

    async def end_badly(self, why: str) -> None:
        """It broke. It is settled by what is known to have left, and the agent is told."""
        self.drop_upstream()
        error = faults.words_of(self.live, self.cut_by, self.cut_by or self._left() or why)
        reply = await self.settle(complete=False, error=error)
        await self.tell_in_place(reply)

    def _left(self) -> str:
        if not self.is_left or self.upload is None or self.upload.is_over:
            return ""
        return faults.left_after(self.upload.body_bytes, self.request.told)

    # Ending it

    def cut(self) -> None:
        """What waits to be sent upstream must not leave any more, whatever else is awaited."""
        if self.relay is not None:
            self.relay.cut(self.cut_by)
        self.drop_upstream()
        if self.answering and self.relay is None:
            self.client.break_off(at_once=self.request.http10)
        self._break()
        if self._live is not None and self._live.sent:
            self.interrupt(self._cut_off)

    def _break(self) -> None:
        """What is awaited of others, and can be given up, is."""
        if self._can_break and self._task is not None:
            self._task.cancel()

    async def _cut_off(self) -> None:
        await asyncio.sleep(0)  # what flows to all the others ends first
        await self.end_badly(self.cut_by)

    def left(self) -> None:
        """Its client has gone. A write is finished and recorded without it (design, section 3.6);
        before it was sent there is nothing to finish."""
        if self.is_left:
            return
        self.is_left = True
        if self.relay is not None:
            self.relay.client_ended()
            return
        live = self._live
        if live is None or not live.sent or self.is_over or self.cut_by:
            return
        if live.is_write and not self.is_uploading:
            if self.upstream is not None:
                self.client_takes()
            return
        upstream = self.upstream
        if upstream is not None and not self.is_uploading and not upstream.is_writing:
            self.upstream = None
            self.engine.pool.drop(upstream)
        self.drop_upstream()
        self._break()
        self.interrupt(self._left_alone)

    async def _left_alone(self) -> None:
        await self.end_badly(_DISCONNECTED)

    def upload_broke(self, why: str) -> None:
        """Nobody can say where the body ends of which the upstream has a part already."""
        if self._live is None or not self._live.sent:
            self.client.hang_up()
            return
        self.why = why
        self.drop_upstream()
        self.interrupt(self._broken_off)

    def upload_failed(self, failure: Exception) -> None:
        self.drop_upstream()
        self.broke(failure)

    async def abandon(self) -> None:
        """A cut has not come through in time: it is gone without."""
        self.drop_upstream()
        self.client.abort()
        await self.settle(complete=False, error=self.cut_by)
        self._over()

    async def unless_cut(self, work: Awaitable[str]) -> str | None:
        return await self._unless_cut(work)

    async def _unless_cut[T](self, work: Awaitable[T]) -> T | None:
        """What it comes to; None if the call was cut meanwhile, or left."""
        self._can_break = True
        try:
            return await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not (self.cut_by or self.is_left):
                raise
            task.uncancel()
            return None
        finally:
            self._can_break = False

    async def _failed_here(self) -> None:
        """Nothing may pass that was not judged, and nobody may hang."""
        self.drop_upstream()
        was_sent = self._live is not None and self._live.sent
        try:
            if self._live is not None:
                own = faults.OWN_FAILURE
                await self.settle(complete=False, fault=Reason.POLICY_FAILURE, error=own)
            if not self.answering and not was_sent:
                self.tell_failure()
                return
        except Exception:
            log.exception("engine.call_failed", call=self._live.call_id if self._live else "")
        self.client.over()
        self.client.break_off(at_once=False)

    def touch(self, wait_seconds: float) -> None:
        self.deadline_seconds = asyncio.get_running_loop().time() + wait_seconds

    def _over(self) -> None:
        self.release()
        self.drop_upstream()
        if self._live is not None:
            self.engine.exchanges.pop(self._live.call_id, None)
        self.is_over = True
        self.ended_mark.set()
        if self._task is not None:
            self.engine.ended(self._task)


def _is_handshake(fields: head.Headers) -> bool:
    versions = [value for name, value in fields if name.lower() == b"sec-websocket-version"]
    return versions == [b"13"] and head.is_websocket(fields)
