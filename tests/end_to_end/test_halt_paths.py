"""Every way to pull the cord, with whatever else is dead, against the real program.

About a minute in all. The cord holds through restarts and is lifted by a person only.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from proxy import control_client
from proxy.process import started
from tests.end_to_end import faults
from tests.end_to_end.running import Proxy, Run, Upstreams

pytestmark = pytest.mark.slow

POLICY = """\
version: 1
releases: {known_good: [v1]}
tools:
  orders:
    match: {host: api.echo.example, method: POST, path: "/orders/**"}
    allow_addresses: [127.0.0.0/8]
  events:
    match: {host: api.echo.example, method: POST, path: "/events/**"}
    allow_addresses: [127.0.0.0/8]
  looks:
    match: {host: api.echo.example, method: GET}
    allow_addresses: [127.0.0.0/8]
"""
BASE = "https://api.echo.example"
COUNTS_SECONDS = 2.0  # a file or a signal counts within a second, on a machine that is not busy
BACK_SECONDS = 15.0


@pytest.fixture(scope="module")
def proxy(upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    yield from _running(upstreams, tmp_path_factory.mktemp("proxy"), workers=1)


@pytest.fixture(scope="module")
def fleet(upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The same with two engine processes, and one that decides."""
    yield from _running(upstreams, tmp_path_factory.mktemp("fleet"), workers=2)


def _running(upstreams: Upstreams, folder: Path, workers: int) -> Iterator[Proxy]:
    """Each test leaves it running, with no cord over anybody else's run."""
    proxy = Proxy(folder, POLICY, upstreams.ca, upstreams.routes, workers=workers)
    proxy.start()
    yield proxy
    if proxy.process is not None:
        proxy.stop()


def data(proxy: Proxy) -> Path:
    return proxy.folder / "data"


def started_again(proxy: Proxy, run: Run, release: str) -> Run:
    """The same run from elsewhere, with a new token."""
    names = ("--run", run.name, "--tenant", run.tenant, "--release", release)
    block = proxy.cli("env", *names, "--format", "json")
    return replace(run, environment=json.loads(block))


def reason(run: Run, method: str = "GET", base: str = BASE) -> str:
    """What a call on a new connection is told: `ok`, or the reason code."""
    with run.session() as session:
        body = os.urandom(8).hex()
        answer = session.request(method, f"{base}/orders/1", data=body, timeout=30)
    return "ok" if answer.status_code == 200 else str(answer.json()["reason"])


