"""An echo that speaks HTTP/2 and nothing else, for clients that offer nothing else."""

import asyncio
import json
import socket

import h2.config
import h2.connection
import h2.events

from tests.end_to_end.upstreams.serving import JOURNAL, tls


class Echo(asyncio.Protocol):
    def __init__(self) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.connection = h2.connection.H2Connection(config)
        self.methods: dict[int, str] = {}
        self.bodies: dict[int, bytes] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("not a stream")
        self.transport = transport
        self.connection.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        for event in self.connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self._begin(event)
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] += event.data
                self.connection.acknowledge_received_data(
                    event.flow_controlled_length, event.stream_id
                )
            elif isinstance(event, h2.events.StreamEnded):
                self._answer(event.stream_id)
        self._flush()

    def _begin(self, event: h2.events.RequestReceived) -> None:
        fields = [(str(name), str(value)) for name, value in event.headers]
        pseudo = dict(field for field in fields if field[0].startswith(":"))
        self.methods[event.stream_id] = pseudo[":method"]
        self.bodies[event.stream_id] = b""
        JOURNAL.note(pseudo[":authority"], pseudo[":method"], pseudo[":path"], fields)

    def _answer(self, stream_id: int) -> None:
        body = self.bodies.pop(stream_id).decode()
        answer = json.dumps({"method": self.methods.pop(stream_id), "body": body}).encode()
        headers = [(":status", "200"), ("content-type", "application/json")]
        self.connection.send_headers(stream_id, headers)
        self.connection.send_data(stream_id, answer, end_stream=True)

    def _flush(self) -> None:
        self.transport.write(self.connection.data_to_send())


async def start(listener: socket.socket) -> None:
    await asyncio.get_running_loop().create_server(Echo, sock=listener, ssl=tls("h2"))
