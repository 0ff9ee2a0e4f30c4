"""Agents that run away, before an upstream that answers all of them; and what was found of each.

The upstream stands in for a service, for both model APIs and for whoever is to be alerted.
"""

import itertools
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from ledger.connection import open_reader
from proxy import control_client
from tests.end_to_end import origin, race, running
from tests.end_to_end.line import Told, opened
from tests.end_to_end.origin import Arrived, Origin
from tests.end_to_end.running import Proxy, Run

LAUNCH = Path(__file__).with_name("launch_moved.py")
SECRET = "whsec-of-the-test-0123456789"
QUIET_SECONDS, ALERT_SECONDS = 10.0, 15.0
MICRO = 1_000_000
LOOP_PACE_SECONDS = 2.0
TRIED_AFTER = 5

# Each test has tools of its own: what goes wrong with three runs is taken for the tool's fault.
POLICY = """\
version: 1
detectors: {{{detectors}}}
tools:
{tools}
ceilings:
  - {{per: run, count: calls, unbounded: true}}
  - {{per: run, count: spend_usd, at_most: 5.00, then: halt}}
"""
AT = "allow_addresses: [127.0.0.0/8]"
PLACES = (
    *("loop", "lost", "again", "modes", "spike", "many", "pay", "bad"),
    *("forged", "nonce", "spread", "fast"),
)
MODELS = ("spiral", "burn", "human")
SHIPPED = "loop: enforce, spiral: enforce, burn: enforce, fan_out: enforce"
ENFORCED = f"{SHIPPED}, write_spike: enforce, first_seen_destination: enforce, release: enforce"


def policy(detectors: str = ENFORCED) -> str:
    host = f"host: {origin.HOST}"
    tools = [
        f'  {n}.model: {{match: {{{host}, path: "/{n}/v1/**"}}, model_api: {{}}, {AT}}}'.replace(
            "{}", "anthropic" if n == "burn" else "openai"
        )
        for n in MODELS
    ]
    tools += [f'  {name}.api: {{match: {{{host}, path: "/{name}/**"}}, {AT}}}' for name in PLACES]
    return POLICY.format(detectors=detectors, tools="\n".join(tools))


class Place(Origin):
    """Answers as the path says. What it was told of incidents is no effect of an agent's."""

    alerts: list[dict[str, Any]]

    def answer(self, request: Arrived) -> tuple[tuple[tuple[str, str], ...], bytes] | None:
        if request.path == "/alerts":
            self.alerts.append(json.loads(request.body))
            return (), b"{}"
        self.arrived.append(request)
        return (), json.dumps(self._told(request)).encode()

    def status_of(self, path: str) -> int:
        return 500 if "/broken/" in path else 200

    def _told(self, request: Arrived) -> dict[str, Any]:
        number = len(self.arrived)
        if request.path.endswith("/chat/completions"):
            usage = {"prompt_tokens": 25_000, "completion_tokens": 1_000, "total_tokens": 26_000}
            said = {"role": "assistant", "content": f"let me think once more, {number}"}
            choice = {"index": 0, "message": said, "finish_reason": "stop"}
            return {"id": f"c{number}", "model": "gpt-4.1", "choices": [choice], "usage": usage}
        if request.path.endswith("/messages"):
            told = {"id": f"m{number}", "type": "message", "role": "assistant"}
            usage = {"input_tokens": 100_000, "output_tokens": 10_000}
            words = [{"type": "text", "text": f"and again, {number}"}]
            return {**told, "model": "claude-opus-4-5", "content": words, "usage": usage}
        if "/status/" in request.path:
            now = datetime.now(UTC).isoformat()
            return {"status": "pending", "now": now, "request_id": uuid4().hex}
        return {"number": number, "ok": True}


def a_place(ca: Path) -> Place:
    made = Place(ca)
    made.alerts = []
    return made


class MovedProxy(Proxy):
    """Its clock is ahead by as much as a test has moved it."""

    ahead_seconds = 0.0

    def start(self) -> None:
        self.move(0)
        super().start()

    def move(self, seconds: float) -> None:
        self.ahead_seconds += seconds
        self._ahead.with_suffix(".new").write_text(str(self.ahead_seconds))
        self._ahead.with_suffix(".new").replace(self._ahead)

    @property
    def _ahead(self) -> Path:
        return self.folder / "clock"

    @property
    def _environment(self) -> dict[str, str]:
        return super()._environment | {"TEST_CLOCK": str(self._ahead)}


