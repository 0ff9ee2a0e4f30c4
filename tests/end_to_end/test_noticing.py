"""What the detectors know of calls by the real program: two polls that bring the same are the same,
and differ where what is asked or told really does.
"""

import json
import time
from contextlib import closing
from typing import Any

import pytest

from ledger.connection import open_reader
from tests.end_to_end.running import SETTLE_SECONDS, Proxy, Run, StartProxy, Upstreams

ALLOWED = "allow_addresses: [127.0.0.0/8]"
POLICY = f"""\
version: 1
tools:
  echo: {{match: {{host: api.echo.example}}, effect: read, {ALLOWED}}}
"""
WHERE = ["https://api.echo.example", "http://api.echo.example"]


@pytest.fixture(scope="module")
def proxy(start_proxy: StartProxy) -> Proxy:
    return start_proxy(POLICY)


def seen(proxy: Proxy, run: Run, count: int) -> list[dict[str, Any]]:
    """What the record tells of each call of a run, once all have ended."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        with closing(open_reader(proxy.folder / "data")) as reader:
            rows = reader.execute(
                "SELECT call_id, type, seen FROM event WHERE call_id IN "
                "(SELECT call_id FROM event WHERE run = ? AND type = 'call.intent') ORDER BY seq",
                (run.name,),
            ).fetchall()
        ended = [row for row in rows if row[1] == "call.outcome"]
        if len(ended) == count or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    calls: dict[str, dict[str, Any]] = {}
    for call_id, _, told in rows:
        calls.setdefault(call_id, {}).update(json.loads(told or "{}"))
    assert len(calls) == count
    return list(calls.values())


@pytest.mark.parametrize("where", WHERE)
def test_two_polls_that_bring_the_same_are_the_same(proxy: Proxy, where: str) -> None:
    run = proxy.mint()
    with run.session() as session:
        for nonce in ("a", "b"):
            session.get(f"{where}/status?job=7&nonce={nonce}")
        session.get(f"{where}/status?job=8&nonce=c")
        session.head(f"{where}/status?job=7&nonce=d")
    first, second, other, headed = seen(proxy, run, 4)
    assert first["action"] == second["action"] != ""
    assert first["result"] == second["result"] != ""
    assert other["action"] not in (first["action"], headed["action"])
    assert other["result"] == first["result"]
    assert headed["action"] != first["action"]
    assert headed["result"] != first["result"]


@pytest.mark.parametrize("path", ["/orders", "/zipped/orders"])
@pytest.mark.parametrize("where", WHERE)
def test_an_answer_counts_without_its_clock_and_its_coding(
    proxy: Proxy, where: str, path: str
) -> None:
    """The upstream echoes what it is sent."""
    run = proxy.mint()
    with run.session() as session:
        for left, seconds in ((3, 0), (3, 5), (2, 10)):
            now = int(time.time()) + seconds
            told = session.post(f"{where}{path}", json={"left": left, "timestamp": now}).json()
            assert json.loads(told["body"]) == {"left": left, "timestamp": now}
    first, second, other = seen(proxy, run, 3)
    assert (first["action"], first["result"]) == (second["action"], second["result"])
    assert other["action"] != first["action"]
    assert other["result"] != first["result"]


@pytest.mark.parametrize("where", WHERE)
def test_a_runs_mark_is_kept_and_never_leaves(
    proxy: Proxy, upstreams: Upstreams, where: str
) -> None:
    run, start = proxy.mint(), len(upstreams.seen())
    marks = {"X-Pullcord-Progress": "41", "x_pullcord_progress": "42"}
    with run.session() as session:
        session.get(f"{where}/marked/{run.name}", headers=marks)
    assert [call["mark"] for call in seen(proxy, run, 1)] == [41]
    (arrived,) = (one for one in upstreams.seen(start) if one.path.endswith(run.name))
    assert [name for name in arrived.headers if "pullcord" in name.lower()] == []
