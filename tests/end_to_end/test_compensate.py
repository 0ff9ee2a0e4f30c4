"""A runaway charges, is halted, and is undone through the real program: each refund once, whoever
types, and with SIGKILL in the middle. About 50 seconds.
"""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from tests.end_to_end import origin
from tests.end_to_end.line import asked
from tests.end_to_end.origin import Arrived, Origin
from tests.end_to_end.running import PULLCORD, Proxy, Run

POLICY = """\
version: 1
tools:
  charges:
    match: {host: api.origin.example, method: POST, path: /v1/charges}
    allow_addresses: [127.0.0.0/8]
    undo: {tool: refunds, form: {charge: "{response.id}"}, auth: ops}
  refunds:
    match: {host: localhost, port: PORT, method: POST, path: /v1/refunds}
    allow_addresses: [127.0.0.0/8, "::1"]
    verify: {tool: look, path: "/v1/refunds", query: {run: "{run}"}, auth: ops}
  look:
    match: {host: localhost, port: PORT, method: GET}
    effect: read
    allow_addresses: [127.0.0.0/8, "::1"]
"""
CHARGES = 8
DROPPED = 3  # of so many refunds the answer is lost on its way
WAIT_SECONDS = 20.0

pytestmark = pytest.mark.slow


class Books(Origin):
    """Takes charges and refunds, without any key of its own: every repeat counts."""

    def __init__(self, ca: Path) -> None:
        super().__init__(ca)
        self.charged: list[str] = []
        self.refunded: Counter[str] = Counter()
        self.loses: set[int] = set()
        self.entered = threading.Semaphore(0)
        self.writes = threading.Lock()
        self.gate.set()

    def answer(self, request: Arrived) -> tuple[tuple[tuple[str, str], ...], bytes] | None:
        with self.writes:
            self.arrived.append(request)
            if request.path == "/v1/charges":
                self.charged.append(f"ch_{len(self.charged) + 1}")
                return (), json.dumps({"id": self.charged[-1]}).encode()
            if request.method == "POST":
                (charge,) = parse_qs(request.body)["charge"]
                self.refunded[charge] += 1
        if request.method == "POST":
            self.entered.release()
            self.gate.wait(WAIT_SECONDS)
            if self.refunded.total() in self.loses:
                return None
        return (), json.dumps({"refunded": dict(self.refunded)}).encode()

    @property
    def balance(self) -> dict[str, int]:
        return {charge: 1 - self.refunded[charge] for charge in self.charged}


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    with origin.serving_as(tmp_path, Books) as served:
        yield served


@pytest.fixture
def workers() -> int:
    return 1


@pytest.fixture
def proxy(workers: int, books: Books, tmp_path: Path) -> Iterator[Proxy]:
    policy = POLICY.replace("PORT", str(books.routes[f"{origin.HOST}:443"]))
    folder = tmp_path / "proxy"
    folder.mkdir()
    made = Proxy(folder, policy, books.ca, books.routes, workers=workers)
    made.start()
    entries = folder / "data" / "credentials.yaml"
    entries.write_text("ops: {hosts: [localhost], bearer: opaque-operators-key}\n")
    entries.chmod(0o600)
    yield made
    books.gate.set()
    if made.process is not None:
        made.end(signal.SIGKILL)


def ran_away(proxy: Proxy) -> tuple[Run, str]:
    """A run that charged again and again, and the incident over it. It goes on."""
    run = proxy.mint()
    for number in range(CHARGES):
        told = asked(run, "POST", "/v1/charges", f"amount={number}", tls=True)
        assert told.status == 200
    opened = proxy.cli("incident", "open", "--run", run.name, "--reason", "it pays", "--json")
    return run, json.loads(opened)["id"]


def steps(proxy: Proxy, incident: str) -> list[dict[str, Any]]:
    """From the oldest to the newest; read from the ledger, whether a proxy runs or not."""
    plan = json.loads(proxy.cli("incident", "compensate", incident, "--plan", "--json"))
    found: list[dict[str, Any]] = plan["steps"]
    return found[::-1]


def states(proxy: Proxy, incident: str) -> list[str]:
    return [step["state"] for step in steps(proxy, incident)]