@dataclass(frozen=True, slots=True)
class Found:
    """What the record has of one tenant's runaway. Calls are those that were let through; of a
    tree, the runs that it started. `after` are those behind the row of the trip, under its cord."""

    alerted_at: int  # 0: never
    tripped_at: int
    seconds: float
    usd: float
    cords: tuple[str, ...]
    incidents: int
    after: int
    detectors: tuple[str, ...]

    def line(self, name: str, workers: int, alerts: int, refused: int) -> str:
        return (
            f"{name}, {workers} worker{'s' * (workers > 1)}: alert at {self.alerted_at or '-'}, "
            f"trip at {self.tripped_at} ({', '.join(self.detectors)}), {self.seconds:.1f} s, "
            f"${self.usd:.2f}; {', '.join(self.cords)}; {self.incidents} incident, "
            f"{alerts} alert delivered; {self.after} calls after it of {refused} tried"
        )


@dataclass(eq=False, slots=True)
class World:
    proxy: MovedProxy
    upstream: Place
    like: Run
    names: "itertools.count[int]" = field(default_factory=itertools.count)

    def mint(self, name: str, **grant: Any) -> Run:
        """A run of a tenant of its own, unless one is named."""
        run = f"{name}-{next(self.names)}"
        return race.minted(self.proxy, self.like, run, grant.pop("tenant", run), **grant)

    def ask(self, run: Run, method: str, path: str, body: Any = None, **headers: str) -> Told:
        """One call, and until it is settled."""
        text = None if body is None else json.dumps(body)
        if body is not None:
            headers["Content_Type"] = "application/json"
        with opened(run, tls=False) as line:
            told = line.ask(method, path, text, **headers)
        self.quiet()
        return told

    def ask_model(self, run: Run, place: str, say: str = "go on") -> Told:
        """One call of a model, as its SDK makes it."""
        messages = [{"role": "user", "content": say}]
        if place == "burn":
            body = {"model": "claude-opus-4-5", "max_tokens": 20_000, "messages": messages}
            return self.ask(run, "POST", "/burn/v1/messages", body)
        body = {"model": "gpt-4.1", "max_tokens": 1_000, "messages": messages}
        return self.ask(run, "POST", f"/{place}/v1/chat/completions", body)

    def spawn(self, parent: Run, name: str) -> Run | str:
        """A child of a run, by its own doing; or why it may not have one."""
        url = "http://pullcord.invalid/self/tokens"
        with parent.session() as session:
            told = session.post(url, json={"run": name}, timeout=30)
        if told.status_code != 201:
            return told.headers["pullcord-decision"].partition("reason=")[2].partition(";")[0]
        made = told.json()
        return race.with_token(self.proxy, parent, name, made["tenant"], made["token"])

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(open_reader(self.proxy.folder / "data")) as reader:
            return reader.execute(statement, values).fetchall()

    def quiet(self) -> None:
        """Until no call is open: a read is settled behind its answer."""
        deadline = time.monotonic() + QUIET_SECONDS
        while self.rows("SELECT 1 FROM open_call LIMIT 1"):
            assert time.monotonic() < deadline, "a call never ended"
            time.sleep(0.005)

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = control_client.ask(self.proxy.folder / "data", "GET", "/v1/status")
        return told

    def decider(self) -> int | None:
        """Its process; None while there is none."""
        try:
            pid: int = self.status()["pid"]
        except control_client.Unreachable:
            return None
        return pid

    def cords(self) -> set[str]:
        return {cord["rule"] for cord in self.status()["pulled"]}

    def incidents(self, tenant: str) -> list[str]:
        told = "SELECT DISTINCT incident FROM event WHERE tenant = ? AND type LIKE 'detector.%'"
        return [str(id_) for (id_,) in self.rows(told, tenant) if id_ is not None]

    def alerts(self, tenant: str, at_least: int = 1) -> list[dict[str, Any]]:
        """What was delivered of a tenant's incidents, once so many messages have come."""
        incidents, deadline = self.incidents(tenant), time.monotonic() + ALERT_SECONDS
        while True:
            found = [one for one in self.upstream.alerts if one["incident"] in incidents]
            if len(found) >= at_least or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    def found(self, tenant: str, tool: str = "") -> Found:
        """`tool`: only its calls are under the cord."""
        first = "SELECT min(seq), min(at_us) FROM event WHERE tenant = ? AND type = ? "
        (alert, _), (trip, trip_us), (_, call_us), (_, spawn_us) = (
            self.rows(first + more, tenant, kind)[0]
            for kind, more in (
                ("detector.alerted", ""),
                ("detector.tripped", "AND rule IS NOT NULL"),
                ("call.intent", ""),
                ("run.spawned", ""),
            )
        )
        counted = "call.intent" if spawn_us is None else "run.spawned"
        counts = "SELECT count(*) FROM event WHERE tenant = ? AND type = ? AND seq "
        incidents = self.incidents(tenant)
        pulled = "SELECT rule FROM event WHERE type = 'cord.pulled' AND incident = ? ORDER BY seq"
        actors = (
            "SELECT DISTINCT actor FROM event WHERE type = 'detector.tripped' AND tenant = ? "
            "AND rule IS NOT NULL"
        )
        spent = (
            "SELECT coalesce(sum(o.cost_microusd), 0) FROM event o JOIN event i USING (call_id) "
            "WHERE o.type = 'call.outcome' AND i.type = 'call.intent' AND i.tenant = ? "
            "AND o.seq < ?"
        )
        under, values = ("AND tool = ?", (tool,)) if tool else ("", ())
        begun_us = min(at_us for at_us in (call_us, spawn_us) if at_us is not None)
        return Found(
            self.rows(f"{counts} < ?", tenant, counted, alert or 0)[0][0],
            self.rows(f"{counts} < ?", tenant, counted, trip or 0)[0][0],
            ((trip_us or begun_us) - begun_us) / MICRO,
            self.rows(spent, tenant, trip or 0)[0][0] / MICRO,
            tuple(rule for id_ in incidents for (rule,) in self.rows(pulled, id_)),
            len(incidents),
            self.rows(f"{counts} > ? {under}", tenant, "call.intent", trip or 0, *values)[0][0],
            tuple(actor.removeprefix("detector:") for (actor,) in self.rows(actors, tenant)),
        )


