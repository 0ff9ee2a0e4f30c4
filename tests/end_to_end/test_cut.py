"""A halt cuts what is open: streams, WebSockets and HTTP/2 streams, of its scope and no other.

The upstream never ends any of them, so whatever ends was cut. How long a cut took is counted from
the moment that the record gives for the cord, which is read before its commit, to the moment at
which the agent's side saw the end.
"""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ledger import containment, queries
from ledger.connection import open_reader
from policies.verdict import Level, Scope
from proxy import control_client
from tests.end_to_end import endless
from tests.end_to_end.endless import DEAF, POLICY, Endless
from tests.end_to_end.ingress import Http2, Stream, WebSocket, basic
from tests.end_to_end.line import Refused
from tests.end_to_end.running import Proxy, Run
from tests.engine import HAS_HTTP2

STREAMS, SOCKETS, SECONDS = 32, 8, 8  # streams and WebSockets; HTTP/2 streams
DEAFS = 4  # calls to an upstream that does not even answer TLS: nothing of them is sent
CUT_SECONDS_MAX = 0.1
SETTLE_SECONDS = 2.0  # in which what must not be cut could still be


@dataclass(frozen=True, slots=True)
class Open:
    """One thing that flows, and what waits for its end."""

    kind: str
    tenant: str
    path: str
    cut_ns: Callable[[], int]


