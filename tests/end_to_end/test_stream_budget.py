"""Streams that outgrow what was estimated, through OpenAI's SDK: they are cut at their budget.

The upstream sends all its chunks at once, ten tokens each; gpt-5.1 takes 10 micro-dollars a token
of output. What each call settled is read from the log. About 20 seconds, most of them for the
SDK's imports.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.running import AGENTS, Proxy, Run, StartProxy, Upstreams

pytestmark = pytest.mark.slow

BUDGET_MICROUSD = 8_000
ESTIMATE_CHUNKS = 10  # the 100 tokens that each stream may be answered with, as it says
CHUNK_MICROUSD = 100
INPUT_MICROUSD_MAX = 100  # of each of these requests
POLICY = """\
version: 1
tools:
  openai:
    match: {host: api.openai.com}
    model_api: openai
    allow_addresses: [127.0.0.0/8]
ceilings:
  - {per: run, count: spend_usd, at_most: 0.008}
"""


@pytest.fixture(scope="module")
def proxy(start_proxy: StartProxy) -> Proxy:
    return start_proxy(POLICY)


@pytest.fixture(scope="module", params=[1, 2], ids=["1 worker", "2 workers"])
def workers(
    request: pytest.FixtureRequest,
    upstreams: Upstreams,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    """With two, what a stream may still spend is asked of another process."""
    folder: Path = tmp_path_factory.mktemp("proxy")
    made = Proxy(folder, POLICY, upstreams.ca, upstreams.routes, workers=request.param)
    made.start()
    yield made
    made.stop()
    assert made.broken() == []


def streamed(run: Run, streams: int, chunks: int, *words: str) -> list[dict[str, Any]]:
    agent = AGENTS / "stream_clients.py"
    told = run.execute(sys.executable, agent, str(streams), str(chunks), *words)
    return list(json.loads(told))


def settled_microusd(proxy: Proxy, run: Run, calls: int) -> list[int]:
    """What each call of a run came to, once all have ended."""
    proxy.calls(run, at_least=calls)
    lines = [json.loads(line) for line in proxy.log().splitlines() if line.startswith("{")]
    mine = [line for line in lines if line.get("run") == run.name]
    return [line["microusd"] for line in mine if line["event"] == "call.settled"]


def test_a_stream_of_ten_times_its_estimate_is_cut_within_one_chunk(workers: Proxy) -> None:
    """Nobody asks for its usage; what was seen of it counts."""
    run = workers.mint()
    told, refused = streamed(run, 1, ESTIMATE_CHUNKS * 10, "again")
    assert told["error"], "it was cut"
    (spent,) = settled_microusd(workers, run, 2)
    assert BUDGET_MICROUSD < spent <= BUDGET_MICROUSD + CHUNK_MICROUSD
    paid = told["words"] * CHUNK_MICROUSD
    assert BUDGET_MICROUSD - INPUT_MICROUSD_MAX - CHUNK_MICROUSD <= paid <= BUDGET_MICROUSD
    rows = [(row["state"], row["reason"]) for row in workers.calls(run, at_least=2)]
    assert rows == [("unknown", "over_ceiling"), ("refused", "over_ceiling")]
    assert refused["error"].startswith("RateLimitError"), refused


def test_streams_at_once_share_one_budget(workers: Proxy) -> None:
    """Each may come to one chunk more than was granted: the one at which it is cut."""
    run, streams = workers.mint(), 6
    told = streamed(run, streams, ESTIMATE_CHUNKS * 10, "usage")
    spent = settled_microusd(workers, run, streams)
    cut = [one for one in told if one["error"]]
    assert len(cut) == streams, "none fits"
    assert BUDGET_MICROUSD <= sum(spent) <= BUDGET_MICROUSD + streams * CHUNK_MICROUSD
    assert sum(one["words"] for one in told) * CHUNK_MICROUSD <= BUDGET_MICROUSD


def test_a_stream_that_fits_is_whole_and_its_usage_is_known_though_nobody_asked(
    proxy: Proxy,
) -> None:
    run = proxy.mint()
    (told,) = streamed(run, 1, ESTIMATE_CHUNKS * 5)
    assert told == {"words": ESTIMATE_CHUNKS * 5, "empty": 0, "error": ""}
    (row,) = proxy.calls(run)
    assert (row["state"], row["input_tokens"], row["output_tokens"]) == ("done", 8, 500)
    assert settled_microusd(proxy, run, 1) == [5_010]  # 8 x 1.25 + 500 x 10


def test_a_client_that_asks_for_usage_is_given_it(proxy: Proxy) -> None:
    (told,) = streamed(proxy.mint(), 1, ESTIMATE_CHUNKS, "usage")
    assert told == {"words": ESTIMATE_CHUNKS, "empty": 1, "error": ""}
