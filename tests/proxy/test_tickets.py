"""A call that waits for a person, from the gate's side: what it is bound to, what ends its wait."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ledger.holds import HOLDS_PER_RUN_MAX
from ledger.records import Ask, Hold
from ledger.states import HoldState
from policies.call import Effect, Identity, Request, ToolCall
from policies.load import load
from proxy import tickets
from proxy.identity import Credentials
from proxy.live import Live
from proxy.refuse import Refusal
from proxy.tickets import arguments
from tests.proxy.controlled import Controlled, controlled

POLICY = """\
version: 1
tools:
  mail.send: {match: {host: mail.example, method: POST}, effect: write, hold: true}
"""
RUN = Credentials("r1", "acme")
TAGS = ("X-Run-Id", "X-Tenant-Id")


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Controlled]:
    monkeypatch.setattr(tickets, "HOLD_POLL_SECONDS", 0.01)
    async with controlled(tmp_path, POLICY) as made:
        yield made


def a_request(body: bytes = b"x", **rest: str) -> Request:
    headers = tuple((name.replace("_", "-"), value) for name, value in rest.items())
    return Request("POST", "https", "mail.example", 443, "/send?to=ann", headers, body)


class Asked:
    """One call on its way; `left` is whether its client has gone."""

    def __init__(
        self, running: Controlled, request: Request | None = None, who: Credentials = RUN
    ) -> None:
        self.left = False
        self.task = asyncio.ensure_future(
            running.gate.ask(request or a_request(), who, running, gone=lambda: self.left)
        )

    async def reason(self) -> str:
        """Why it was refused; `allowed` when it was not."""
        answer = await asyncio.wait_for(self.task, 10)
        if isinstance(answer, Refusal):
            told = dict(answer.headers)["pullcord-decision"]
            return told.partition("reason=")[2].partition(";")[0]
        return "allowed"


async def waiting(running: Controlled, count: int = 1) -> list[Hold]:
    async with asyncio.timeout(10):
        while True:
            await asyncio.sleep(0.01)
            found = await running.service.decider.act(lambda store: store.holds(running.clock.us))
            open_ones = [hold for hold in found if hold.state is HoldState.WAITING]
            if len(open_ones) == count:
                return open_ones


async def decide(running: Controlled, hold: Hold, to: HoldState = HoldState.APPROVED) -> None:
    await running.service.decider.act(
        lambda store: store.decide_hold(
            hold.ticket, to, actor="ann", reason="", at_us=running.clock.us
        )
    )


async def test_an_approved_call_is_let_through(running: Controlled) -> None:
    asked = Asked(running)
    (hold,) = await waiting(running)
    await decide(running, hold)
    assert await asked.reason() == "allowed"
    assert isinstance(asked.task.result(), Live)


async def test_a_rejected_call_is_refused(running: Controlled) -> None:
    asked = Asked(running)
    (hold,) = await waiting(running)
    await decide(running, hold, HoldState.REJECTED)
    assert await asked.reason() == "hold_rejected"


async def test_time_runs_out(running: Controlled) -> None:
    asked = Asked(running)
    (hold,) = await waiting(running)
    running.clock.us = hold.until_us
    assert await asked.reason() == "hold_expired"


async def test_a_client_that_left_waits_no_longer_and_its_ticket_does(running: Controlled) -> None:
    asked = Asked(running)
    (hold,) = await waiting(running)
    asked.left = True
    assert await asked.reason() == "not_sent"
    await decide(running, hold)
    again = Asked(running)
    assert await again.reason() == "allowed"


async def test_the_end_of_the_program(running: Controlled) -> None:
    asked = Asked(running)
    await waiting(running)
    running.gate.draining = True
    assert await asked.reason() == "shutting_down"


async def test_a_client_that_left_since_the_approval_was_used(running: Controlled) -> None:
    """The last look before the first byte; settled as not sent, the approval stands again."""
    asked = Asked(running)
    (hold,) = await waiting(running)
    await decide(running, hold)
    assert await asked.reason() == "allowed"
    live = asked.task.result()
    assert isinstance(live, Live)
    asked.left = True
    refused = running.gate.sent(live)
    assert refused is not None
    assert "reason=not_sent" in dict(refused.headers)["pullcord-decision"]
    await running.gate.settle(live, status=None, complete=False, error=live.stopped_by)
    assert await Asked(running).reason() == "allowed"


async def test_a_policy_that_holds_no_more_lets_it_pass(running: Controlled) -> None:
    asked = Asked(running)
    await waiting(running)
    await running.service.adopt(load(POLICY.replace(", hold: true", ""), "policy.yaml"))
    assert await asked.reason() == "allowed"


async def test_a_policy_under_which_it_is_another_tool_asks_anew(running: Controlled) -> None:
    asked = Asked(running)
    (hold,) = await waiting(running)
    await running.service.adopt(load(POLICY.replace("mail.send", "mail.other"), "policy.yaml"))
    other = next(each for each in await waiting(running, 2) if each.ticket != hold.ticket)
    assert (hold.tool, other.tool) == ("mail.send", "mail.other")
    await decide(running, other)
    assert await asked.reason() == "allowed"


async def test_a_run_that_has_too_many_tickets_is_told_so(running: Controlled) -> None:
    held = [Asked(running, a_request(b"%d" % number)) for number in range(HOLDS_PER_RUN_MAX)]
    await waiting(running, HOLDS_PER_RUN_MAX)
    assert await Asked(running, a_request(b"more")).reason() == "over_ceiling"
    for each in held:
        each.left = True
    assert {await each.reason() for each in held} == {"not_sent"}


async def test_one_ticket_has_room_for_so_many_calls(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tickets, "PARKED_PER_RUN_MAX", 2)
    held = [Asked(running) for _ in range(2)]
    (hold,) = await waiting(running)
    await asyncio.sleep(0)
    assert await Asked(running).reason() == "over_ceiling"
    held[1].left = True
    assert await held[1].reason() == "not_sent"
    third = Asked(running, a_request(b"another"))
    await decide(running, hold)
    assert await held[0].reason() == "allowed"
    monkeypatch.setattr(tickets, "PARKED_MAX", 1)
    await waiting(running)
    assert await Asked(running, a_request(b"more")).reason() == "over_ceiling"
    third.left = True
    assert await third.reason() == "not_sent"
    assert not running.gate._asking._parking._parked


@pytest.mark.parametrize(
    "limit, inside, outside",
    [
        ("PARKED_PER_TREE_MAX", Credentials("r1", "acme"), Credentials("r2", "acme")),
        ("PARKED_PER_TENANT_MAX", Credentials("r2", "acme"), Credentials("r1", "globex")),
        ("PARKED_MAX", Credentials("r1", "globex"), None),
    ],
)
async def test_no_tree_and_no_tenant_takes_all_the_places(
    running: Controlled,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    inside: Credentials,
    outside: Credentials | None,
) -> None:
    monkeypatch.setattr(tickets, limit, 1)
    held = [Asked(running)]
    await waiting(running)
    assert await Asked(running, a_request(b"more"), inside).reason() == "over_ceiling"
    if outside is not None:
        held.append(Asked(running, a_request(b"other"), outside))
        await waiting(running, 3)
        await asyncio.sleep(0.05)
        assert not held[1].task.done()
    for each in held:
        each.left = True
        assert await each.reason() == "not_sent"


def test_the_children_of_a_run_share_its_places() -> None:
    root, kid = Identity("r1", "acme"), Identity("kid", "acme", ("up", "r1"))
    other = Identity("r1", "globex")
    shared = tickets._places(root).keys() & tickets._places(kid).keys()
    assert shared == {(), ("tenant", "acme"), ("tree", "acme", "r1")}
    assert tickets._places(root).keys() & tickets._places(other).keys() == {()}


@pytest.mark.parametrize(
    "request_, url",
    [
        (a_request(), "https://mail.example/send?to=ann"),
        (replace(a_request(), port=8443), "https://mail.example:8443/send?to=ann"),
        (replace(a_request(), scheme="http", port=80), "http://mail.example/send?to=ann"),
        (replace(a_request(), host="::1"), "https://[::1]/send?to=ann"),
    ],
)
def test_the_person_sees_where_it_goes(request_: Request, url: str) -> None:
    assert arguments(request_, TAGS).url == url


def test_a_key_names_the_try_and_is_not_bound() -> None:
    policy, call = load(POLICY), ToolCall("mail.send", Effect.WRITE, "POST /send", b"f" * 32)

    def bound(request: Request) -> bytes:
        return tickets.bound_to(Ask("c", 0, Identity("r1", "acme"), request, call), policy)

    assert bound(a_request(idempotency_key="a")) == bound(a_request(idempotency_key="b"))
    assert bound(a_request(x_key="a")) != bound(a_request(x_key="b"))
