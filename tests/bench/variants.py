"""What is compared: straight to the upstream, stock mitmdump as shipped, and pullcord as it runs,
over each of its engines.

All proxies are the real programs in processes of their own, up during the whole run. Here they
are configured, started, awaited and ended; nothing is measured.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from proxy import control_client

PROXY_CPU, LOAD_CPU = 0, 1
DIRECT, STOCK = "direct", "stock"
ENGINES = ("mitmproxy", "http1")  # pullcord over each is named after it

START_SECONDS = 30.0
SLOW_START_SECONDS = 300.0  # under valgrind everything takes fifty times as long
TENANTS = 20
TOOLS = 50

_LISTENS = re.compile(rb"listens on http://127\.0\.0\.1:(\d+)")
_NO_LIMIT = 1_000_000_000
_PROGRAMS = Path(sys.executable).parent


class NotStarted(Exception):
    """A program under test did not come up; the message ends with what it printed last."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Where calls go. `pid` and `port` None is the way without a proxy."""

    name: str
    trust: Path
    pid: int | None = None
    port: int | None = None
    credentials: tuple[str, ...] = ("bench:bench",)


@dataclass(frozen=True, slots=True)
class Upstream:
    plain: int
    tls: int


@contextlib.contextmanager
def on_cpu(number: int) -> Iterator[None]:
    """What is started inside runs on this CPU alone."""
    usual = os.sched_getaffinity(0)
    if number in usual:
        os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, usual)


