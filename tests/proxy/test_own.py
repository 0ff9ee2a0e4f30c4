"""The agent's own view: what it is told of itself, and the narrower tokens that it may make."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ledger.store import Grant, Store
from policies.call import Request
from policies.load import load
from policies.policy import Policy
from policies.verdict import Level, Pull, Reason, Scope
from proxy import operations, own, secret_keys
from proxy.decider import Decider
from proxy.gate import Gate
from proxy.identity import Credentials, Mode
from proxy.live import Live
from proxy.refuse import Refusal
from tests.proxy.controlled import NOW_US, FakeClock

POLICY = """\
version: 1
tools:
  mail.read: {match: {host: mail.example, method: GET}, effect: read, cost_usd: 0.1}
  mail.send: {match: {host: mail.example, method: POST}, effect: write}
ceilings:
  - {per: tree, count: spend_usd, at_most: 1.00, then: throttle}
  - {per: tree, count: spawned, at_most: 3, then: throttle}
  - {per: run, count: steps, at_most: 10, then: halt}
"""


class Running:
    """A decider and a gate, and short ways to call for a run."""

    def __init__(self, gate: Gate, decider: Decider, clock: FakeClock) -> None:
        self.gate = gate
        self.decider = decider
        self.clock = clock
        self.secrets: dict[str, str] = {}

    async def cut(self, calls: Iterable[Live], reason: str) -> None:
        """No call of these tests is cut."""

    async def minted(self, run: str, **rest: Any) -> None:
        grant = Grant(run, "acme", **rest)
        policy = self.decider.policy
        new = await self.decider.act(
            lambda store: operations.mint(store, grant, "ann", self.clock.us, policy)
        )
        self.secrets[run] = new.secret

    async def asked(
        self, run: str | None, method: str, path: str, body: Any = None, host: str = own.HOST
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON and headers of an answer of ours."""
        sent = body if isinstance(body, bytes) else b"" if body is None else _json(body)
        request = Request(method, "http", host, 80, path, (), sent)
        credentials = None if run is None else Credentials(run, self.secrets.get(run, "guess"))
        answer = await self.gate.ask(request, credentials, self)
        assert isinstance(answer, Refusal), "it was let through"
        headers = dict(answer.headers)
        told = json.loads(answer.body) if answer.body else None
        return answer.status, told, headers

    async def child(self, run: str, of: str, **rest: Any) -> tuple[int, Any, dict[str, str]]:
        told = await self.asked(of, "POST", "/self/tokens", {"run": run, **rest})
        if told[0] == 201:
            self.secrets[run] = told[1]["token"]
        return told

    async def reads(self, run: str) -> Reason | None:
        """Why a read of this run does not pass; None when it does."""
        request = Request("GET", "https", "mail.example", 443, "/inbox")
        answer = await self.gate.ask(request, Credentials(run, self.secrets[run]), self)
        return None if isinstance(answer, Live) else _reason(answer)

    async def writes(self, run: str) -> Reason | None:
        request = Request("POST", "https", "mail.example", 443, "/send", (), b"{}")
        answer = await self.gate.ask(request, Credentials(run, self.secrets[run]), self)
        return None if isinstance(answer, Live) else _reason(answer)


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()


def _reason(answer: Refusal) -> Reason:
    return Reason(json.loads(answer.body)["reason"])


@asynccontextmanager
async def started(tmp_path: Path, mode: Mode, policy: Policy) -> AsyncIterator[Running]:
    clock, data = FakeClock(), tmp_path / "data"
    store = Store.open(data, secret_keys.vault_key(data), clock.now_us)
    decider = Decider.start(store, policy)
    try:
        yield Running(Gate(decider, clock, mode), decider, clock)
    finally:
        await decider.stop()
        store.close()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with started(tmp_path, "token", load(POLICY)) as made:
        await made.minted("root", agent="biller", budget_microusd=800_000)
        yield made


# ---------------------------------------------------------------------------- a look at oneself


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/self", 200),
        ("HEAD", "/self", 200),
        ("GET", "/x", 404),
        ("POST", "/self", 405),
        ("GET", "/self/tokens", 405),
        ("PUT", "/self/steps", 405),
    ],
)
async def test_each_answer_says_a_reason_of_the_table(
    running: Running, method: str, path: str, status: int
) -> None:
    found, body, headers = await running.asked("root", method, path)
    said = headers["pullcord-decision"]
    expected = "allow; reason=allowed" if status == 200 else "refuse; reason=malformed_request"
    assert (found, said[: said.index("; call=")]) == (status, expected)
    assert (body is None) is (method == "HEAD")


