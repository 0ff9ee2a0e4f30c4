"""An exception at any step of the http1 engine before a request leaves: the upstream sees nothing.

What both engines do with a step of the gate that raises is in test_fail_closed.py.
"""

import asyncio
from typing import Any

import pytest

from proxy.engines import http1_client, http1_exchange, http1_wire
from proxy.engines.arriving import Arriving
from proxy.engines.http1_bodies import Body
from proxy.engines.http1_certificates import Certificates
from proxy.engines.http1_client import Client
from proxy.engines.http1_exchange import Exchange
from proxy.engines.http1_pool import Pool
from proxy.engines.http1_tls import Tls
from proxy.engines.http1_upstream import Upstream
from tests.proxy.engines.conftest import whole_answer
from tests.proxy.engines.test_fail_closed import failing, plain, through_a_tunnel

pytestmark = pytest.mark.http1("the steps are those of that engine")

STEPS: dict[str, tuple[Any, str]] = {
    "reading a request": (http1_client, "incoming"),
    "beginning a call": (Client, "_begin"),
    "making a call": (http1_client, "Exchange"),
    "running a call": (Exchange, "_called"),
    "making the head": (http1_wire, "request_head"),
    "taking a connection": (Pool, "take"),
    "dialling": (Pool, "_dialled"),
    "knowing a handshake": (http1_exchange, "_is_handshake"),
    "beginning upstream": (Upstream, "begin"),
}
STEPS_OF_A_TUNNEL: dict[str, tuple[Any, str]] = {
    "greeting who calls": (Client, "_greet"),
    "beginning a tunnel": (Client, "_begin_tunnel"),
    "minting a certificate": (Certificates, "context"),
    "making a leaf": (Certificates, "_leaf"),
    "reading TLS": (Tls, "feed"),
    "securing the upstream": (Pool, "_secured"),
}
STEPS_OF_A_BODY: dict[str, tuple[Any, str]] = {
    "telling an upload": (http1_client, "is_judged_by_head"),
    "beginning a body": (Client, "_begin_body"),
    "reading a body": (Body, "feed"),
    "joining a body": (Arriving, "body"),
}
REFUSED = (b"503", b"502", b"closed")


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
async def test_a_step_that_raises_refuses_a_plain_call(
    upstream, serving, monkeypatch, nothing_crashes, step
):
    made = await upstream(_ok)
    async with serving(made.port) as proxy:
        with monkeypatch.context() as patch:
            patch.setattr(*step, failing)
            assert await plain(proxy, made) in REFUSED
        assert made.received == b""
        assert not proxy.gate.live
        assert await plain(proxy, made) == b"200"
    nothing_crashes.clear()


@pytest.mark.parametrize(
    "step", (STEPS | STEPS_OF_A_TUNNEL).values(), ids=STEPS | STEPS_OF_A_TUNNEL
)
async def test_a_step_that_raises_refuses_a_call_in_a_tunnel(
    tls_upstream, serving, monkeypatch, nothing_crashes, step
):
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        with monkeypatch.context() as patch:
            patch.setattr(*step, failing)
            async with asyncio.timeout(10):
                assert await through_a_tunnel(proxy, tls_upstream) in REFUSED
        assert tls_upstream.received == b""
        assert not proxy.gate.live
        assert await through_a_tunnel(proxy, tls_upstream) == b"200"
    nothing_crashes.clear()


@pytest.mark.parametrize("step", STEPS_OF_A_BODY.values(), ids=STEPS_OF_A_BODY)
async def test_a_step_that_raises_on_a_body_refuses_the_call(
    upstream, serving, monkeypatch, nothing_crashes, step
):
    made = await upstream(_ok)
    async with serving(made.port) as proxy:
        head = b"POST http://api.test/ HTTP/1.1\r\nHost: api.test\r\n" + proxy.credentials()
        sent = head + b"Content-Length: 2\r\n\r\n{}"
        with monkeypatch.context() as patch:
            patch.setattr(*step, failing)
            try:
                reader, writer = await proxy.connect()
                writer.write(sent)
                async with asyncio.timeout(5):
                    assert (await whole_answer(reader))[9:12] in REFUSED
            except (OSError, asyncio.IncompleteReadError):
                pass  # hung up on
        assert made.received == b""
        assert not proxy.gate.live
        assert (await proxy.exchange(sent)).startswith(b"HTTP/1.1 200")
    nothing_crashes.clear()


async def _ok(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
