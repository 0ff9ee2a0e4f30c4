"""A write happens once, however often an agent sends it and whatever becomes of the proxy.

The upstream is localstripe, which ignores idempotency keys: every request that reaches it is one
more charge. About 40 seconds in all: SDKs wait between their retries.
"""

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pytest

from tests.end_to_end.running import AGENTS, Proxy, Run, StartProxy, Upstreams

POLICY = """\
version: 1
unlisted: refuse
tools:
  stripe.charges.create:
    match: {host: api.stripe.com, method: POST, path: /v1/charges}
    idempotency: {header: Idempotency-Key, missing: derive}
    allow_addresses: [127.0.0.0/8]
  echo:
    match: {host: api.echo.example}
    allow_addresses: [127.0.0.0/8]
"""

pytestmark = pytest.mark.slow

CALLS = 200
PARALLEL = 16
WAIT_SECONDS = 15.0


@pytest.fixture(scope="module")
def proxy(start_proxy: StartProxy) -> Proxy:
    return start_proxy(POLICY)


def charges(run: Run, *, one_key: bool, calls: int = CALLS, retries: int = 2) -> tuple[str, ...]:
    """The command line of the charging agent. A key is its tenant's, so it is named by the run."""
    counts = (str(calls), str(min(PARALLEL, calls)), str(retries))
    keys = (f"order-of-{run.name}",) if one_key else ()
    return (sys.executable, str(AGENTS / "charges.py"), *counts, *keys)


def told(lines: Iterable[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def states(proxy: Proxy, run: Run) -> Counter[str]:
    return Counter(row["state"] for row in proxy.calls(run))


def wait_for_one_more(upstreams: Upstreams, start: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not upstreams.seen(start) and time.monotonic() < deadline:
        time.sleep(0.02)


with_keys = pytest.mark.parametrize("one_key", [True, False], ids=["one key", "a fresh key each"])


@with_keys
def test_200_charges_by_the_sdk_are_one(one_key: bool, proxy: Proxy, upstreams: Upstreams) -> None:
    run, start = proxy.mint(), len(upstreams.journal)
    made = told(run.execute(*charges(run, one_key=one_key)).splitlines())
    assert len(upstreams.seen(start)) == 1
    assert len({charge["id"] for charge in made}) == 1
    assert Counter(charge["replayed"] for charge in made) == {False: 1, True: CALLS - 1}
    rows = proxy.calls(run, at_least=CALLS)
    (effect,) = [row for row in rows if row["decision"] == "allow"]
    assert (effect["state"], effect["effect"]) == ("done", "write")
    replays = [row for row in rows if row is not effect]
    assert Counter(row["state"] for row in replays) == {"replayed": CALLS - 1}
    assert {row["replay_of"] for row in replays} == {effect["id"]}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_in_the_middle_makes_no_second_charge(
    number: signal.Signals, proxy: Proxy, upstreams: Upstreams
) -> None:
    run, start = proxy.mint(), len(upstreams.journal)
    with run.start(*charges(run, one_key=True, retries=8)) as agent:
        made = told(islice(agent.stdout or (), CALLS // 4))
        proxy.end(number)
        proxy.start()
        made += told(agent.stdout or ())
    # A handshake that the end cut off looks to the SDK like a wrong certificate: it gives up.
    cut = [charge for charge in made if charge.get("status", 0) is None]
    assert len(cut) <= PARALLEL
    assert {charge.get("id") for charge in made if charge not in cut} == {made[0]["id"]}
    assert len(made) == CALLS
    assert len(upstreams.seen(start)) == 1
    counts = states(proxy, run)
    assert counts["done"] == 1
    # A replay whose answer the end cut off was asked for again.
    assert counts["replayed"] >= CALLS - 1 - len(cut)


@pytest.fixture
def held_charges(upstreams: Upstreams) -> Iterator[None]:
    """The upstream writes down what it is asked to charge, and does not answer yet."""
    gate = upstreams.gate("hold-charges")
    gate.touch()
    yield
    gate.unlink()


@pytest.mark.usefixtures("held_charges")
@with_keys
def test_a_charge_in_flight_at_a_crash_is_unknown_and_never_sent_again(
    one_key: bool, proxy: Proxy, upstreams: Upstreams
) -> None:
    run, start = proxy.mint(), len(upstreams.journal)
    again = charges(run, one_key=one_key, calls=8, retries=0)
    with run.start(*again) as agent:
        wait_for_one_more(upstreams, start)
        proxy.end(signal.SIGKILL)
        cut = told(agent.stdout or ())
    proxy.start()
    assert [charge for charge in cut if "error" not in charge] == []
    refused = told(run.execute(*again).splitlines())
    assert [charge["status"] for charge in refused] == [504] * 8
    assert all("may have happened" in charge["error"] for charge in refused)
    assert len(upstreams.seen(start)) == 1
    counts = states(proxy, run)
    assert (counts["unknown"], counts["done"]) == (1, 0)


def test_a_charge_whose_agent_has_left_is_finished_and_recorded(
    proxy: Proxy, upstreams: Upstreams
) -> None:
    run, start, gate = proxy.mint(), len(upstreams.journal), upstreams.gate("hold-charges")
    gate.touch()
    with run.start(*charges(run, one_key=True, calls=1, retries=0)) as agent:
        wait_for_one_more(upstreams, start)
        agent.kill()
    gate.unlink()
    assert states(proxy, run) == {"done": 1}
    (charge,) = told(run.execute(*charges(run, one_key=True, calls=1)).splitlines())
    assert charge["replayed"]
    assert len(upstreams.seen(start)) == 1


def test_a_streamed_answer_to_a_write_is_finished_when_its_agent_has_left(
    proxy: Proxy, upstreams: Upstreams
) -> None:
    """An MCP client leaves so after each call of a tool."""
    run = proxy.mint()
    with run.session() as session:
        answer = session.post(f"https://api.echo.example/events/{run.name}", stream=True)
        assert next(answer.iter_lines()) == b"data: first"
        answer.close()
    time.sleep(0.2)  # the proxy hears of it
    upstreams.gate(run.name).touch()
    assert states(proxy, run) == {"done": 1}
