"""A sliding window under the running program, judged by when the upstream read each call.

A call arrives a while after it was let through, and not always the same while: by so much may a
span at the upstream be shorter. The exact proof is tests/ledger/test_bucket_edge.py.
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from ledger.connection import open_reader
from tests.end_to_end import endless
from tests.end_to_end.endless import Endless
from tests.end_to_end.line import Line
from tests.end_to_end.race import minted
from tests.end_to_end.running import Proxy, Run
from tests.ledger.test_bucket_edge import most_within

AT_MOST = 50
WITHIN_SECONDS = 2
JITTER_SECONDS_MAX = 1.0  # of a busy machine; with more than that nothing is shown
WRITERS = 16
ROUNDS = min(int(os.environ.get("ROUNDS", "3")), 20)
WINDOWS = 1 + ROUNDS

POLICY = f"""\
version: 1
tools:
  refused:
    match: {{host: api.origin.example, path: "/refused/**"}}
    allow_addresses: [127.0.0.0/8]
  queued:
    match: {{host: api.origin.example, path: "/queued/**"}}
    allow_addresses: [127.0.0.0/8]
ceilings:
  - {{per: run, tool: refused, count: calls, at_most: {AT_MOST}, within: {WITHIN_SECONDS}s}}
  - {{per: run, tool: queued, count: calls, at_most: {AT_MOST}, within: {WITHIN_SECONDS}s,
     wait_seconds: 10}}
  - {{per: run, count: calls, unbounded: true}}
  - {{per: tenant, count: calls, unbounded: true}}
"""


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endless]:
    with endless.serving(tmp_path_factory.mktemp("endless")) as served:
        yield served


@pytest.fixture(scope="module")
def proxy(upstream: Endless, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    made = Proxy(tmp_path_factory.mktemp("p"), POLICY, upstream.ca, upstream.routes, workers=2)
    made.start()
    try:
        yield made
        made.stop()
        assert made.broken() == []
    finally:
        if made.process is not None:
            made.end(signal.SIGKILL)


def attacked(run: Run, tool: str) -> Counter[int]:
    """Everybody writes as fast as they can, whatever they are told; how often they were told it."""
    ends, told, lock = time.monotonic() + WINDOWS * WITHIN_SECONDS, Counter[int](), threading.Lock()

    def write(number: int) -> None:
        line, turn = Line(run, tls=number % 2 == 1), 0
        with closing(line):
            while time.monotonic() < ends:
                turn += 1
                path = f"/{tool}/{number}-{turn}"
                status = line.ask("POST", path, path).status
                with lock:
                    told[status] += 1
                if status == 429:
                    time.sleep(0.01)

    with ThreadPoolExecutor(WRITERS) as writers:
        for each in [writers.submit(write, number) for number in range(WRITERS)]:
            each.result()
    return told


def admitted_us(proxy: Proxy, run: Run) -> dict[str, int]:
    """When each call was let through, by its path."""
    with closing(open_reader(proxy.folder / "data")) as reader:
        found = reader.execute(
            "SELECT path, at_us FROM event WHERE type = 'call.intent' AND run = ?", (run.name,)
        )
        return dict(found.fetchall())


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.parametrize("tool", ["refused", "queued"])
def test_no_span_of_a_window_holds_more_calls_at_the_upstream(
    proxy: Proxy, upstream: Endless, tool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 seconds with 3 rounds. Of `queued`, calls wait for room."""
    like = proxy.mint()
    run, mark = minted(proxy, like, f"by-{tool}", "acme"), upstream.mark()
    told = attacked(run, tool)
    ahead_us = time.time_ns() // 1_000 - time.monotonic_ns() // 1_000
    arrived = {each.path: each.at_ns // 1_000 + ahead_us for each in upstream.since(mark)}
    admitted, within_us = admitted_us(proxy, run), WITHIN_SECONDS * 1_000_000
    assert set(arrived) == set(admitted)
    late_us = [arrived[path] - admitted[path] for path in arrived]
    jitter_us = max(late_us) - min(late_us)
    by_record = most_within(sorted(admitted.values()), within_us)
    by_upstream = most_within(sorted(arrived.values()), within_us - jitter_us - 1)
    with capsys.disabled():
        print(
            f"\nat most {AT_MOST} within {WITHIN_SECONDS} s, the others {tool}, {WINDOWS} windows: "
            f"most by the record {by_record}, at the upstream {by_upstream} within its jitter of "
            f"{jitter_us / 1e3:.0f} ms; {len(arrived)} arrived; told {dict(told)}"
        )
    assert by_record == AT_MOST
    assert by_upstream <= AT_MOST
    assert jitter_us / 1e6 < JITTER_SECONDS_MAX
    assert len(arrived) >= AT_MOST * (WINDOWS - 1)
    assert set(told) == ({200, 429} if tool == "refused" else {200})