@pytest.mark.parametrize("path", ["/self", "/x", "/self/tokens", "/self/steps"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_nobody_is_told_anything(running: Running, method: str, path: str) -> None:
    assert (await running.asked(None, method, path, {}))[0] == 407
    assert (await running.asked("stranger", method, path, {}))[0] == 407


async def test_a_run_sees_what_is_left_of_its_money(running: Running) -> None:
    await running.child("child", "root", budget_usd="0.50", read_only=True)
    assert await running.reads("child") is None
    _, told, _ = await running.asked("child", "GET", "/self")
    assert (told["read_only"], told["budget_left_usd"]) == (True, "0.40")
    money = {each["id"]: each for each in told["ceilings"] if each["unit"] == "usd"}
    assert (money["budget:child"]["left"], money["budget:root"]["left"]) == ("0.40", "0.70")
    left = sorted(each["left"] for each in money.values())
    assert left == ["0.40", "0.70", "0.90", "199.90"]
    assert money["budget:root"]["at_most"] == "0.80"


async def test_a_run_sees_each_window_that_can_refuse_it(running: Running) -> None:
    """A child is refused by its parent's window, too. What comes back with time says when."""
    await running.child("child", "root", budget_usd="0.50")
    assert await running.reads("child") is None
    await running.asked("root", "POST", "/self/steps", {"steps": 4})
    _, told, _ = await running.asked("child", "GET", "/self")
    entries = {(each["per"], each["of"], each["count"]): each for each in told["ceilings"]}
    assert len(entries) == len(told["ceilings"])
    steps = entries["run", "root", "steps"]
    assert {name: steps[name] for name in steps if name != "id"} == {
        "is": "at most 10 steps per run",
        "per": "run",
        "of": "root",
        "count": "steps",
        "tools": None,
        "then": "halt",
        "unit": "steps",
        "at_most": 10,
        "left": 6,
        "within_seconds": None,
        "reset_seconds": None,
    }
    assert entries["run", "child", "steps"]["left"] == 10
    assert entries["tree", "root", "spawned"]["left"] == 2
    assert entries["tenant", "acme", "calls"]["within_seconds"] == 60
    assert entries["tenant", "acme", "calls"]["reset_seconds"] >= 1
    assert entries["run", "root", "in_flight"]["reset_seconds"] is None


ALERTS = """\
version: 1
tools: {mail.read: {match: {host: mail.example}, cost_usd: 0.1}}
ceilings:
  - {per: run, count: spend_usd, at_most: 0.01, then: alert}
  - {per: run, count: spend_usd, at_most: 0.02, tool: mail.*}
  - {per: run, count: spend_usd, at_most: 3}
"""


async def test_what_is_left_of_money_is_what_any_call_may_spend(tmp_path: Path) -> None:
    """A ceiling that only tells refuses nothing, and one of few tools is not of all."""
    async with started(tmp_path, "token", load(ALERTS)) as running:
        await running.minted("root")
        _, told, _ = await running.asked("root", "GET", "/self")
        assert told["budget_left_usd"] == "3.00"
        of_mail = [each for each in told["ceilings"] if each["tools"]]
        assert [(each["tools"], each["left"]) for each in of_mail] == [(["mail.*"], "0.02")]


async def test_a_run_sees_the_cords_over_it(running: Running) -> None:
    freeze = Pull(Level.FREEZE, Scope.TENANT, "acme", "looks wrong", "ann", NOW_US)
    await running.decider.act(lambda store: store.pull(freeze))
    _, told, _ = await running.asked("root", "GET", "/self")
    assert (told["halted"], told["frozen"], told["throttled"]) == (False, True, False)
    assert told["pulled"] == [{"rule": "freeze:tenant:acme", "reason": "looks wrong"}]


# ---------------------------------------------------------------------------- tokens of children


async def test_a_run_mints_a_narrower_token_that_works_at_once(running: Running) -> None:
    status, told, headers = await running.child(
        "child", "root", tools=["mail.*"], budget_usd=0.25, expires_in=60, read_only=True
    )
    secret = told["token"]
    assert (status, headers["cache-control"]) == (201, "no-store")
    assert {name: told[name] for name in told if name not in ("token", "proxy", "expires")} == {
        "run": "child",
        "tenant": "acme",
        "parent": "root",
        "agent": "biller",
        "release": None,
        "tools": ["mail.*"],
        "read_only": True,
        "budget_usd": "0.25",
    }
    assert told["proxy"] == {"username": "child", "password": secret}
    assert told["expires"] == operations.timestamp(NOW_US + 60_000_000)
    assert (await running.reads("child"), await running.writes("child")) == (
        None,
        Reason.READ_ONLY,
    )
    running.clock.us += 61_000_000
    assert await running.reads("child") is Reason.TOKEN_EXPIRED


async def test_a_child_is_of_its_parents_agent(running: Running) -> None:
    """Another agent may be allowed other tools, and its ceilings count apart."""
    status, told, _ = await running.child("child", "root", agent="admin")
    assert (status, "of its parent's agent" in str(told)) == (409, True)
    await running.minted("theirs", parent="root", agent="admin")  # by an operator
    status, told, _ = await running.child("theirs", "root")
    assert (status, "has the agent admin, not biller" in str(told)) == (409, True)


async def test_the_record_says_which_run_minted(running: Running) -> None:
    await running.child("child", "root", budget_usd="0.25")
    tokens = await running.decider.act(lambda store: store.tokens())
    assert {token.identity.run: token.actor for token in tokens} == {
        "root": "ann",
        "child": "run:root",
    }


async def test_children_spend_from_the_roots_money(running: Running) -> None:
    for number in range(3):
        await running.child(f"c{number}", "root", budget_usd=100)
    passed = 0
    for _ in range(4):
        for number in range(3):
            passed += await running.reads(f"c{number}") is None
    assert passed == 8
    assert await running.reads("root") is Reason.OVER_CEILING


async def test_runs_that_are_started_at_once_hold_the_ceiling(running: Running) -> None:
    told = await asyncio.gather(*(running.child(f"c{n}", "root") for n in range(64)))
    assert sorted(each[0] for each in told) == [201] * 3 + [429] * 61
    over = next(each for each in told if each[0] == 429)
    assert over[1]["reason"] == "over_ceiling"
    assert over[2]["x-should-retry"] == "false"
    policy_item = over[2]["ratelimit-policy"]
    assert policy_item.endswith(';q=3;pullcord-unit="spawned"')


@pytest.mark.parametrize(
    "body, status, why",
    [
        (b"", 400, "your request is wrong: the body"),
        (b"[]", 400, "your request is wrong: the body"),
        (b"\xff", 400, "your request is wrong"),
        ({}, 400, "'run' is missing"),
        ({"run": "a b"}, 400, "A-Z a-z 0-9"),
        ({"run": "pullcord.x"}, 400, "pullcord's own"),
        ({"run": "c", "tenant": "other"}, 400, "unknown key 'tenant'; there are run, agent, tools"),
        ({"run": "c", "parent": "other"}, 400, "unknown key 'parent'"),
        ({"run": "c", "budget_usd": -1}, 400, "less than nothing"),
        ({"run": "c", "budget_usd": "0.0000001"}, 400, "more than 6 decimals"),
        ({"run": "c", "expires_in": 0}, 400, "expires_in"),
        ({"run": "c", "expires_in": "60"}, 400, "expires_in"),
        ({"run": "c", "tools": "mail.*"}, 400, "tools"),
        ({"run": "c", "tools": ["pullcord.canary"]}, 400, "pullcord's own"),
        ({"run": "c", "agent": "a\x00"}, 400, "control characters"),
        ({"run": "c", "tools": ["mail.[rs]*"]}, 409, "the only wildcard"),
        ({"run": "c", "tools": ["a"] * 65}, 400, "tools: List should have at most 64 items"),
        ({"run": "c", "tools": ["x" * 129]}, 409, "at most 128 characters"),
        ({str(n): 1 for n in range(5_000)}, 400, "wrong: 5001 mistakes; there are run, agent"),
        ({"run": "root"}, 409, "name a new run"),
        ({"run": "other"}, 409, "has the parent none, not root"),
        ({"run": "c", "tools": ["x" * 70_000]}, 413, "longer than 65536 bytes"),
    ],
    ids=lambda each: str(each)[:40],
)
async def test_a_mistake_is_told_and_changes_nothing(
    running: Running, body: Any, status: int, why: str
) -> None:
    await running.minted("other")
    found, told, headers = await running.asked("root", "POST", "/self/tokens", body)
    assert (found, why in told["error"]["message"]) == (status, True), told
    reason = Reason.BODY_TOO_LARGE if status == 413 else Reason.MALFORMED_REQUEST
    assert headers["pullcord-decision"].startswith(f"refuse; reason={reason}; call=")
    tokens = await running.decider.act(lambda store: store.tokens())
    assert {token.identity.run for token in tokens} == {"root", "other"}


async def test_a_run_with_few_tools_grants_no_more(running: Running) -> None:
    await running.minted("few", tools=("mail.read",))
    status, told, headers = await running.child("c", "few", tools=["mail.*"])
    assert (status, "only what its parent may" in told["error"]["message"]) == (403, True)
    assert headers["pullcord-decision"].startswith("refuse; reason=tool_not_allowed; call=")
    assert (await running.child("c", "few"))[1]["tools"] == ["mail.read"]


async def test_a_halted_run_starts_nothing(running: Running) -> None:
    halt = Pull(Level.HALT, Scope.RUN, "root", "loops", "ann", NOW_US)
    await running.decider.act(lambda store: store.pull(halt))
    for path, body in (("/self/tokens", {"run": "c"}), ("/self/steps", {})):
        status, told, _ = await running.asked("root", "POST", path, body)
        assert (status, told["reason"]) == (403, "halted")
    assert (await running.asked("root", "GET", "/self"))[1]["halted"] is True


@pytest.mark.parametrize(
    "path, body, status",
    [
        ("/self/tokens", b"no JSON", 400),
        ("/self/tokens", {"run": "a b"}, 400),
        ("/self/tokens", {"run": "root"}, 409),
        ("/self/steps", {"steps": 0}, 400),
        ("/self/steps", {"steps": 1}, 200),
    ],
)
async def test_an_act_is_a_call_for_the_ceilings_also_when_it_is_refused(
    tmp_path: Path, path: str, body: Any, status: int
) -> None:
    policy = load(POLICY + "  - {per: run, count: calls, at_most: 3, within: 1m}\n")
    async with started(tmp_path, "token", policy) as running:
        await running.minted("root")
        for _ in range(2):
            assert (await running.asked("root", "POST", path, body))[0] == status
        assert await running.reads("root") is None
        found, told, headers = await running.asked("root", "POST", path, body)
        assert (found, told["reason"], "retry-after" in headers) == (429, "over_ceiling", True)
        assert (await running.asked("root", "GET", "/self"))[0] == 200


async def test_a_flood_of_acts_stops_at_the_bound_that_is_shipped(tmp_path: Path) -> None:
    async with started(tmp_path, "token", load("version: 1\ntools: {}\n")) as running:
        await running.minted("root")
        told = await asyncio.gather(
            *(running.asked("root", "POST", "/self/tokens", {"run": "root"}) for _ in range(1_300))
        )
        assert Counter(each[0] for each in told) == {409: 1_200, 429: 100}


async def test_in_open_mode_there_are_no_tokens_to_mint(tmp_path: Path) -> None:
    async with started(tmp_path, "open", load(POLICY)) as running:
        running.secrets["r1"] = "acme"
        status, told, _ = await running.asked("r1", "POST", "/self/tokens", {"run": "c"})
        assert (status, "identity: open" in told["error"]["message"]) == (409, True)
        assert (await running.asked("r1", "POST", "/self/steps"))[0] == 200


# ---------------------------------------------------------------------------- steps


async def test_a_run_declares_steps_until_its_ceiling(running: Running) -> None:
    assert (await running.asked("root", "POST", "/self/steps", {"steps": 9}))[0] == 200
    status, told, _ = await running.asked("root", "POST", "/self/steps")
    assert (status, told) == (200, {"run": "root", "steps": 1})
    status, told, headers = await running.asked("root", "POST", "/self/steps", {})
    assert (status, told["reason"], headers["x-should-retry"]) == (429, "over_ceiling", "false")
    assert await running.reads("root") is Reason.HALTED


@pytest.mark.parametrize("body", [{"steps": 0}, {"steps": 1_001}, {"steps": "1"}, {"more": 1}])
async def test_steps_that_are_none_count_nothing(running: Running, body: Any) -> None:
    status, told, _ = await running.asked("root", "POST", "/self/steps", body)
    known = "unknown key 'more'; there are steps" in told["error"]["message"]
    assert (status, known) == (400, "more" in body)
    assert (await running.asked("root", "POST", "/self/steps", {"steps": 10}))[0] == 200
