"""Rows 4, 13 and 14 of the decision table in the real program, with one engine and with two.

A duplicate of a write in flight waits and shares its answer, whichever engine it comes to, and is
told 409 when that takes too long; agents that leave and crashes make no second write. About 40
seconds.
"""

import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.end_to_end import origin
from tests.end_to_end.line import Line, Told, asked
from tests.end_to_end.origin import HELD, Origin
from tests.end_to_end.running import Proxy, Run

POLICY = """\
version: 1
tools:
  things:
    match: {host: api.origin.example}
    idempotency: {unauthorized: release, ignore: [nonce]}
    allow_addresses: [127.0.0.0/8]
"""
DUPLICATES = 12
SHARE_SECONDS = 5

pytestmark = pytest.mark.slow


class Impatient(Proxy):
    """A duplicate waits for five seconds, not for thirty."""

    @property
    def _environment(self) -> dict[str, str]:
        return super()._environment | {"TEST_SHARE_SECONDS": str(SHARE_SECONDS)}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    with origin.serving(tmp_path_factory.mktemp("origin")) as made:
        yield made


@pytest.fixture
def upstream(served: Origin) -> Iterator[Origin]:
    served.gate.clear()
    served.status = 200
    yield served
    served.gate.set()


@pytest.fixture(scope="module", params=[1, 2], ids=["one engine", "two engines"])
def proxy(
    request: pytest.FixtureRequest, served: Origin, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("proxy")
    made = Impatient(folder, POLICY, served.ca, served.routes, workers=request.param)
    made.start()
    yield made
    served.gate.set()
    if made.process is not None:
        made.end(signal.SIGKILL)


@pytest.fixture
def many() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(DUPLICATES) as threads:
        yield threads


def charge(run: Run, path: str) -> Told:
    """Each on a connection of its own, so that every engine gets some."""
    return asked(run, "POST", path, "1", tls=True)


def told(answers: "list[Future[Told]]") -> Counter[tuple[int, str | None]]:
    return Counter((answer.result().status, answer.result().reason) for answer in answers)


def test_duplicates_wait_and_share_one_answer(
    proxy: Proxy, upstream: Origin, many: ThreadPoolExecutor
) -> None:
    run, path = proxy.mint(), f"{HELD}shared-{proxy.workers}"
    answers = [many.submit(charge, run, path) for _ in range(DUPLICATES)]
    upstream.wait_for(path)
    time.sleep(0.5)
    assert not any(answer.done() for answer in answers)
    upstream.gate.set()
    assert told(answers) == {(200, "allowed"): 1, (200, "replayed"): DUPLICATES - 1}
    assert len({answer.result().body for answer in answers}) == 1
    assert upstream.paths().count(path) == 1
    states = Counter(row["state"] for row in proxy.calls(run, at_least=DUPLICATES))
    assert states == {"done": 1, "replayed": DUPLICATES - 1}
    assert proxy.broken() == []


def test_a_duplicate_that_waited_too_long_is_told_when_to_come_again(
    proxy: Proxy, upstream: Origin, many: ThreadPoolExecutor
) -> None:
    run, path = proxy.mint(), f"{HELD}slow-{proxy.workers}"
    first = many.submit(charge, run, path)
    upstream.wait_for(path)
    began = time.monotonic()
    late = [many.submit(charge, run, path) for _ in range(4)]
    assert told(late) == {(409, "in_flight"): 4}
    assert SHARE_SECONDS <= time.monotonic() - began < 3 * SHARE_SECONDS
    assert [answer.result().headers["retry-after"] for answer in late] == ["1"] * 4
    upstream.gate.set()
    assert first.result().status == 200
    again = charge(run, path)
    assert (again.status, again.reason) == (200, "replayed")
    assert upstream.paths().count(path) == 1


def test_a_write_whose_agent_has_left_is_shared_by_who_waits(
    proxy: Proxy, upstream: Origin, many: ThreadPoolExecutor
) -> None:
    run, path = proxy.mint(), f"{HELD}left-{proxy.workers}"
    line = Line(run, tls=True)
    line._client.request("POST", path, "1", {})
    upstream.wait_for(path)
    waiting = [many.submit(charge, run, path) for _ in range(4)]
    time.sleep(0.3)
    line.close()
    time.sleep(0.3)
    upstream.gate.set()
    assert told(waiting) == {(200, "replayed"): 4}
    assert upstream.paths().count(path) == 1
    assert Counter(row["state"] for row in proxy.calls(run, at_least=5)) == {
        "done": 1,
        "replayed": 4,
    }


def test_a_write_in_flight_at_a_crash_is_unknown_to_who_waited_for_it(
    proxy: Proxy, upstream: Origin, many: ThreadPoolExecutor
) -> None:
    run, path = proxy.mint(), f"{HELD}crash-{proxy.workers}"
    cut = [many.submit(_charge_or_cut, run, path) for _ in range(4)]
    upstream.wait_for(path)
    time.sleep(0.3)
    proxy.end(signal.SIGKILL)
    assert {answer.result() for answer in cut} == {None}
    proxy.start()
    again = charge(run, path)
    assert (again.status, again.reason) == (504, "outcome_unknown")
    upstream.gate.set()
    assert upstream.paths().count(path) == 1


def _charge_or_cut(run: Run, path: str) -> int | None:
    try:
        return charge(run, path).status
    except Exception:  # whatever a client makes of a proxy that dies
        return None


def test_what_the_policy_ignores_and_releases(proxy: Proxy, upstream: Origin) -> None:
    """Fields that differ, and refused credentials, by the policy's own words."""
    run = proxy.mint()
    sent = {"Content-Type": "application/json"}

    def ask(path: str, body: str) -> tuple[int, str | None]:
        line = Line(run, tls=True)
        try:
            answer = line.ask("POST", path, body, **sent)
        finally:
            line.close()
        return answer.status, answer.reason

    start = len(upstream.paths())
    assert ask("/made", '{"a": 1, "nonce": 1}') == (200, "allowed")
    assert ask("/made", '{"nonce": 2, "a": 1}') == (200, "replayed")
    assert ask("/made", '{"nonce": 2, "a": 2}') == (200, "allowed")
    assert upstream.paths(start) == ["/made"] * 2
    upstream.status = 401
    assert [ask("/denied", "{}")[0] for _ in range(2)] == [401, 401]
    assert upstream.paths(start)[2:] == ["/denied"] * 2
