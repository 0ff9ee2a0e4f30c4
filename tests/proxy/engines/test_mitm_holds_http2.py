"""Calls over HTTP/2 that wait for a person: a stream is reset, a connection closes."""

from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events

from ledger.states import HoldState
from tests.engine import HTTP2
from tests.proxy.engines.test_mitm_floods import until
from tests.proxy.engines.test_mitm_holds import POLICY, decide, state, states, waiting

pytestmark = HTTP2


class Http2:
    """A client's side of one HTTP/2 connection."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        config = h2.config.H2Configuration(header_encoding="utf-8")
        self.conn = h2.connection.H2Connection(config)
        self.conn.initiate_connection()

    def post(self, path="/o"):
        stream = self.conn.get_next_available_stream_id()
        fields = (":method", "POST"), (":scheme", "https"), (":authority", "api.test")
        self.conn.send_headers(stream, [*fields, (":path", path)])
        self.conn.send_data(stream, b"x", end_stream=True)
        self.writer.write(self.conn.data_to_send())
        return stream

    def reset(self, stream):
        self.conn.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        self.writer.write(self.conn.data_to_send())

    async def status(self, stream):
        while True:
            for event in self.conn.receive_data(await self.reader.read(65536)):
                mine = getattr(event, "stream_id", None) == stream
                if isinstance(event, h2.events.ResponseReceived) and mine:
                    fields: dict[Any, Any] = dict(event.headers or ())
                    return fields[":status"]
            self.writer.write(self.conn.data_to_send())


async def test_http2_a_stream_that_is_reset_leaves_the_others_waiting(tls_upstream, serving):
    async with serving(tls_upstream.port, POLICY, upstream_ca=tls_upstream.ca) as proxy:
        client = Http2(*await proxy.tunnel("api.test", alpn=["h2"]))
        first, second = client.post("/first"), client.post("/second")
        holds = {hold.summary.split()[1]: hold for hold in await waiting(proxy, 2)}
        client.reset(first)
        await until(lambda: sorted(states(proxy)) == ["held", "not_sent"])
        for hold in holds.values():
            await decide(proxy, hold)
        assert await client.status(second) == "200"
        assert await client.status(client.post("/first")) == "200"
        assert await state(proxy, holds["/first"]) is HoldState.USED
        client.writer.close()


async def test_http2_a_connection_that_closes(tls_upstream, serving):
    async with serving(tls_upstream.port, POLICY, upstream_ca=tls_upstream.ca) as proxy:
        client = Http2(*await proxy.tunnel("api.test", alpn=["h2"]))
        client.post()
        (hold,) = await waiting(proxy)
        client.writer.transport.abort()
        await until(lambda: states(proxy) == ["not_sent"])
        assert await state(proxy, hold) is HoldState.WAITING
