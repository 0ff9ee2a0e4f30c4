"""An exception anywhere between a request read and its verdict: the upstream sees nothing.

Each hook of the engine and each step of the gate is made to raise in turn, through each ingress.
"""

import asyncio

import pytest
from mitmproxy.proxy import layer, server_hooks
from mitmproxy.proxy.layers import http as mhttp
from mitmproxy.proxy.layers import tls as mtls
from mitmproxy.proxy.layers import websocket as mwebsocket

from ledger.connection import Writer
from ledger.store import Store
from proxy import gate as gate_module
from proxy import head, logs
from proxy.decider import Decider
from proxy.engines import mitm_hooks
from proxy.engines.mitm_events import (
    CallerHook,
    DialledHook,
    DrawHook,
    PartHook,
    SettleHook,
    StoredHook,
    UnendedHook,
)

GET = b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\n"
INNER = b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n"

# Hooks after the verdict, and those that only tell: they cannot let anything through.
LATER = {
    CallerHook,  # it only refuses, too: test_mitm_floods.py
    UnendedHook,  # it only refuses; that it raises is tried in test_mitm_unended.py
    mhttp.HttpResponseHeadersHook,
    mhttp.HttpResponseHook,
    mhttp.HttpErrorHook,
    DrawHook,  # that it raises is tried in test_mitm_budgets.py
    SettleHook,
    PartHook,  # that it raises is tried in test_mitm_uploads_cut.py
    StoredHook,  # that it raises is tried in test_mitm_long_answers.py
    mwebsocket.WebsocketStartHook,
    mwebsocket.WebsocketMessageHook,
    mwebsocket.WebsocketEndHook,
    server_hooks.ServerConnectedHook,
    server_hooks.ServerConnectErrorHook,
    server_hooks.ServerDisconnectedHook,
    server_hooks.ClientDisconnectedHook,
    mtls.TlsEstablishedServerHook,
    mtls.TlsFailedServerHook,
    mtls.TlsFailedClientHook,
    mhttp.HttpConnectErrorHook,
}
PLAIN = [
    server_hooks.ClientConnectedHook,
    layer.NextLayerHook,
    mhttp.HttpRequestHeadersHook,
    mhttp.HttpRequestHook,
    server_hooks.ServerConnectHook,
    DialledHook,
]
TUNNEL = [
    *PLAIN,
    mhttp.HttpConnectHook,
    mhttp.HttpConnectedHook,
    mtls.TlsClienthelloHook,
    mtls.TlsStartClientHook,
    mtls.TlsEstablishedClientHook,
    mtls.TlsStartServerHook,
]


def failing(*_args, **_kwargs):
    raise RuntimeError("injected")


async def plain(proxy, _upstream):
    """What the client is told: the status, or nothing when it is hung up on."""
    try:
        return (await proxy.exchange(GET + proxy.credentials() + b"\r\n", 5.0))[9:12]
    except (OSError, asyncio.IncompleteReadError):
        return b"closed"


async def through_a_tunnel(proxy, _upstream, alpn=()):
    try:
        reader, writer = await proxy.tunnel("api.test", alpn=alpn)
        writer.write(INNER)
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return answer[9:12]
    except (OSError, AssertionError, asyncio.IncompleteReadError):
        return b"closed"


HOOKS_OF_MITMPROXY = pytest.mark.mitmproxy("the hooks are mitmproxy's")


@HOOKS_OF_MITMPROXY
def test_every_hook_is_either_injected_here_or_comes_after_the_verdict():
    assert set(mitm_hooks.HOOKS) == LATER | set(TUNNEL)


@HOOKS_OF_MITMPROXY
@pytest.mark.parametrize("hook", PLAIN, ids=lambda hook: hook.__name__)
async def test_a_hook_that_raises_refuses_a_plain_call(tls_upstream, serving, monkeypatch, hook):
    async with serving(tls_upstream.port) as proxy:
        monkeypatch.setitem(mitm_hooks.HOOKS, hook, failing)
        assert await plain(proxy, tls_upstream) in (b"503", b"502", b"closed")
    assert tls_upstream.received == b""