@contextmanager
def runaways(folder: Path, workers: int, text: str) -> Iterator[World]:
    """A proxy that tells the upstream of its incidents. It must end by itself, unbroken."""
    for name in ("origin", "proxy"):
        (folder / name).mkdir()
    with (
        origin.serving_as(folder / "origin", a_place) as upstream,
        patch.object(running, "LAUNCH", LAUNCH),
    ):
        proxy = MovedProxy(folder / "proxy", text, upstream.ca, upstream.routes, workers=workers)
        receiver = f"http://127.0.0.1:{upstream.routes[f'{origin.HOST}:80']}/alerts"
        with (proxy.folder / "config" / "pullcord.yaml").open("a") as settings:
            settings.write(f"notify: [{{kind: webhook, url: '{receiver}', secret: hook}}]\n")
        data = proxy.folder / "data"
        data.mkdir(mode=0o700)
        (data / "credentials.yaml").touch(mode=0o600)
        (data / "credentials.yaml").write_text(f"hook: {{secret: {SECRET}}}\n")
        proxy.start()
        try:
            yield World(proxy, upstream, proxy.mint())
            proxy.stop()
            assert proxy.broken() == []
        finally:
            if proxy.process is not None:
                proxy.end(signal.SIGKILL)


def until_stopped(call: Callable[[int], Told], most: int) -> int:
    """How many calls passed; whatever comes then is refused for a while."""
    for number in range(most):
        if call(number).reason != "allowed":
            break
    else:
        raise AssertionError(f"{most} calls and no trip")
    again = {call(number + nth + 1).reason for nth in range(TRIED_AFTER)}
    assert again <= {"halted", "frozen"}
    return number


def loop(world: World, run: Run, place: str = "loop", **headers: str) -> Callable[[int], Told]:
    """The same read again, every two seconds."""

    def call(number: int) -> Told:
        world.proxy.move(LOOP_PACE_SECONDS)
        return world.ask(run, "GET", f"/{place}/status/7", **headers)

    return call
