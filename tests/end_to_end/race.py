"""Many calls at one moment, and what the record says of their money afterwards."""

import http.client
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Barrier
from typing import Any

from ledger import queries
from ledger.connection import open_reader
from policies import ceilings
from policies.ceilings import EMPTY, Count, Per
from policies.load import load
from proxy import control_client
from tests.end_to_end import origin
from tests.end_to_end.line import ANSWER_SECONDS, Line, Refused, Told
from tests.end_to_end.running import Proxy, Run
from tests.end_to_end.test_kill_workers import World

START_SECONDS = 60.0
SETTLED_SECONDS = 10.0
MICRO = 1_000_000

LOST = "lost"


@contextmanager
def two_engines(folder: Path, policy: str) -> Iterator[World]:
    """A proxy of two engines before an upstream of its own. It ends as it should, or is killed."""
    for name in ("origin", "proxy"):
        (folder / name).mkdir()
    with origin.serving(folder / "origin") as upstream:
        proxy = Proxy(folder / "proxy", policy, upstream.ca, upstream.routes, workers=2)
        proxy.start()
        try:
            yield World(proxy, upstream, proxy.mint())
            proxy.stop()
            assert proxy.broken() == []
        finally:
            if proxy.process is not None:
                proxy.end(signal.SIGKILL)


def minted(proxy: Proxy, like: Run, name: str, tenant: str = "", **grant: Any) -> Run:
    """A new run with the environment of another, without the second that a command takes."""
    body = {"run": name, "tenant": tenant, **grant}
    made = control_client.ask(proxy.folder / "data", "POST", "/v1/tokens", body)
    return with_token(proxy, like, name, made["tenant"], made["secret"])


def with_token(proxy: Proxy, like: Run, name: str, tenant: str, secret: str) -> Run:
    url = {"HTTPS_PROXY": f"http://{name}:{secret}@127.0.0.1:{proxy.port}"}
    return Run(name, tenant, {**like.environment, **url}, like.home)


Wish = tuple[Run, str]
"""Who asks for which path."""


def posted_at_once(
    wishes: Sequence[Wish], method: str = "POST", patience_seconds: float = ANSWER_SECONDS
) -> list[Told | None]:
    """Each on a connection of its own that is open before; every second one inside TLS. None for a
    connection that was lost, or that was closed since no answer came for so long."""
    with racing(wishes, method, patience_seconds) as (barrier, told):
        barrier.wait(START_SECONDS)
        return told()


@contextmanager
def racing(
    wishes: Sequence[Wish], method: str = "POST", patience_seconds: float = ANSWER_SECONDS
) -> Iterator[tuple[Barrier, Any]]:
    """They start when the barrier falls, which is one short; the second part gives the answers."""
    barrier = Barrier(len(wishes) + 1)

    def post(number: int) -> Told | None:
        run, path = wishes[number]
        line = None
        try:
            line = Line(run, tls=number % 2 == 1)
            barrier.wait(START_SECONDS)
            line.sock.settimeout(patience_seconds)
            return line.ask(method, path, path if method == "POST" else None)
        except Refused as refused:
            barrier.wait(START_SECONDS)
            return refused.told
        except (OSError, http.client.HTTPException):
            return None
        finally:
            if line is not None:
                line.close()

    with ThreadPoolExecutor(len(wishes)) as agents:
        flying = [agents.submit(post, number) for number in range(len(wishes))]
        yield barrier, lambda: [each.result(timeout=START_SECONDS) for each in flying]


def ends(answers: Sequence[Told | None]) -> list[str]:
    """How each ended: `allowed`, the reason of a refusal, or `lost`."""
    return [LOST if told is None else str(told.reason) for told in answers]


# The record


def rows(proxy: Proxy, *runs: Run) -> list[dict[str, Any]]:
    """The calls of these runs, once none of them is open."""
    names, deadline = {run.name for run in runs}, time.monotonic() + SETTLED_SECONDS
    while True:
        with closing(open_reader(proxy.folder / "data")) as reader:
            found = [row for row in queries.calls(reader, limit=10_000_000) if row["run"] in names]
        if all(row["state"] not in ("pending", "held") for row in found):
            return found
        assert time.monotonic() < deadline, "a call never ended"
        time.sleep(0.05)


def used(proxy: Proxy, per: Per, count: Count, tool: str, subject: str) -> int:
    """What the one ceiling of this kind holds for a subject, as it is on the disk."""
    policy = load((proxy.folder / "config" / "policy.yaml").read_text(), "policy.yaml")
    (ceiling,) = (
        one
        for one in policy.ceilings
        if (one.per, one.count, one.tools) == (per, count, (tool,)) and not one.shipped
    )
    with closing(open_reader(proxy.folder / "data")) as reader:
        found = reader.execute(
            "SELECT packed FROM window WHERE window = ? AND subject = ?", (ceiling.window, subject)
        ).fetchone()
    window = EMPTY if found is None else ceilings.unpack(ceiling, found[0])
    return sum(window.counts)


def charged_microusd(found: Sequence[dict[str, Any]]) -> int:
    """What the calls cost by their own rows."""
    return sum(round(row["cost_usd"] * MICRO) for row in found if row["cost_usd"] is not None)
