"""`pullcord drill` against the real program, with one engine and with two: it proves each level,
and it fails where a broken gate lets the canary through. About 70 seconds in all.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from policies.policy import CANARY_HOST
from proxy.control_client import Refused, ask
from tests.end_to_end import running
from tests.end_to_end.running import PULLCORD, Proxy

pytestmark = pytest.mark.slow

POLICY = """\
version: 1
unlisted: allow
tools:
  canary: {match: {host: "*.pullcord.invalid"}, allow_addresses: [127.0.0.0/8]}
tenants: {acme: {allow: ["*"]}}
ceilings: [{per: global, count: calls, at_most: 3, within: 1m, then: halt}]
"""
LEVELS = ["freeze run", "halt run", "halt tool", "halt release", "halt tenant"]

Start = Callable[..., Proxy]


@pytest.fixture
def start(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Start]:
    """Starts the program itself: a drill needs no upstream but its own."""
    monkeypatch.setattr(running, "LAUNCH", Path(__file__).with_name("drilled.py"))
    started: list[Proxy] = []

    def up(workers: int = 1, *, broken: bool = False, **settings: str) -> Proxy:
        folder = tmp_path_factory.mktemp("proxy")
        empty = folder / "none.pem"
        proxy = Proxy(folder, POLICY, empty, {}, workers=workers)
        config = folder / "config" / "pullcord.yaml"
        lines = [line for line in config.read_text().splitlines() if "upstream_ca" not in line]
        lines += [f"{name}: {value}" for name, value in settings.items()]
        config.write_text("\n".join(lines) + "\n")
        if broken:
            (folder / "broken").touch()
        proxy.start()
        started.append(proxy)
        return proxy

    yield up
    for proxy in started:
        if proxy.process is not None:
            proxy.stop()


def drilled(proxy: Proxy, *words: str, code: int = 0) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(proxy.cli("drill", "--json", *words, code=code))
    return result


def status(proxy: Proxy) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(proxy.cli("status", "--json"))
    return state


@pytest.mark.parametrize("workers", [1, 2])
def test_it_proves_each_level_through_every_engine(start: Start, workers: int) -> None:
    proxy = start(workers)
    shown = proxy.cli("drill")
    for level in LEVELS:
        (line,) = [line for line in shown.splitlines() if line.startswith(level)]
        *_, returned, contained, before, after, verdict = line.split()
        assert 0 <= float(contained) <= float(returned) + 50, line
        assert int(before) > 0, line
        assert (after, verdict) == ("0", "contained")
    assert f"5 levels proven, through {workers} engine" in shown
    result = drilled(proxy, "--global")
    assert [level["after"] for level in result["levels"]] == [0] * 6
    assert (result["passed"], result["engines"]) == (True, workers)
    assert (result["levels"][-1]["scope"], result["halted"]) == ("global", False)
    assert status(proxy)["pulled"] == []
    assert ready(proxy) == ""
    proxy.stop()
    assert proxy.broken() == []


@pytest.mark.parametrize("workers", [1, 2])
def test_it_fails_where_a_broken_gate_lets_the_canary_through(start: Start, workers: int) -> None:
    proxy = start(workers, broken=True)
    result = drilled(proxy, code=3)
    assert not result["passed"]
    assert all(level["after"] > 0 for level in result["levels"])
    assert all(level["verdict"].startswith("CANARY PASSED") for level in result["levels"])
    assert "CANARY PASSED" in ready(proxy)
    assert not result["halted"]
    assert "CANARY PASSED" in proxy.cli("drill", code=3)


def test_a_failed_drill_closes_egress_where_the_setting_says_so(start: Start) -> None:
    proxy = start(broken=True, failed_drill="halt")
    assert drilled(proxy, code=3)["halted"]
    (cord,) = status(proxy)["pulled"]
    assert (cord["rule"], cord["actor"]) == ("halt:global", "drill")


def test_without_a_proxy_it_says_so(start: Start) -> None:
    proxy = start()
    proxy.stop()
    proxy.cli("drill", code=5)


def test_every_so_often_it_drills_again_until_it_is_told_to_end(start: Start) -> None:
    proxy = start()
    command = [sys.executable, "-c", PULLCORD, "drill", "--every", "3s", "--json"]
    with subprocess.Popen(
        command, cwd=proxy.folder, env=proxy._environment, stdout=subprocess.PIPE, text=True
    ) as drills:
        watchdog = threading.Timer(40, drills.kill)
        watchdog.start()
        assert drills.stdout is not None
        results = [json.loads(drills.stdout.readline()) for _ in range(2)]
        drills.send_signal(signal.SIGTERM)
        drills.communicate()
        watchdog.cancel()
    assert [result["passed"] for result in results] == [True, True]
    assert drills.returncode == 0
    assert status(proxy)["pulled"] == []


def ready(proxy: Proxy) -> str:
    """Why it is not ready; empty when it is."""
    try:
        ask(proxy.folder / "data", "GET", "/readyz")
    except Refused as refused:
        return str(refused)
    return ""


# ---- agents that look for a way to this machine's own ports


def told(proxy: Proxy, credentials: str, port: int, host: str = CANARY_HOST) -> str:
    """The reason code that a write to the canary's host gets."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    encoded = b64encode(credentials.encode()).decode()
    headers = {"Proxy-Authorization": f"Basic {encoded}", "Host": f"{host}:{port}"}
    try:
        connection.request("POST", f"http://{host}:{port}/", "{}", headers)
        answer = connection.getresponse()
        answer.read()
        return answer.headers["Pullcord-Decision"].partition("reason=")[2].partition(";")[0]
    finally:
        connection.close()


