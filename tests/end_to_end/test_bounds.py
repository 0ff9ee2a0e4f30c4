"""Cords, ceilings and tokens under the running program: who is stopped, and for how long.

Every call here is made by plain HTTP and inside TLS, on connections that were open before.
"""

import http.client
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from proxy import control_client
from tests.end_to_end import origin
from tests.end_to_end.line import Line, Told, asked, opened
from tests.end_to_end.origin import Origin
from tests.end_to_end.running import Proxy, Run

POLICY = """\
version: 1
tools:
  orders: {match: {host: api.origin.example, path: "/orders/**"}, allow_addresses: [127.0.0.0/8]}
  refunds: {match: {host: api.origin.example, path: "/refunds/**"}, allow_addresses: [127.0.0.0/8]}
  tickets: {match: {host: api.origin.example, path: "/tickets/**"}, allow_addresses: [127.0.0.0/8]}
  slow: {match: {host: api.origin.example, path: "/held/**"}, allow_addresses: [127.0.0.0/8]}
ceilings:
  - {per: tool, tool: tickets, count: writes, at_most: 10, within: 1m}
"""

EDIT_SECONDS = 1.0
CUT_SECONDS = 2.0
WRITERS = 64
PASS = 10  # of the writers

# Run a is tenant acme's, run b is globex's.
CALLS = {
    "a writes an order": ("a", "POST", "/orders/1"),
    "a reads an order": ("a", "GET", "/orders/1"),
    "a writes a refund": ("a", "POST", "/refunds/1"),
    "b writes an order": ("b", "POST", "/orders/1"),
    "b reads an order": ("b", "GET", "/orders/1"),
    "b writes a refund": ("b", "POST", "/refunds/1"),
}
SUBJECTS = {"global": "", "tenant": "acme", "run": "run-1", "tool": "orders"}
COVERED = {
    "global": set(CALLS),
    "tenant": {call for call in CALLS if call.startswith("a ")},
    "run": {call for call in CALLS if call.startswith("a ")},
    "tool": {call for call in CALLS if call.endswith("order")},
}
CORDS = [(level, scope) for level in ("freeze", "halt") for scope in SUBJECTS]
RELEASE = {"freeze": "thaw", "halt": "resume"}


def stopped_by(level: str, scope: str) -> dict[str, str]:
    """What each call is answered while this cord is pulled, and no other."""
    reason = {"freeze": "frozen", "halt": "halted"}[level]
    return {
        call: reason
        if call in COVERED[scope] and (level == "halt" or method == "POST")
        else "allowed"
        for call, (_, method, _) in CALLS.items()
    }


EVERYTHING_FLOWS = dict.fromkeys(CALLS, "allowed")


class Agents:
    """Two runs, each with a plain and a TLS connection that stay open."""

    def __init__(self, proxy: Proxy, upstream: Origin) -> None:
        self.proxy = proxy
        self.upstream = upstream
        self.runs = {"a": proxy.mint("acme"), "b": proxy.mint("globex")}
        self._bodies = 0
        self._lines: dict[tuple[str, bool], Line] = {}
        self.connect()

    def connect(self) -> None:
        self.close()
        self._lines = {
            (name, tls): Line(run, tls=tls)
            for name, run in self.runs.items()
            for tls in (False, True)
        }

    def close(self) -> None:
        for line in self._lines.values():
            line.close()

    def ask(self, call: str, tls: bool) -> Told:
        name, method, path = CALLS[call]
        self._bodies += 1
        body = f"body {self._bodies}" if method == "POST" else None
        return self._lines[name, tls].ask(method, path, body)

    def answers(self) -> dict[str, str]:
        """Why each call passed or did not; both ways of calling must agree with the upstream."""
        told: dict[str, str] = {}
        for call in CALLS:
            start = len(self.upstream.arrived)
            both = [self.ask(call, tls) for tls in (False, True)]
            reasons = {str(answer.reason) for answer in both}
            assert len(reasons) == 1, f"{call}: plain and TLS differ: {both}"
            (told[call],) = reasons
            passed = [answer for answer in both if answer.status == 200]
            assert len(self.upstream.arrived) - start == len(passed), call
            assert all(answer.status == 403 for answer in both if answer not in passed), both
        return told

    def control(self, method: str, path: str, **body: str) -> dict[str, Any]:
        """As the command line asks, without the half second that its process takes."""
        data = self.proxy.folder / "data"
        answer: dict[str, Any] = control_client.ask(data, method, path, body or None)
        return answer


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    with origin.serving(tmp_path_factory.mktemp("origin")) as served:
        yield served


