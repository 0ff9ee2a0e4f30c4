"""What the trace has of a call, as a person reads it, and the process that keeps it."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ledger import queries
from ledger.connection import open_reader
from proxy import control_client, traces
from proxy.cli.tracing import as_json
from tests.end_to_end import origin
from tests.end_to_end.ingress import Http2
from tests.end_to_end.line import Told, opened
from tests.end_to_end.origin import HOST, Origin
from tests.end_to_end.running import Proxy, Run, Upstreams
from tests.engine import spoken

KEPT_SECONDS = 10.0  # a tracer starts with the first call, and this machine may be busy
POLL_SECONDS = 0.05

Message = dict[str, Any]

WAYS = spoken(("plain", "tls", "http2"))
ALLOWED = "allow_addresses: [127.0.0.0/8]"
POLICY = f"""\
version: 1
frozen: [things.frozen]
tools:
  things.frozen: {{match: {{host: {HOST}, path: "/frozen/**"}}}}
  things.silent: {{match: {{host: {HOST}, path: "/silent/**"}}, trace: none, {ALLOWED}}}
  things.digest: {{match: {{host: {HOST}, path: "/digest/**"}}, trace: digest, {ALLOWED}}}
  things.upload:
    match: {{host: {HOST}, method: PUT, path: "/upload/**"}}
    stream: true
    idempotency: {{missing: "off"}}
    {ALLOWED}
  things: {{match: {{host: {HOST}}}, {ALLOWED}}}
  echo: {{match: {{host: api.echo.example}}, {ALLOWED}}}
  openai: {{match: {{host: api.openai.com}}, model_api: openai, {ALLOWED}}}
"""

Start = Callable[..., Proxy]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    with origin.serving(tmp_path_factory.mktemp("origin")) as served:
        yield served


@pytest.fixture(scope="module")
def start(
    upstream: Origin, upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Start]:
    """Starts a proxy with these settings. At the end each that runs must stop by itself."""
    started: list[Proxy] = []
    trusted = tmp_path_factory.mktemp("trusted") / "ca.pem"
    trusted.write_text(upstream.ca.read_text() + upstreams.ca.read_text())
    routes = {**upstreams.routes, **upstream.routes}

    def begin(workers: int = 1, policy: str = POLICY, **settings: Any) -> Proxy:
        folder = tmp_path_factory.mktemp("traced")
        proxy = Proxy(folder, policy, trusted, routes, workers=workers)
        with (folder / "config" / "pullcord.yaml").open("a") as file:
            file.writelines(f"{name}: {value}\n" for name, value in settings.items())
        proxy.start()
        started.append(proxy)
        return proxy

    yield begin
    for proxy in started:
        if proxy.process is not None:
            proxy.stop()
    assert [line for proxy in started for line in proxy.broken()] == []


def ask(way: str, run: Run, method: str, path: str, body: str = "", **headers: str) -> Told:
    """One call to `api.origin.example`, in the clear, by TLS or by HTTP/2."""
    if way == "http2":
        client = Http2(run)
        try:
            return client.ask(method, path, body)
        finally:
            client.close()
    with opened(run, tls=way == "tls") as line:
        return line.ask(method, path, body or None, **headers)


def until[Found](look: Callable[[], Found], seconds: float = KEPT_SECONDS) -> Found:
    """What it finds, once that is something; else what it found last."""
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return found


def shown(proxy: Proxy, call_id: str) -> dict[str, Any]:
    """As `ledger show --json` tells it, without a process for each look."""
    data = proxy.folder / "data"
    with closing(open_reader(data)) as reader, traces.opened(reader, data) as opened:
        row = queries.call(reader, call_id)
        assert row is not None
        return {**row, **as_json(opened.of(row))}


def trace(proxy: Proxy, call_id: str, *sides: str) -> list[Message]:
    """The messages of a call, once these have been kept."""

    def look() -> list[Message]:
        kept: list[Message] = shown(proxy, call_id)["trace"]
        return kept if {*sides} <= {message["side"] for message in kept} else []

    found = until(look)
    assert found, (shown(proxy, call_id)["trace_note"], proxy.log()[-3000:])
    return found


def whole(proxy: Proxy, call_id: str) -> tuple[Message, Message]:
    """Request and response."""
    request, response = trace(proxy, call_id, "request", "response")
    return request, response


def status(proxy: Proxy) -> dict[str, Any]:
    answer: dict[str, Any] = control_client.ask(proxy.folder / "data", "GET", "/v1/status")
    return answer


def losses(proxy: Proxy) -> list[dict[str, Any]]:
    """What the record tells of messages that are missing, oldest first."""
    with closing(open_reader(proxy.folder / "data")) as reader:
        query = "SELECT detail FROM event WHERE type = 'trace.lost' ORDER BY seq"
        return [json.loads(row["detail"]) for row in queries.sql(reader, query)]


def tracers(proxy: Proxy) -> list[int]:
    """The processes that keep the trace of this proxy."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        folder = os.fsencode(f"{proxy.folder}/")
        if b"proxy.tracer" in words and any(folder in word for word in words):
            found.append(int(process.name))
    return found


def the_tracer(proxy: Proxy) -> int:
    (pid,) = until(lambda: tracers(proxy))
    return pid


def kill_tracer(proxy: Proxy) -> int:
    pid = the_tracer(proxy)
    os.kill(pid, signal.SIGKILL)
    return pid


def called(proxy: Proxy, run: Run, *filters: str) -> dict[str, Any]:
    """The one call of a run."""
    (row,) = proxy.calls(run, *filters)
    return row