@pytest.fixture
def secret_port() -> Iterator[Any]:
    """A service of this machine that no agent may reach; `accept` would block if one could not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        yield server


def reached(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("identity", ["token", "open"])
def test_no_agent_reaches_loopback_by_the_canarys_name(
    start: Start, secret_port: socket.socket, identity: str
) -> None:
    proxy = start(identity=identity)
    port, data = secret_port.getsockname()[1], proxy.folder / "data"
    mine = "r1:acme"
    if identity == "token":
        mine = f"r1:{proxy.cli('token', 'mint', '--run', 'r1', '--tenant', 'acme').strip()}"
    guessed = "pullcord.drill:pullcord.drill"
    hosts = (CANARY_HOST, f"{CANARY_HOST}.", CANARY_HOST.upper())

    for host in hosts:  # no drill runs
        assert told(proxy, mine, port, host) in ("destination_unlisted", "authority_mismatch")
    assert told(proxy, guessed, port) == "credentials_invalid"

    begun = ask(data, "POST", "/v1/drill", {"port": port})
    for host in hosts:  # one runs, and its port is known
        assert told(proxy, mine, port, host) in ("tool_not_allowed", "authority_mismatch")
    assert told(proxy, guessed, port) == "credentials_invalid"
    stolen = "credentials_invalid" if identity == "token" else "tool_not_allowed"
    assert told(proxy, f"r1:{begun['secret']}", port) == stolen  # it is good for its own run
    with socket.create_server(("127.0.0.1", 0)) as other:
        drill = f"{begun['run']}:{begun['secret']}"  # even with the drill's own token
        assert told(proxy, drill, other.getsockname()[1]) == "destination_unlisted"
        assert told(proxy, drill, port, "localhost") == "tool_not_allowed"
        assert told(proxy, drill, proxy.port) == "destination_unlisted"
    ask(data, "DELETE", "/v1/drill")
    assert told(proxy, drill, port) == "destination_unlisted"
    assert not reached(secret_port)
    proxy.cli("token", "mint", "--run", "r2", "--tenant", "pullcord.drill", code=2)
    proxy.cli("token", "mint", "--run", "pullcord.drill", code=2)


def test_a_drill_that_dies_leaves_nothing_pulled(start: Start) -> None:
    proxy = start()
    command = [sys.executable, "-c", PULLCORD, "drill", "--global"]
    dying = subprocess.Popen(command, cwd=proxy.folder, env=proxy._environment)
    deadline = time.monotonic() + 20
    while not status_of(proxy)["pulled"]:
        assert time.monotonic() < deadline
    os.kill(dying.pid, signal.SIGKILL)
    dying.wait()
    (cord,) = status_of(proxy)["pulled"]
    while status_of(proxy)["pulled"]:
        assert time.monotonic() < deadline, cord
        time.sleep(0.1)


def status_of(proxy: Proxy) -> dict[str, Any]:
    state: dict[str, Any] = ask(proxy.folder / "data", "GET", "/v1/status")
    return state