def test_the_books_balance_and_each_refund_was_made_once(proxy: Proxy, books: Books) -> None:
    run, incident = ran_away(proxy)
    do = ("incident", "compensate", incident, "--do", "all", "--reason", "agreed with acme")
    assert proxy.cli(*do, code=2) == ""
    assert books.refunded.total() == 0
    proxy.cli("halt", "run", run.name)
    proxy.cli("halt", "tenant", "acme")
    assert states(proxy, incident) == ["ready"] * CHARGES
    assert f"{CHARGES} writes of {CHARGES} undone" in proxy.cli(*do)
    assert books.balance == dict.fromkeys(books.charged, 0)
    refunds = [each for each in books.arrived if each.path == "/v1/refunds"]
    assert [each.body for each in refunds] == [f"charge={each}" for each in books.charged[::-1]]
    assert {each.headers["authorization"] for each in refunds} == {"Bearer opaque-operators-key"}
    assert len({each.headers["idempotency-key"] for each in refunds}) == CHARGES
    assert "0 writes of 0 undone" in proxy.cli(*do)
    assert states(proxy, incident) == ["compensated"] * CHARGES
    assert books.refunded.total() == CHARGES
    made = proxy.ledger("run:pullcord:undo")
    assert {(row["state"], row["tenant"], row["tool"]) for row in made} == {
        ("done", "acme", "refunds"),
    }
    assert f"run:{run.name}" not in proxy.cli("ledger", "check")
    assert "WRONG" not in proxy.cli("ledger", "check")
    proxy.cli("ledger", "verify")
    kept = b"".join(path.read_bytes() for path in (proxy.folder / "data").glob("*.db*"))
    assert b"opaque-operators-key" not in kept
    assert proxy.broken() == []


@pytest.mark.parametrize("workers", [1, 2], ids=["one worker", "two workers"])
def test_sigkill_in_the_middle_makes_no_refund_twice(proxy: Proxy, books: Books) -> None:
    run, incident = ran_away(proxy)
    proxy.cli("halt", "run", run.name)
    one = steps(proxy, incident)[-1]["call"]["id"]
    proxy.cli("incident", "compensate", incident, "--do", one)
    books.gate.clear()
    do = ("incident", "compensate", incident, "--do", "all")
    asking = threading.Thread(target=proxy.cli, args=do, kwargs={"code": 5}, daemon=True)
    while books.entered.acquire(blocking=False):
        pass
    asking.start()
    assert books.entered.acquire(timeout=WAIT_SECONDS), "no refund arrived"
    killed(proxy)
    asking.join(WAIT_SECONDS)
    books.gate.set()
    proxy.start()
    expected = ["ready"] * (CHARGES - 2) + ["unknown", "compensated"]
    assert states(proxy, incident) == expected
    told = proxy.cli(*do, code=3)
    assert f"{CHARGES - 2} writes of {CHARGES - 2} undone" in told
    assert states(proxy, incident) == ["compensated"] * (CHARGES - 2) + expected[-2:]
    assert books.refunded == Counter(books.charged)
    (lost,) = [step for step in steps(proxy, incident) if step["state"] == "unknown"]
    look = lost["next"].split()[1:]
    assert f'"{books.charged[-2]}": 1' in proxy.cli(*look)
    resolve = (*look[:3], "--as", "done", "--reason", "it is in the books")
    proxy.cli(*resolve)
    proxy.cli(*do)
    assert states(proxy, incident) == ["compensated"] * CHARGES
    assert books.refunded == Counter(books.charged)
    assert books.balance == dict.fromkeys(books.charged, 0)
    by = steps(proxy, incident)[0]["by"]["id"]  # whoever decides traces it, beside the engines
    request, response = json.loads(proxy.cli("ledger", "show", by, "--json"))["trace"]
    assert (f"charge={books.charged[0]}", response["start"]) == (request["text"], "200")


def killed(proxy: Proxy) -> None:
    """All of it at once: whoever decides, too."""
    status = json.loads(proxy.cli("status", "--json"))
    proxy.end(signal.SIGKILL)
    subprocess.run(["kill", "-KILL", str(status["pid"])], check=False, capture_output=True)
    time.sleep(0.1)


def test_an_answer_that_is_lost_leaves_it_unknown_for_all_who_type(
    proxy: Proxy, books: Books
) -> None:
    run, incident = ran_away(proxy)
    proxy.cli("halt", "run", run.name)
    books.loses = {DROPPED}
    typing = [
        threading.Thread(
            target=subprocess.run,
            args=(command(incident),),
            kwargs={"cwd": proxy.folder, "env": proxy._environment, "capture_output": True},
        )
        for _ in range(3)
    ]
    for each in typing:
        each.start()
    for each in typing:
        each.join()
    assert books.refunded == Counter(books.charged)
    found = states(proxy, incident)
    assert Counter(found) == {"compensated": CHARGES - 1, "unknown": 1}
    proxy.cli("incident", "compensate", incident, "--do", "all", code=3)
    assert books.refunded == Counter(books.charged)


def command(incident: str) -> list[str]:
    return [sys.executable, "-c", PULLCORD, "incident", "compensate", incident, "--do", "all"]
