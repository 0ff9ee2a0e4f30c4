"""A tenant is halted, and resumed onto a good release by one run that goes first, through the real
program in the clear and by TLS, with one engine and with two. About 80 seconds.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.end_to_end import origin
from tests.end_to_end.line import asked
from tests.end_to_end.origin import Origin
from tests.end_to_end.running import PULLCORD, Proxy, Run

POLICY = """\
version: 1
releases: {known_good: [good-1]}
detectors: {loop: enforce, novelty: "off"}
tools:
  orders:
    match: {host: api.origin.example, path: "/orders/**"}
    effect: write
    allow_addresses: [127.0.0.0/8]
"""
GOOD = "good-1"
WATCH_SECONDS = 4
WAIT_SECONDS = 20.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    with origin.serving(tmp_path_factory.mktemp("upstream")) as served:
        served.gate.set()
        yield served


@pytest.fixture(scope="module", params=[1, 2], ids=["1 worker", "2 workers"])
def proxy(
    request: pytest.FixtureRequest, upstream: Origin, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("proxy")
    made = Proxy(folder, POLICY, upstream.ca, upstream.routes, workers=request.param)
    made.start()
    yield made
    if made.process is not None:
        made.end(signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Fleet:
    """A tenant of its own: a run of a bad release that has called, and two of the good one."""

    tenant: str
    bad: Run
    first: Run
    other: Run


def fleet(proxy: Proxy, tenant: str) -> Fleet:
    def run_of(name: str, release: str) -> Run:
        run = f"{name}-{tenant}"
        words = ("--run", run, "--tenant", tenant, "--release", release, "--format", "json")
        return Run(run, tenant, json.loads(proxy.cli("env", *words)), proxy.folder)

    made = Fleet(
        *(tenant, run_of("bad", f"bad-{tenant}")), run_of("first", GOOD), run_of("other", GOOD)
    )
    assert both(made.bad, f"before-{tenant}") == {"allowed"}
    return made


def outcome(run: Run, path: str, *, tls: bool = True) -> str | None:
    """Why a write of this run passed, or did not."""
    return asked(run, "POST", f"/orders/{path}", path, tls=tls).reason


def both(run: Run, path: str) -> set[str | None]:
    return {outcome(run, f"{path}-{tls}", tls=tls) for tls in (False, True)}


def halted(proxy: Proxy, tenant: str) -> str:
    """The tenant, in an incident."""
    opened = proxy.cli("incident", "open", "--tenant", tenant, "--reason", "twice", "--json")
    proxy.cli("halt", "tenant", tenant)
    return str(json.loads(opened)["id"])


def recovering(
    proxy: Proxy, incident: str, *words: str, watch: float = WATCH_SECONDS
) -> "subprocess.Popen[str]":
    options = ("--canary", "1", "--watch", str(watch), "--reason", "mended")
    command = ("incident", "recover", incident, *options, *words)
    return subprocess.Popen(
        [sys.executable, "-c", PULLCORD, *command],
        cwd=proxy.folder,
        env=proxy._environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_open(proxy: Proxy) -> bool:
    return '"trial"' in proxy.cli("status", "--json")


def test_one_run_goes_first_and_the_rest_follows(proxy: Proxy, upstream: Origin) -> None:
    runs = fleet(proxy, "well")
    incident = halted(proxy, "well")
    start = len(upstream.arrived)
    assert both(runs.first, "halted") == both(runs.other, "halted") == {"halted"}
    assert upstream.paths(start) == []
    with recovering(proxy, incident) as command:
        until(lambda: is_open(proxy))
        assert both(runs.bad, "during") == {"halted"}
        assert both(runs.first, "during") == {"allowed"}
        assert both(runs.other, "during") == {"halted"}
        out, err = command.communicate(timeout=WAIT_SECONDS)
    assert command.returncode == 0, err
    assert f"recovered {incident} onto {GOOD}" in out
    assert "run first-well: 2 calls, 2 writes, 2 done" in out
    assert len(upstream.paths(start)) == 2
    assert both(runs.first, "after") == both(runs.other, "after") == {"allowed"}
    assert both(runs.bad, "after") == {"halted"}


def test_a_canary_that_loops_trips_and_everything_stays_shut(proxy: Proxy) -> None:
    runs = fleet(proxy, "loops")
    incident = halted(proxy, "loops")
    with recovering(proxy, incident, "--json", watch=60) as command:
        until(lambda: is_open(proxy))
        until(lambda: outcome(runs.first, "again") == "halted")
        out, err = command.communicate(timeout=WAIT_SECONDS)
    assert command.returncode == 3, err
    told = json.loads(out)
    assert told["canary"]["state"] == "ended"
    assert any("detector:loop of run first-loops" in each for each in told["canary"]["found"])
    assert f"--release {GOOD} --canary 1" in told["why"]
    for run in (runs.first, runs.other, runs.bad):
        assert both(run, "after") == {"halted"}
    assert not is_open(proxy)


@pytest.mark.parametrize("killed", ["command", "proxy"])
def test_what_is_killed_meanwhile_makes_it_no_wider(proxy: Proxy, killed: str) -> None:
    runs = fleet(proxy, killed)
    incident = halted(proxy, killed)
    with recovering(proxy, incident, watch=60) as command:
        until(lambda: is_open(proxy))
        assert outcome(runs.first, "during") == "allowed"
        if killed == "command":
            command.kill()
        else:
            proxy.end(signal.SIGKILL)
        _, err = command.communicate(timeout=WAIT_SECONDS)
    if killed == "proxy":
        assert command.returncode == 10, err
        assert "no proxy runs" in err
        proxy.start()
    assert both(runs.other, "after") == {"halted"}
    assert both(runs.first, "after") == {"allowed"}
    with recovering(proxy, incident, watch=1) as command:
        _, err = command.communicate(timeout=WAIT_SECONDS)
    assert command.returncode == 0, err
    assert both(runs.other, "follows") == {"allowed"}
    assert "WRONG" not in proxy.cli("ledger", "check")