@contextlib.contextmanager
def running(command: list[str], cpu: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives as long as the block. What it says goes to `log`."""
    # A setting of the person who measures must not change what is measured.
    environ = {name: text for name, text in os.environ.items() if name[:9] != "PULLCORD_"}
    with log.open("wb") as said, on_cpu(cpu):
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environ
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def module(name: str) -> list[str]:
    """The command that runs a program of this folder."""
    return [sys.executable, "-m", f"tests.bench.{name}"]


@contextlib.contextmanager
def upstream(folder: Path, certificate: Path) -> Iterator[Upstream]:
    command = [*module("upstream"), str(certificate)]
    with running(command, LOAD_CPU, folder / "upstream.log") as process:
        line = process.stdout.readline() if process.stdout else b""
        if not line:
            raise NotStarted(_why("the upstream", folder / "upstream.log"))
        yield Upstream(**json.loads(line))


@contextlib.contextmanager
def stock(folder: Path, authority: Path, wrapper: list[str] | None = None) -> Iterator[Variant]:
    """mitmdump as shipped; only its folder, its port and whom it trusts are set."""
    confdir, log, port = folder / "stock", folder / "stock.log", _free_port()
    confdir.mkdir(exist_ok=True)
    settings = [f"confdir={confdir}", f"ssl_verify_upstream_trusted_ca={authority}"]
    program = [str(_PROGRAMS / "mitmdump")]
    if wrapper is not None:
        program = [*wrapper, sys.executable, *program]  # valgrind takes a binary, not a script
    command = [*program, "-q", "--listen-host", "127.0.0.1", "--listen-port", str(port)]
    for setting in settings:
        command += ["--set", setting]
    with running(command, PROXY_CPU, log) as process:
        _await_port(process, port, "mitmdump", log, bool(wrapper))
        yield Variant(STOCK, confdir / "mitmproxy-ca-cert.pem", process.pid, port)


@contextlib.contextmanager
def pullcord(
    folder: Path,
    authority: Path,
    behind: Upstream,
    wrapper: list[str] | None = None,
    *,
    engine: str = ENGINES[0],
) -> Iterator[Variant]:
    """`pullcord up` with a policy of everyday size, tokens, ceilings, and its ledger on disk."""
    config, data = folder / f"config-{engine}", data_of(folder, engine)
    log = folder / f"pullcord-{engine}.log"
    config.mkdir(exist_ok=True)
    settings = {"listen": "127.0.0.1:0", "upstream_ca": str(authority), "data": str(data)}
    settings["engine"] = engine
    (config / "pullcord.yaml").write_text(yaml.safe_dump(settings))
    (config / "policy.yaml").write_text(yaml.safe_dump(policy(behind), sort_keys=False))
    program = [str(_PROGRAMS / "pullcord")]
    if wrapper is not None:
        program = [*wrapper, *module("stretched")]
    command = [*program, "up", "--config", str(config)]
    with running(command, PROXY_CPU, log) as process:
        line = process.stdout.readline() if process.stdout else b""
        found = _LISTENS.search(line)
        if found is None:
            raise NotStarted(_why("pullcord", log, line))
        credentials = tuple(_mint(data, number) for number in range(TENANTS))
        port = int(found[1])
        yield Variant(engine, data / "ca" / "ca.pem", process.pid, port, credentials)


def data_of(folder: Path, engine: str) -> Path:
    """Where pullcord over this engine keeps its record."""
    return folder / f"data-{engine}"


def policy(behind: Upstream) -> dict[str, object]:
    """A policy of TOOLS tools and TENANTS tenants with ceilings of every kind, never reached."""
    tools: dict[str, object] = {}
    for number in range(TOOLS - 16):
        host = f"api{number % 12}.example.com"
        match: dict[str, object]
        match = {"host": host, "method": "POST", "path": f"/v1/things{number}/{{id}}"}
        tools[f"other.t{number}"] = {"match": match, "effect": "write"}
    for scheme, port in (("plain", behind.plain), ("tls", behind.tls)):
        for number in range(6):
            path = f"/v{number}/{{id}}/parts/{{part}}"
            match = {"host": "127.0.0.1", "port": port, "path": path}
            tools[f"{scheme}.t{number}"] = {"match": match, "allow_addresses": ["127.0.0.1/32"]}
        for name, method, path in (("read", "GET", "/items/{id}"), ("order", "POST", "/orders")):
            match = {"host": "127.0.0.1", "port": port, "method": method, "path": path}
            tools[f"{scheme}.{name}"] = {
                "match": match,
                "effect": "read" if name == "read" else "write",
                "allow_addresses": ["127.0.0.1/32"],
            }
    tenants = {f"tenant{n}": {"allow": ["plain.*", "tls.*", "other.t1*"]} for n in range(TENANTS)}
    bounds = [("run", "calls"), ("run", "writes"), ("tenant", "calls"), ("tenant", "writes")]
    bounds += [("tool", "calls"), ("tool", "writes"), ("global", "calls"), ("global", "writes")]
    ceilings: list[dict[str, object]] = [
        {"per": per, "count": count, "at_most": _NO_LIMIT, "within": "1m"} for per, count in bounds
    ]
    ceilings += [  # in place of the shipped ones: what they cost, without their limits
        {"per": per, "count": count, "at_most": _NO_LIMIT}
        for per in ("run", "tenant")
        for count in ("in_flight", "spend_usd")
    ]
    return {
        "version": 1,
        "unlisted": "refuse",
        "tools": tools,
        "tenants": tenants,
        "ceilings": ceilings,
    }


def _mint(data: Path, number: int) -> str:
    """A run of its own for each tenant, as `pullcord env` makes one."""
    wanted = {"run": f"run{number}", "tenant": f"tenant{number}"}
    minted = control_client.ask(data, "POST", "/v1/tokens", wanted, SLOW_START_SECONDS)
    return f"run{number}:{minted['secret']}"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def _await_port(
    process: subprocess.Popen[bytes], port: int, name: str, log: Path, slow: bool
) -> None:
    deadline = time.monotonic() + (SLOW_START_SECONDS if slow else START_SECONDS)
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise NotStarted(_why(name, log))


def _why(name: str, log: Path, line: bytes = b"") -> str:
    said = (line + log.read_bytes())[-1500:].decode("utf-8", "replace").strip()
    return f"{name} did not start: {said or 'it said nothing'}"
