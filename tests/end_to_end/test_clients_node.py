"""Node.js clients as they come: undici with its `EnvHttpProxyAgent`, axios, and plain HTTP/2.

About 10 seconds in all.
"""

import json
from typing import Any

import pytest

from tests.end_to_end.running import AGENTS, Proxy, Run, StartProxy, Upstreams
from tests.engine import HTTP2

pytestmark = pytest.mark.slow

POLICY = """\
version: 1
unlisted: refuse
tools:
  echo:
    match: {host: "*.echo.example"}
    allow_addresses: [127.0.0.0/8]
"""

# The agent, and where it writes.
CALLS = [
    ("undici", "https://api.echo.example/undici"),
    ("undici", "http://api.echo.example/undici-plain"),
    ("axios", "https://api.echo.example/axios"),
    ("axios", "http://api.echo.example/axios-plain"),
    ("http2", "https://h2.echo.example/http2"),
]
CALLS_SPOKEN = [pytest.param(*call, marks=HTTP2 if call[0] == "http2" else ()) for call in CALLS]


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


def call(node: str, run: Run, agent: str, url: str) -> tuple[int, str]:
    command = (node, AGENTS / f"{agent}.mjs", "POST", url, "item=1")
    said, _, status = run.execute(*command).rstrip("\n").rpartition("\n")
    return int(status), said


def row_of(proxy: Proxy, run: Run, url: str) -> dict[str, Any]:
    (row,) = proxy.calls(run, f"path:/{url.rpartition('/')[2]}")
    return row


@pytest.mark.parametrize("agent, url", CALLS_SPOKEN)
def test_a_call_arrives_tagged_and_is_recorded(
    agent: str, url: str, node: str, proxy: Proxy, run: Run, upstreams: Upstreams
) -> None:
    start = len(upstreams.journal)
    status, said = call(node, run, agent, url)
    assert status == 200, said
    assert json.loads(said) == {"method": "POST", "body": "item=1"}
    (request,) = upstreams.seen(start)
    assert (request.run, request.tenant) == (run.name, "acme")
    assert not [name for name in request.headers if name.startswith("proxy-")]
    row = row_of(proxy, run, url)
    assert (row["tenant"], row["tool"], row["state"]) == ("acme", "echo", "done")


@pytest.mark.parametrize("agent, url", CALLS_SPOKEN)
def test_a_frozen_write_is_refused_in_one_attempt(
    agent: str, url: str, node: str, proxy: Proxy, frozen_run: Run, upstreams: Upstreams
) -> None:
    start = len(upstreams.journal)
    status, said = call(node, frozen_run, agent, url)
    assert status == 403
    assert json.loads(said)["message"].startswith("FROZEN by pullcord")
    assert upstreams.seen(start) == []
    row = row_of(proxy, frozen_run, url)
    assert (row["tenant"], row["reason"], row["state"]) == ("acme", "frozen", "refused")