@pytest.fixture(scope="module")
def agents(upstream: Origin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    proxy = Proxy(tmp_path_factory.mktemp("p"), POLICY, upstream.ca, upstream.routes)
    proxy.start()
    made = Agents(proxy, upstream)
    yield made
    made.close()
    proxy.stop()
    assert proxy.broken() == []


def named(scope: str) -> tuple[str, ...]:
    return (scope, *filter(None, [SUBJECTS[scope]]))


# Cords from the command line


@pytest.mark.parametrize("level, scope", CORDS)
def test_a_cord_stops_its_scope_until_it_is_released_with_a_reason(
    level: str, scope: str, agents: Agents
) -> None:
    agents.proxy.cli(level, *named(scope))
    assert agents.answers() == stopped_by(level, scope)
    agents.proxy.cli(RELEASE[level], *named(scope), "--reason", "it was an exercise")
    assert agents.answers() == EVERYTHING_FLOWS


def test_a_release_without_a_reason_releases_nothing(agents: Agents) -> None:
    agents.proxy.cli("freeze", "tool", "orders")
    agents.proxy.cli("thaw", "tool", "orders", code=2)
    agents.proxy.cli("thaw", "tool", "orders", "--reason", "  ", code=2)
    agents.proxy.cli("resume", "tool", "orders", "--reason", "not what was pulled", code=4)
    assert agents.answers() == stopped_by("freeze", "tool")
    agents.proxy.cli("thaw", "tool", "orders", "--reason", "it was an exercise")


@pytest.mark.slow
def test_all_cords_outlive_a_crash_and_are_released_one_by_one(agents: Agents) -> None:
    """4 seconds, most of them a start."""
    for level, scope in CORDS:
        why = f"{level} of {scope}"
        cord = {"level": level, "scope": scope, "subject": SUBJECTS[scope], "reason": why}
        assert agents.control("POST", "/v1/pull", **cord)["changed"]
    before = agents.control("GET", "/v1/status")["pulled"]
    assert {cord["reason"] for cord in before} == {f"{level} of {scope}" for level, scope in CORDS}
    agents.proxy.end(signal.SIGKILL)
    agents.proxy.start()
    agents.connect()
    assert agents.control("GET", "/v1/status")["pulled"] == before
    standing = list(CORDS)
    while standing:
        expected = EVERYTHING_FLOWS
        for cords in standing:  # freezes are first, halts last: a halt is looked at before a freeze
            stops = {call: why for call, why in stopped_by(*cords).items() if why != "allowed"}
            expected = expected | stops
        assert agents.answers() == expected
        level, scope = standing.pop()
        over = {"level": level, "scope": scope, "subject": SUBJECTS[scope], "reason": "over"}
        assert agents.control("POST", "/v1/release", **over)["released"]
    assert agents.answers() == EVERYTHING_FLOWS


def test_a_halt_cuts_what_is_in_flight(agents: Agents, upstream: Origin) -> None:
    """A read and a write, by plain HTTP and by TLS, whose upstream does not answer."""
    upstream.gate.clear()
    run = agents.runs["b"]
    calls = [(method, tls) for method in ("GET", "POST") for tls in (False, True)]
    paths = [f"/held/{method}-{tls}" for method, tls in calls]

    def call(method: str, tls: bool) -> int:
        return asked(run, method, f"/held/{method}-{tls}", tls=tls).status

    with ThreadPoolExecutor(len(calls)) as callers:
        try:
            answers = [callers.submit(call, *each) for each in calls]
            for path in paths:
                upstream.wait_for(path)
            assert "4 calls cut" in agents.proxy.cli("halt", "run", run.name)
            start = time.monotonic()
            assert [answer.result() for answer in answers] == [403] * 4
            assert time.monotonic() - start < CUT_SECONDS
        finally:
            upstream.gate.set()
            agents.proxy.cli("resume", "run", run.name, "--reason", "it was an exercise")
    rows = [row for row in agents.proxy.calls(run) if row["path"] in paths]
    assert [row["state"] for row in rows] == ["unknown"] * 4


# Cords and mistakes in the policy


def line_of(level: str, scope: str) -> str:
    key = {"freeze": "frozen", "halt": "halted"}[level]
    value = "true" if scope == "global" else f"[{SUBJECTS[scope]}]"
    scopes = {"global": "global", "tenant": "tenants", "run": "runs", "tool": "tools"}
    return f"{key}: {{{scopes[scope]}: {value}}}\n"


def seconds_until(agents: Agents, expected: str) -> float:
    """From now until run a's write of an order is answered so."""
    start = time.monotonic()
    number = 0
    while True:
        number += 1
        # A connection each: a halt may meet the call on its way, and cut it without an answer.
        with suppress(OSError, http.client.HTTPException):
            told = asked(agents.runs["a"], "POST", "/orders/1", f"poll {start} {number}")
            if told.reason == expected:
                return time.monotonic() - start
        assert time.monotonic() - start < 10 * EDIT_SECONDS, f"never {expected}"


@pytest.mark.slow
def test_an_edit_of_the_policy_bites_within_a_second(
    agents: Agents, capsys: pytest.CaptureFixture[str]
) -> None:
    """6 seconds. Every scope, frozen and halted, and back."""
    took: list[float] = []
    for level, scope in CORDS:
        expected = stopped_by(level, scope)
        agents.proxy.edit_policy(POLICY + line_of(level, scope))
        took.append(seconds_until(agents, expected["a writes an order"]))
        assert agents.answers() == expected
        agents.proxy.edit_policy(POLICY)
        took.append(seconds_until(agents, "allowed"))
        assert agents.answers() == EVERYTHING_FLOWS
    with capsys.disabled():
        print(f"\nedit: {len(took)} edits bit after {min(took):.2f} to {max(took):.2f} s")
    assert max(took) <= EDIT_SECONDS


def test_an_edit_that_does_not_load_changes_nothing_and_is_shown(agents: Agents) -> None:
    agents.proxy.edit_policy(POLICY + line_of("freeze", "tool"))
    seconds_until(agents, "frozen")
    agents.proxy.edit_policy(POLICY + "halted: {global: maybe}\n")
    until(lambda: "INVALID" in agents.proxy.cli("status"))
    shown = agents.proxy.cli("status")
    assert "the last good one is in force" in shown
    assert "policy.yaml:9:18" in shown
    with pytest.raises(control_client.Refused, match=r"policy\.yaml:9:18"):
        agents.control("GET", "/readyz")
    assert agents.answers() == stopped_by("freeze", "tool")
    agents.proxy.edit_policy(POLICY)
    seconds_until(agents, "allowed")
    assert agents.control("GET", "/readyz") == {"ready": True}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10 * EDIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Tokens


def test_a_revoked_token_is_refused_at_the_next_call_inside_an_open_tunnel(
    agents: Agents, upstream: Origin
) -> None:
    run = agents.proxy.mint("acme")
    with ExitStack() as closing:
        lines = [closing.enter_context(opened(run, tls=tls)) for tls in (False, True)]
        assert [line.ask("GET", "/orders/1").status for line in lines] == [200, 200]
        agents.proxy.cli("token", "revoke", run.name)
        start = len(upstream.arrived)
        for method in ("GET", "POST"):
            told = [line.ask(method, "/orders/1") for line in lines]
            told += [asked(run, method, "/orders/1", tls=tls) for tls in (False, True)]
            answers = [(each.status, each.reason) for each in told]
            assert answers == [(403, "token_revoked")] * 4
        assert upstream.paths(start) == []
    assert agents.answers() == EVERYTHING_FLOWS


# Ceilings


def written_at_once(runs: list[Run], label: str) -> list[Told]:
    """Every writer's answer: each writes something else, at the same moment, on an open line."""
    barrier = Barrier(WRITERS)

    def write(number: int) -> Told:
        with opened(runs[number % len(runs)], tls=number % 4 >= 2) as line:
            barrier.wait(timeout=60)
            return line.ask("POST", f"/tickets/{label}-{number}", f"ticket {label} {number}")

    with ThreadPoolExecutor(WRITERS) as writers:
        return list(writers.map(write, range(WRITERS)))


@pytest.mark.proof
@pytest.mark.slow
def test_of_64_writers_of_two_runs_ten_pass_and_none_after_a_crash(
    upstream: Origin, tmp_path: Path
) -> None:
    """8 seconds, most of them two starts. The window is the tool's, whoever calls."""
    proxy = Proxy(tmp_path, POLICY, upstream.ca, upstream.routes)
    proxy.start()
    runs, start = [proxy.mint("acme"), proxy.mint("globex")], len(upstream.arrived)
    first = written_at_once(runs, "first")
    assert len(upstream.paths(start)) == PASS
    assert Counter(told.status for told in first) == {200: PASS, 429: WRITERS - PASS}
    proxy.end(signal.SIGKILL)
    proxy.start()
    second = written_at_once(runs, "second")
    assert {told.status for told in second} == {429}
    assert len(upstream.paths(start)) == PASS
    for told in (*first, *second):
        if told.status == 429:
            assert told.reason == "over_ceiling"
            assert 1 <= int(told.headers["retry-after"]) <= 61  # a bucket of the window is a second
            assert {"ratelimit", "ratelimit-policy"} <= set(told.headers)
    states = Counter(row["state"] for run in runs for row in proxy.calls(run))
    proxy.stop()
    assert states == {"done": PASS, "refused": 2 * WRITERS - PASS}
    assert proxy.broken() == []