@HOOKS_OF_MITMPROXY
@pytest.mark.parametrize("hook", TUNNEL, ids=lambda hook: hook.__name__)
async def test_a_hook_that_raises_refuses_a_call_in_a_tunnel(
    tls_upstream, serving, monkeypatch, hook
):
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        monkeypatch.setitem(mitm_hooks.HOOKS, hook, failing)
        assert await through_a_tunnel(proxy, tls_upstream) in (b"503", b"502", b"closed")
    assert tls_upstream.received == b""


@HOOKS_OF_MITMPROXY
async def test_a_hook_that_is_not_in_the_table_refuses(tls_upstream, serving, monkeypatch):
    async with serving(tls_upstream.port) as proxy:
        monkeypatch.delitem(mitm_hooks.HOOKS, mhttp.HttpRequestHook)
        assert await plain(proxy, tls_upstream) == b"503"
    assert tls_upstream.received == b""


STEPS = {
    "reading the head": (head, "read"),
    "identifying the call": (gate_module, "identified"),
    "reading the claimant": (gate_module, "claimant"),
    "making the id": (gate_module, "new_id"),
    "logging the decision": (logs, "decided"),
    "queueing": (Decider, "admit"),
    "opening the transaction": (Store, "transaction"),
    "admitting": (Store, "admit"),
    "sitting down": (Decider, "sits"),
    "committing": (Writer, "commit"),
    "the last look": (gate_module.Gate, "sent"),
    "choosing the headers": (head, "upstream_headers"),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("ingress", [plain, through_a_tunnel], ids=["plain", "tunnel"])
async def test_a_step_that_raises_refuses_the_call(
    tls_upstream, serving, monkeypatch, step, ingress
):
    told = {"upstream_ca": tls_upstream.ca, "log_calls": "all"}
    async with serving(tls_upstream.port, **told) as proxy:
        with monkeypatch.context() as patch:
            patch.setattr(*step, failing)
            assert await ingress(proxy, tls_upstream) in (b"503", b"closed")
        assert tls_upstream.received == b""
        # And nothing is broken for good: the next call is judged.
        if ingress is through_a_tunnel:
            assert await ingress(proxy, tls_upstream) == b"200"


async def test_a_judge_that_raises_refuses_and_is_recorded(tls_upstream, serving, monkeypatch):
    async with serving(tls_upstream.port) as proxy:
        monkeypatch.setattr("proxy.sitting.decide", failing)
        assert await plain(proxy, tls_upstream) == b"503"
    assert [call["reason"] for call in proxy.calls()] == ["policy_failure"]
    assert tls_upstream.received == b""


@HOOKS_OF_MITMPROXY
@pytest.mark.parametrize("hook", [mhttp.HttpResponseHeadersHook, mhttp.HttpResponseHook])
async def test_a_hook_that_raises_on_the_answer_hangs_nobody(
    tls_upstream, serving, monkeypatch, hook
):
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        monkeypatch.setitem(mitm_hooks.HOOKS, hook, failing)
        await cut_off(proxy, tls_upstream)


STEPS_OF_AN_ANSWER = {
    "choosing the headers": (head, "agent_headers"),
    "looking at what kind it is": (gate_module.Gate, "answering"),
    "counting it": (gate_module.Gate, "body"),
}


@pytest.mark.parametrize("step", STEPS_OF_AN_ANSWER.values(), ids=STEPS_OF_AN_ANSWER)
async def test_a_step_that_raises_on_the_answer_hangs_nobody(
    tls_upstream, serving, monkeypatch, step
):
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        monkeypatch.setattr(*step, failing)
        await cut_off(proxy, tls_upstream)


async def cut_off(proxy, upstream):
    """The effect has happened; the agent is cut off and the outcome is not called done."""
    reader, writer = await proxy.tunnel("api.test")
    writer.write(b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(asyncio.IncompleteReadError):
        await reader.readuntil(b"ok")
    writer.close()
    while proxy.gate.live or proxy.calls()[0]["state"] == "pending":
        await asyncio.sleep(0.01)
    assert [call["state"] for call in proxy.calls()] == ["unknown"]
    assert upstream.received.count(b"POST ") == 1
