"""HTTP clients as they come: `pullcord env` alone makes them proxied, trusted and attributed.

About 25 seconds in all.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.end_to_end.running import AGENTS, Proxy, Run, StartProxy, Upstreams

pytestmark = pytest.mark.slow

POLICY = """\
version: 1
unlisted: refuse
tools:
  echo.write:
    match: {host: api.echo.example, method: POST}
    allow_addresses: [127.0.0.0/8]
  echo.read:
    match: {host: api.echo.example, method: [GET, HEAD]}
    allow_addresses: [127.0.0.0/8]
"""

HOST = "api.echo.example"
CLIENTS = (
    "curl",
    "curl-h2",
    "curl-plain",
    "curl-plain-in-a-tunnel",
    "requests",
    "requests-plain",
    "httpx",
    "httpx-h2",
    "aiohttp",
    "urllib",
)
STREAMING = ("requests", "httpx", "httpx-h2", "aiohttp")
# aiohttp asks for `ws://` in a way that no proxy has to understand, and is refused with 400.
WEBSOCKETS = [("aiohttp-websocket", "wss"), ("websockets", "wss"), ("websockets", "ws")]

CURL = ("curl", "--silent", "--show-error", "--write-out", "\n%{http_code}")
CURL_OPTIONS = {
    "curl": ("--http1.1",),
    "curl-h2": ("--http2",),
    "curl-plain": (),
    "curl-plain-in-a-tunnel": ("--proxytunnel",),
}

Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def proxy(start_proxy: StartProxy) -> Proxy:
    return start_proxy(POLICY)


@pytest.fixture(scope="module")
def run(proxy: Proxy) -> Run:
    return proxy.mint()


@pytest.fixture(scope="module")
def frozen_run(proxy: Proxy) -> Run:
    run = proxy.mint()
    proxy.cli("freeze", "run", run.name, "--reason", "duplicate orders")
    return run


@pytest.fixture(scope="module")
def call(need: Callable[[str], str]) -> Call:
    """Sends one request with a client, in a process of its own. Gives status and body."""

    def execute(
        run: Run, client: str, method: str, url: str, body: str = "", **more: str
    ) -> tuple[int, str]:
        if client in CURL_OPTIONS:
            need("curl")
            sent = ("--data-binary", body) if body else ()
            command = (*CURL, *CURL_OPTIONS[client], "--request", method, *sent, url)
        else:
            name = client.removesuffix("-plain")
            command = (sys.executable, str(AGENTS / "http_clients.py"), name, method, url, body)
        said, _, status = run.execute(*command, **more).rstrip("\n").rpartition("\n")
        return int(status), said

    return execute


def url_of(client: str) -> str:
    """A path for each client, by which its row in the ledger is found."""
    return f"{'http' if '-plain' in client else 'https'}://{HOST}/{client}"


def row_of(proxy: Proxy, run: Run, path: str) -> dict[str, Any]:
    """The one row that a call left."""
    (row,) = proxy.calls(run, f"path:{path}")
    return row


@pytest.mark.parametrize("client", CLIENTS)
def test_a_call_arrives_tagged_and_is_recorded(
    client: str, call: Call, proxy: Proxy, run: Run, upstreams: Upstreams
) -> None:
    start = len(upstreams.journal)
    status, said = call(run, client, "POST", url_of(client), '{"item": 1}')
    assert status == 200, said
    assert json.loads(said) == {"method": "POST", "body": '{"item": 1}'}
    (request,) = upstreams.seen(start)
    assert (request.run, request.tenant) == (run.name, "acme")
    assert not [name for name in request.headers if name.startswith("proxy-")]
    row = row_of(proxy, run, f"/{client}")
    assert (row["tenant"], row["tool"], row["effect"]) == ("acme", "echo.write", "write")
    assert (row["decision"], row["state"], row["status"]) == ("allow", "done", 200)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_frozen_write_is_refused_in_one_attempt(
    client: str, call: Call, proxy: Proxy, frozen_run: Run, upstreams: Upstreams
) -> None:
    start = len(upstreams.journal)
    status, said = call(frozen_run, client, "POST", url_of(client), '{"item": 1}')
    assert status == 403
    message = json.loads(said)["error"]["message"]
    assert message.startswith(f"FROZEN by pullcord: writes of run {frozen_run.name} are frozen")
    assert "duplicate orders" in message
    assert upstreams.seen(start) == []
    row = row_of(proxy, frozen_run, f"/{client}")
    assert (row["tenant"], row["tool"]) == ("acme", "echo.write")
    assert (row["decision"], row["reason"], row["state"]) == ("refuse", "frozen", "refused")


@pytest.mark.parametrize("client", STREAMING)
@pytest.mark.parametrize("method, effect", [("GET", "read"), ("POST", "write")])
def test_the_first_event_of_a_stream_is_not_held_back(
    client: str, method: str, effect: str, call: Call, proxy: Proxy, run: Run, upstreams: Upstreams
) -> None:
    """The upstream sends the last event only once the client has shown that it has the first."""
    gate = upstreams.gate(f"{method}-{client}")
    url = f"https://{HOST}/events/{gate.name}"
    status, said = call(run, client, method, url, TEST_GATE=str(gate))
    assert (status, said) == (200, "data: first\n\ndata: last\n\n")
    row = row_of(proxy, run, f"/events/{gate.name}")
    assert (row["effect"], row["state"]) == (effect, "done")


def test_a_read_whose_agent_has_left_is_recorded_as_answered(proxy: Proxy, run: Run) -> None:
    """Not as unknown: that word is for writes that may have happened."""
    with run.session() as session:
        answer = session.get(f"https://{HOST}/events/left", stream=True)
        assert next(answer.iter_lines()) == b"data: first"
        answer.close()
    row = row_of(proxy, run, "/events/left")
    assert (row["effect"], row["state"], row["status"]) == ("read", "done", 200)


@pytest.mark.parametrize("client", ["curl", "curl-plain", "requests", "httpx"])
def test_an_answer_without_a_length_arrives_whole(client: str, call: Call, run: Run) -> None:
    scheme = "http" if "-plain" in client else "https"
    assert call(run, client, "GET", f"{scheme}://{HOST}/chunked") == (200, "one two three")


@pytest.mark.parametrize("client, scheme", WEBSOCKETS)
def test_a_websocket_carries_messages_and_is_recorded(
    client: str, scheme: str, call: Call, proxy: Proxy, run: Run, upstreams: Upstreams
) -> None:
    start, path = len(upstreams.journal), f"/socket/{scheme}-{client}"
    assert call(run, client, "GET", f"{scheme}://{HOST}{path}", "hello") == (1000, "echo hello")
    (request,) = upstreams.seen(start)
    assert (request.run, request.tenant) == (run.name, "acme")
    row = row_of(proxy, run, path)
    assert (row["effect"], row["state"], row["status"]) == ("write", "done", 101)


@pytest.mark.parametrize("client, scheme", WEBSOCKETS)
def test_a_frozen_run_opens_no_websocket(
    client: str, scheme: str, call: Call, proxy: Proxy, frozen_run: Run, upstreams: Upstreams
) -> None:
    start, path = len(upstreams.journal), f"/socket/{scheme}-{client}"
    status, said = call(frozen_run, client, "GET", f"{scheme}://{HOST}{path}", "hello")
    assert status == 403
    assert "frozen" in said
    assert upstreams.seen(start) == []
    row = row_of(proxy, frozen_run, path)
    assert (row["reason"], row["state"]) == ("frozen", "refused")


def test_a_frozen_run_may_still_read(call: Call, frozen_run: Run) -> None:
    assert call(frozen_run, "requests", "GET", f"https://{HOST}/things")[0] == 200


def test_a_halted_run_may_not_even_read(call: Call, proxy: Proxy, upstreams: Upstreams) -> None:
    run, start = proxy.mint(), len(upstreams.journal)
    proxy.cli("halt", "run", run.name, "--reason", "loops")
    status, said = call(run, "requests", "GET", f"https://{HOST}/things")
    assert status == 403
    assert f"HALTED by pullcord: run {run.name} is halted (loops)" in said
    assert upstreams.seen(start) == []


def test_an_unlisted_host_is_refused_by_name(call: Call, proxy: Proxy, run: Run) -> None:
    status, said = call(run, "requests", "POST", "https://api.unheard.example/v1/things", "{}")
    assert status == 403
    assert "api.unheard.example" in json.loads(said)["error"]["message"]
    assert row_of(proxy, run, "/v1/things")["reason"] == "destination_unlisted"