class Flows:
    """Everything that is open at once. Two HTTP/2 connections carry streams of both tenants."""

    def __init__(self, runs: dict[str, Run], closing: ExitStack) -> None:
        self.open: list[Open] = []
        self._ends: dict[int, int] = {}
        tenants = list(runs)
        for number in range(STREAMS):
            tenant, method = tenants[number % 2], ("GET", "POST")[number // 2 % 2]
            path = f"/stream/{number}"
            stream = Stream(runs[tenant], path, tls=number // 4 % 2 == 1, method=method)
            closing.callback(stream.close)
            self.open.append(Open(f"stream {method}", tenant, path, stream.cut_ns))
        for number in range(SOCKETS):
            tenant, path = tenants[number % 2], f"/socket/{number}"
            made = WebSocket(runs[tenant], path, tls=number // 2 % 2 == 1)
            closing.callback(made.close)
            self.open.append(Open("WebSocket", tenant, path, made.cut_ns))
        for number in range(SECONDS // 2 if HAS_HTTP2 else 0):
            self._http2(number, runs, closing)

    def _http2(self, number: int, runs: dict[str, Run], closing: ExitStack) -> None:
        """Two streams on one connection: of both tenants on the first two, of one on the others."""
        tenants = list(runs)
        mine = tenants if number < 2 else [tenants[number % 2]] * 2
        connection = Http2(runs[mine[0]])
        closing.callback(connection.close)
        streams = []
        for place, tenant in enumerate(mine):
            path = f"/stream/h2-{number}-{place}"
            stream = connection.begin("GET", path, proxy_authorization=basic(runs[tenant]))
            connection.flows(stream)
            streams.append((tenant, path, stream))
        reading = ThreadPoolExecutor(1)
        closing.callback(reading.shutdown, wait=False, cancel_futures=True)
        pumped: Future[None] = reading.submit(_pumped, connection)
        for tenant, path, stream in streams:
            self.open.append(Open("HTTP/2", tenant, path, _ended(connection, stream, pumped)))


def _pumped(connection: Http2) -> None:
    """Reads for all streams of a connection until it is closed."""
    with suppress(OSError):
        while connection.pump():
            pass


def _ended(connection: Http2, stream: int, pumped: "Future[None]") -> Callable[[], int]:
    def cut_ns() -> int:
        while not connection.answers[stream].ended_ns:
            if pumped.done():
                raise TimeoutError
            time.sleep(0.002)
        return connection.answers[stream].ended_ns

    return cut_ns


def told_nothing(run: Run, number: int) -> int:
    """A write to an upstream that takes the connection and says nothing. The answer's status."""
    session = run.session()
    with closing(session):
        url = f"https://{DEAF}/{run.name}/{number}"
        return int(session.post(url, data=f"deaf {number}", timeout=30).status_code)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endless]:
    with endless.serving(tmp_path_factory.mktemp("endless")) as served:
        yield served


@pytest.fixture(params=[1, 2], ids=["1 worker", "2 workers"])
def proxy(request: pytest.FixtureRequest, upstream: Endless, tmp_path: Path) -> Iterator[Proxy]:
    made = Proxy(tmp_path, POLICY, upstream.ca, upstream.routes, workers=request.param)
    made.start()
    yield made
    if made.process is not None:
        made.end(signal.SIGKILL)


def halted(proxy: Proxy, tenant: str) -> tuple[int, dict[str, Any]]:
    """The moment of the cord in the record (nanoseconds), and the answer to who pulled it."""
    data = proxy.folder / "data"
    cord = {"level": "halt", "scope": "tenant", "subject": tenant}
    answer = control_client.ask(data, "POST", "/v1/pull", cord)
    with closing(open_reader(data)) as reader:
        proof = containment.proof(reader, Level.HALT, Scope.TENANT, tenant)
    return proof.pulled_us * 1_000, answer


@pytest.mark.slow
@pytest.mark.proof
def test_a_halt_of_a_tenant_cuts_all_of_its_own_within_100_ms_and_nothing_else(
    proxy: Proxy, upstream: Endless, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 seconds, half of them the start and the wait for what must not happen."""
    runs = {"acme": proxy.mint("acme"), "globex": proxy.mint("globex")}
    with ExitStack() as closing_all:
        flows = Flows(runs, closing_all)
        waiting = ThreadPoolExecutor(len(flows.open) + DEAFS)
        closing_all.callback(waiting.shutdown, wait=False, cancel_futures=True)
        deaf = {
            tenant: [waiting.submit(told_nothing, runs[tenant], n) for n in range(DEAFS // 2)]
            for tenant in runs
        }
        ends = {each: waiting.submit(each.cut_ns) for each in flows.open}
        in_flight(proxy, len(flows.open) + DEAFS)
        arrived = len(upstream.since())
        pulled_ns, answer = halted(proxy, "acme")
        mine = [each for each in flows.open if each.tenant == "acme"]
        took = {each: (ends[each].result(timeout=10) - pulled_ns) / 1e9 for each in mine}
        assert [told.result(timeout=10) for told in deaf["acme"]] == [403] * (DEAFS // 2)
        time.sleep(SETTLE_SECONDS)
        others = [each for each in flows.open if each.tenant != "acme"]
        assert [each for each in others if ends[each].done()] == [], "cut, though not halted"
        assert not any(told.done() for told in deaf["globex"])
        in_flight(proxy, len(others) + DEAFS // 2)
        assert len(upstream.since()) == arrived
        refused_now(runs["acme"])
        check_record(proxy, mine, others, answer)
    worst = max(took.values())
    with capsys.disabled():
        print(
            f"\ncut, {proxy.workers} worker(s): {len(took)} of {len(flows.open)} cut, p50 "
            f"{sorted(took.values())[len(took) // 2] * 1e3:.0f} ms, p99 (the longest) "
            f"{worst * 1e3:.0f} ms, acknowledged in {answer['acknowledged_ms']} ms: "
            + ", ".join(f"{kind} {longest(took, kind) * 1e3:.0f}" for kind in kinds(took))
        )
    assert worst <= CUT_SECONDS_MAX
    proxy.stop()
    assert proxy.broken() == []


def kinds(took: dict[Open, float]) -> list[str]:
    return list(dict.fromkeys(each.kind for each in took))


def longest(took: dict[Open, float], kind: str) -> float:
    return max(seconds for each, seconds in took.items() if each.kind == kind)


def in_flight(proxy: Proxy, count: int) -> None:
    """Waits until the proxy tells so many calls in flight, in all its engines."""
    deadline, found = time.monotonic() + 10, -1
    while found != count:
        assert time.monotonic() < deadline, f"{found} calls in flight, not {count}"
        status = control_client.ask(proxy.folder / "data", "GET", "/v1/status")
        found = len(status["calls"])
        time.sleep(0.05)


def refused_now(run: Run) -> None:
    """Nothing of its kind is opened again."""
    for again in (
        lambda: Stream(run, "/stream/again", tls=False),
        lambda: WebSocket(run, "/socket/again", tls=True),
        *([lambda: http2_again(run)] if HAS_HTTP2 else []),
    ):
        with pytest.raises(Refused) as refused:
            again()
        assert (refused.value.told.status, refused.value.told.reason) == (403, "halted")


def http2_again(run: Run) -> None:
    connection = Http2(run)
    with closing(connection):
        connection.flows(connection.begin("GET", "/stream/again"))


def check_record(
    proxy: Proxy, mine: list[Open], others: list[Open], answer: dict[str, Any]
) -> None:
    """What was sent and cut may have happened; what was not sent did not; the others go on."""
    with closing(open_reader(proxy.folder / "data")) as reader:
        rows = [row for row in queries.calls(reader, limit=1_000) if row["decision"] == "allow"]
    states = {row["path"]: (row["effect"], row["state"]) for row in rows}
    assert {states[each.path][1] for each in others} == {"pending"}
    writes = Counter(states[each.path] for each in mine)
    assert set(writes) == {("write", "unknown"), ("read", "unknown")}
    deaf = Counter((row["tenant"], row["state"]) for row in rows if row["host"] == DEAF)
    assert deaf == {("acme", "not_sent"): DEAFS // 2, ("globex", "pending"): DEAFS // 2}
    proof = answer["proof"]
    assert answer["cut"] == len(mine) + DEAFS // 2
    assert (proof["admitted_after"], proof["still_open"]) == (0, [])
    assert proof["not_sent"] == DEAFS // 2
    assert len(proof["unknown_writes"]) == writes["write", "unknown"]
