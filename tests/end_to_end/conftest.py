"""The upstreams, once for all tests, and proxies on them.

Each upstream is a process on loopback with a certificate of the tests' own authority. Each proxy is
the real program; only names lead elsewhere (launch.py). What reaches an upstream is counted by the
upstream.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest

from tests.end_to_end import certificates
from tests.end_to_end.running import ROOT, Proxy, StartProxy, Upstreams
from tests.end_to_end.upstreams.journal import Journal
from tests.proxy.engines.conftest import pytest_asyncio_loop_factories

# Which upstream process and port stands in for which name and port.
PLACES = {
    "web": (
        "api.echo.example:443",
        "api.openai.com:443",
        "api.anthropic.com:443",
        "api.stripe.com:443",
    ),
    "plain": ("api.echo.example:80",),
    "http2": ("h2.echo.example:443",),
    "s3": (
        "s3.amazonaws.com:443",
        "s3.us-east-1.amazonaws.com:443",
        "reports.s3.amazonaws.com:443",
    ),
    "mcp": ("mcp.crm.example:443",),
}
PROCESSES = ("web", "s3", "crm")

__all__ = ["pytest_asyncio_loop_factories"]


@pytest.fixture(scope="session")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstreams]:
    folder = tmp_path_factory.mktemp("upstreams")
    (folder / "gates").mkdir()
    names = sorted({place.partition(":")[0] for places in PLACES.values() for place in places})
    files = certificates.make(folder, names)
    with ExitStack() as closing:
        started = [_process(closing, name, folder) for name in PROCESSES]
        ports: dict[str, int] = {}
        for process in started:
            ports |= json.loads(process.stdout.readline())  # type: ignore[union-attr]
        routes = {place: ports[name] for name, places in PLACES.items() for place in places}
        yield Upstreams(folder, files.ca, routes, Journal(folder / "seen.jsonl"))


def _process(closing: ExitStack, name: str, folder: Path) -> "subprocess.Popen[str]":
    module = f"tests.end_to_end.upstreams.{name}"
    with (folder / f"{name}.log").open("w") as log:
        process = closing.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", module, str(folder)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        )
    closing.callback(process.kill)
    return process


@pytest.fixture(scope="module")
def start_proxy(
    upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartProxy]:
    """Starts a proxy on a policy. At the end of the module each must stop by itself, unbroken."""
    started: list[Proxy] = []

    def start(policy: str) -> Proxy:
        proxy = Proxy(tmp_path_factory.mktemp("proxy"), policy, upstreams.ca, upstreams.routes)
        proxy.start()
        started.append(proxy)
        return proxy

    yield start
    for proxy in started:
        if proxy.process is not None:
            proxy.stop()
    assert [line for proxy in started for line in proxy.broken()] == []


@pytest.fixture(scope="session")
def need() -> Callable[[str], str]:
    """The path of a program from outside PyPI: missing it skips, and fails where CI promised it."""

    def find(program: str) -> str:
        found = shutil.which(program)
        return found or _missing(f"{program} is not installed")

    return find


@pytest.fixture(scope="session")
def node(need: Callable[[str], str]) -> str:
    """Node.js with the packages that `.ci/clients` installs."""
    program = need("node")
    if not (ROOT / ".ci" / "node" / "node_modules").is_dir():
        _missing("the packages of .ci/node are not installed: run .ci/clients")
    return program


def _missing(what: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)