def until(true: Callable[[], Any], seconds: float = BACK_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except (OSError, requests.RequestException, control_client.Unreachable):
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes(proxy: Proxy) -> tuple[int, list[int]]:
    """The process that decides, and the two engines'."""
    state: dict[str, Any] = {"workers": []}

    def both() -> bool:
        state.update(control_client.ask(data(proxy), "GET", "/v1/status"))
        return len(state["workers"]) == 2

    until(both)
    return state["pid"], [worker["pid"] for worker in state["workers"]]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# ---------------------------------------------------------------------------- the file, a signal


def test_touching_halt_stops_everything_and_deleting_it_lifts_nothing(proxy: Proxy) -> None:
    run = proxy.mint()
    assert reason(run) == "ok"
    (data(proxy) / "HALT").touch()
    assert (reason(run), reason(run, "POST")) == ("halted", "halted")
    (data(proxy) / "HALT").unlink()
    assert reason(run) == "halted"
    proxy.end(signal.SIGKILL)
    proxy.start()
    assert reason(run) == "halted"
    proxy.cli("resume", "global", "--reason", "mended")
    assert reason(run) == "ok"


def test_a_halt_by_the_file_that_was_released_is_not_pulled_by_the_next_start(
    proxy: Proxy,
) -> None:
    run, other = proxy.mint(), proxy.mint()
    (data(proxy) / "HALT").write_text(f"halt run {run.name}  # it loops\n")
    until(lambda: reason(run) == "halted", COUNTS_SECONDS)
    assert reason(other) == "ok"
    proxy.cli("resume", "run", run.name, "--reason", "mended")
    assert not (data(proxy) / "HALT").exists()
    proxy.stop()
    proxy.start()
    assert reason(run) == "ok"


@pytest.mark.parametrize("kind", ["proxy", "fleet"])
def test_a_signal_halts_everything(kind: str, request: pytest.FixtureRequest) -> None:
    proxy: Proxy = request.getfixturevalue(kind)
    run = proxy.mint()
    assert reason(run) == "ok"
    assert proxy.process is not None
    proxy.process.send_signal(signal.SIGUSR1)
    until(lambda: reason(run) == "halted", COUNTS_SECONDS)
    assert "SIGUSR1" in proxy.cli("status")
    proxy.cli("resume", "global", "--reason", "mended")
    assert reason(run) == "ok"


# ---------------------------------------------------------------------------- the command


def test_a_cord_with_a_time_ends_by_itself_and_a_dry_run_pulls_nothing(proxy: Proxy) -> None:
    run = proxy.mint()
    told = proxy.cli("halt", "run", run.name, "--dry-run")
    assert told.startswith(f"would halt run {run.name}: 1 active run")
    assert reason(run) == "ok"
    told = proxy.cli("halt", "run", run.name, "--for", "3s")
    assert " until " in told.splitlines()[0]
    assert reason(run) == "halted"
    until(lambda: reason(run) == "ok", 3 + COUNTS_SECONDS)
    assert run.name not in proxy.cli("status")


def test_a_resume_by_an_orchestrator_brings_a_bad_release_back_by_no_means(proxy: Proxy) -> None:
    run = proxy.mint()
    proxy.cli("halt", "run", run.name)
    proxy.cli("resume", "run", run.name, "--reason", "restart", "--release", "v9", code=2)
    proxy.cli("resume", "run", run.name, "--reason", "mended", "--release", "v1")
    assert reason(run) == "halted"
    assert reason(started_again(proxy, run, "v1")) == "ok"
    assert reason(started_again(proxy, run, "v2")) == "halted"


def test_a_halt_names_the_writes_that_may_have_happened(proxy: Proxy, upstreams: Upstreams) -> None:
    run, start = proxy.mint(), len(upstreams.journal)
    with run.session() as session, ThreadPoolExecutor(1) as agent:
        write = agent.submit(session.post, f"{BASE}/events/never", data="an order", timeout=30)
        until(lambda: upstreams.seen(start))
        answer = json.loads(proxy.cli("halt", "run", run.name, "--json"))
        assert write.exception() is not None or write.result().status_code != 200
    (row,) = proxy.calls(run)
    assert (row["effect"], row["state"]) == ("write", "unknown")
    assert (answer["cut"], answer["acknowledged"], answer["killed"]) == (1, 1, [])
    proof = answer["proof"]
    assert (proof["admitted_after"], proof["still_open"], proof["not_sent"]) == (0, [], 0)
    assert proof["cut"] == proof["unknown"] == proof["unknown_writes"] == [row["id"]]


def test_a_halt_while_the_proxy_is_dead_holds_from_its_start_on(proxy: Proxy) -> None:
    run, other = proxy.mint(), proxy.mint()
    proxy.end(signal.SIGKILL)
    told = proxy.cli("halt", "run", run.name, "--reason", "it loops")
    assert told.startswith("NO PROXY RUNS HERE")
    assert "proof:" not in told
    proxy.start()
    assert (reason(run), reason(other)) == ("halted", "ok")
    proxy.cli("resume", "run", run.name, "--reason", "mended")
    assert reason(run) == "ok"


def test_engines_that_outlive_their_decider_are_ended_by_a_halt(fleet: Proxy) -> None:
    run = fleet.mint()
    assert reason(run) == "ok"
    decider, engines = processes(fleet)
    assert fleet.process is not None
    with stopped(fleet.process.pid):  # nobody starts the next decider
        os.kill(decider, signal.SIGKILL)
        until(lambda: not started(decider))
        told = fleet.cli("halt", "run", run.name)
        assert "killed 2 engines that nobody decides for" in told
        assert not any(map(started, engines))
    until(lambda: reason(run) == "halted")


def test_a_halt_while_the_next_decider_starts_is_obeyed_by_it(fleet: Proxy) -> None:
    run = fleet.mint()
    decider, _ = processes(fleet)
    os.kill(decider, signal.SIGKILL)
    assert "halted" in fleet.cli("halt", "run", run.name)
    until(lambda: reason(run) == "halted")


def test_a_mute_proxy_gets_the_cord_by_the_file_and_obeys_when_it_wakes(
    proxy: Proxy, upstreams: Upstreams
) -> None:
    run = proxy.mint()
    assert reason(run) == "ok"
    start = len(upstreams.journal)
    assert proxy.process is not None
    with stopped(proxy.process.pid):
        told = proxy.cli("halt", "run", run.name, "--reason", "it loops")
        assert "by the file" in told
        assert f"kill -9 {proxy.process.pid}" in told
    assert reason(run, "POST") == "halted"
    assert upstreams.seen(start) == []
    until(lambda: f"HALT run {run.name}" in proxy.cli("status"))


# ---------------------------------------------------------------------------- a dead store


def test_with_a_store_that_cannot_record_the_cord_waits_in_the_file_and_is_latched_first(
    proxy: Proxy, upstreams: Upstreams
) -> None:
    run, other = proxy.mint(), proxy.mint()
    assert reason(run) == "ok"
    start = len(upstreams.journal)
    with faults.missing(data(proxy)):
        said = proxy.cli("halt", "run", run.name, "--reason", "it loops")
        assert "/data/HALT, because the proxy cannot record" in said
        assert "next: until its ledger works again nothing new passes" in said
        assert "not in the ledger yet" in proxy.cli("status")
        told = [reason(each, base="http://api.echo.example") for each in (run, other)]
        assert told == ["store_missing", "store_missing"]
    assert upstreams.seen(start) == []
    until(lambda: reason(other) == "ok")
    assert reason(run) == "halted"
    proxy.cli("resume", "run", run.name, "--reason", "mended")
    assert reason(run) == "ok"


def test_with_proxy_and_store_dead_the_cord_waits_in_the_file(proxy: Proxy) -> None:
    run, other = proxy.mint(), proxy.mint()
    proxy.stop()
    with faults.missing(data(proxy)):
        (data(proxy) / "ledger.db").mkdir()
        told = proxy.cli("halt", "run", run.name)
        (data(proxy) / "ledger.db").rmdir()
    assert "next: mend the ledger, then start: pullcord up" in told
    proxy.start()
    assert (reason(run), reason(other)) == ("halted", "ok")
