"""Budgets by the control API: looked at, corrected with a reason, in the record with a name."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ledger.records import Ask
from policies.call import Effect, Request, ToolCall, Worth
from policies.decide import decide
from proxy.identity import Credentials, claimant
from tests.proxy.controlled import POLICY, Controlled, controlled

CEILINGS = """\
ceilings:
  - {per: run, count: spend_usd, at_most: 1.00}
  - {per: tool, tool: "mail.*", count: spend_usd, at_most: 2, within: 1h, then: halt}
"""


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Controlled]:
    async with controlled(tmp_path, POLICY + CEILINGS) as made:
        yield made


async def spend(running: Controlled, run: str, microusd: int) -> str:
    """A read of mail that is worth so much; what it was told."""
    request = Request("GET", "https", "mail.example", 443, "/")
    worth = Worth(spend_microusd=microusd)
    call = ToolCall("mail.read", Effect.READ, "GET /", b"", host="mail.example", worth=worth)
    ask = Ask(
        f"{run}{microusd}",
        running.clock.us,
        claimant(Credentials(run, "acme"), "open"),
        request,
        call,
    )
    policy = running.service.decider.policy
    decision = await running.service.decider.act(lambda store: store.admit(ask, policy, decide))
    return str(decision.verdict.reason)


async def adjusted(running: Controlled, **body: Any) -> Any:
    return await running.asked("POST", "/v1/budgets/adjust", **body)


async def test_what_was_spent_is_shown_under_each_ceiling(running: Controlled) -> None:
    await spend(running, "r1", 300_000)
    told = await running.asked("GET", "/v1/budgets?scope=run&subject=r1")
    assert (told["scope"], told["subject"]) == ("run", "r1")
    only, shared = told["ceilings"]
    assert (only["used_usd"], only["left_usd"], only["at_most_usd"]) == ("0.30", "0.70", "1.00")
    assert (shared["per"], shared["of"], shared["used_usd"]) == ("tenant", "acme", "0.30")
    assert (only["is"], only["shipped"]) == ("at most 1.00 USD per run", False)
    (shipped,) = (await running.asked("GET", "/v1/budgets?scope=tenant&subject=acme"))["ceilings"]
    assert (shipped["shipped"], shipped["used_usd"]) == (True, "0.30")
    (tool,) = (await running.asked("GET", "/v1/budgets?scope=tool&subject=mail.read"))["ceilings"]
    assert (tool["then"], tool["within_seconds"], tool["tools"]) == ("halt", 3600, ["mail.*"])


async def test_a_correction_counts_at_once_and_names_who_and_why(running: Controlled) -> None:
    await spend(running, "r1", 1_000_000)
    assert await spend(running, "r1", 1) == "over_ceiling"
    told = await adjusted(running, scope="run", subject="r1", usd="-0.25", reason="never billed")
    (only,) = told["ceilings"]
    assert (told["usd"], only["used_before_usd"], only["used_usd"]) == ("-0.25", "1.00", "0.75")
    assert await spend(running, "r1", 250_000) == "allowed"
    (row,) = running.rows("budget.adjusted")
    assert (row["run"], row["actor"]) == ("r1", told["actor"])
    assert row["detail"] == "run r1 -0.25 USD: never billed"


@pytest.mark.parametrize(
    "body, status, why",
    [
        ({"scope": "run", "subject": "r1", "usd": 1, "reason": " "}, 400, "reason"),
        ({"scope": "run", "subject": "r1", "usd": 1, "reason": "x" * 1_001}, 400, "longer"),
        ({"scope": "run", "subject": "r1", "usd": 0, "reason": "x"}, 400, "nothing would change"),
        ({"scope": "run", "subject": "r1", "usd": "much", "reason": "x"}, 400, "no amount"),
        ({"scope": "run", "subject": "r1", "usd": 1}, 400, "reason: Field required"),
        ({"scope": "run", "subject": "", "usd": 1, "reason": "x"}, 400, "name the run"),
        ({"scope": "run", "subject": "a b", "usd": 1, "reason": "x"}, 400, "can be no run"),
        ({"scope": "run", "subject": "r9", "usd": 1, "reason": "x"}, 404, "there is no run r9"),
        ({"scope": "global", "subject": "x", "usd": 1, "reason": "x"}, 400, "takes no name"),
        ({"scope": "global", "usd": 1, "reason": "x"}, 404, "no ceiling bounds what everything"),
        ({"scope": "agent", "subject": "a", "usd": 1, "reason": "x"}, 404, "no ceiling bounds"),
        ({"scope": "agent", "subject": "a\x00", "usd": 1, "reason": "x"}, 400, "control"),
        ({"scope": "tool", "subject": "mail", "usd": 1, "reason": "x"}, 404, "has no tool"),
        ({"scope": "planet", "subject": "a", "usd": 1, "reason": "x"}, 400, "scope"),
    ],
    ids=lambda each: str(each)[:60],
)
async def test_what_cannot_be_corrected_is_told_and_leaves_no_row(
    running: Controlled, body: dict[str, Any], status: int, why: str
) -> None:
    await spend(running, "r1", 1)
    refused = await running.refused("POST", "/v1/budgets/adjust", **body)
    assert (refused.status, why in str(refused)) == (status, True), refused
    assert running.rows("budget.adjusted") == []


@pytest.mark.parametrize("role, status", [("view", 403), ("release", 403), ("admin", 200)])
async def test_a_correction_takes_an_admin_and_a_look_anybody(
    running: Controlled, role: str, status: int
) -> None:
    await spend(running, "r1", 1)
    secret = await running.enrolled(role)
    look = "/v1/budgets?scope=run&subject=r1"
    assert (await running.at_port("GET", look, secret))[0] == 200
    body = {"scope": "run", "subject": "r1", "usd": "0.5", "reason": "invoice"}
    assert (await running.at_port("POST", "/v1/budgets/adjust", secret, body=body))[0] == status
    rows = running.rows("budget.adjusted")
    assert [row["actor"] for row in rows] == (["operator:ada"] if status == 200 else [])


@pytest.mark.parametrize("role, status", [("release", 403), ("admin", 200)])
async def test_setting_a_budget_takes_an_admin_and_counts_at_once(
    running: Controlled, role: str, status: int
) -> None:
    await running.asked("POST", "/v1/tokens", run="r1", tenant="acme")
    secret = await running.enrolled(role)
    body = {"run": "r1", "usd": "0.5", "reason": "enough"}
    assert (await running.at_port("POST", "/v1/budgets/set", secret, body=body))[0] == status
    budgets = (await running.asked("GET", "/v1/budgets?scope=run&subject=r1"))["ceilings"]
    assert ("budget:r1" in [each["id"] for each in budgets]) == (status == 200)
    rows = running.rows("budget.adjusted")
    assert [row["actor"] for row in rows] == (["operator:ada"] if status == 200 else [])


async def test_a_resume_tells_how_a_ceiling_on_spend_gets_room(tmp_path: Path) -> None:
    ceiling = "ceilings: [{per: run, count: spend_usd, at_most: 1.00, then: halt}]\n"
    async with controlled(tmp_path, POLICY + ceiling) as running:
        await spend(running, "r1", 1_000_000)
        assert await spend(running, "r1", 1) == "over_ceiling"
        cord = {"level": "halt", "scope": "run", "subject": "r1", "reason": "looked"}
        full = (await running.asked("POST", "/v1/release", **cord))["full"]
        assert "is still full (1.00 USD of 1.00 USD)" in full
        assert "or pullcord budget adjust run r1 --usd -N --reason TEXT" in full
        assert await spend(running, "r1", 1) == "over_ceiling"
        await adjusted(running, scope="run", subject="r1", usd="-0.25", reason="never billed")
        full = (await running.asked("POST", "/v1/release", **cord))["full"]
        assert "has 0.25 USD left of 1.00 USD; what takes more pulls the cord again" in full
        assert await spend(running, "r1", 250_000) == "allowed"


async def test_a_budget_and_reading_only_come_with_a_token(running: Controlled) -> None:
    made = await running.asked(
        "POST", "/v1/tokens", run="r1", tenant="acme", budget_usd="2.50", read_only=True
    )
    assert (made["budget_usd"], made["read_only"]) == ("2.50", True)
    budgets = (await running.asked("GET", "/v1/budgets?scope=run&subject=r1"))["ceilings"]
    assert "budget:r1" in [each["id"] for each in budgets]
    refused = await running.refused("POST", "/v1/tokens", run="r2", budget_usd="0.0000001")
    assert (refused.status, "more than 6 decimals" in str(refused)) == (400, True)


async def test_a_child_over_its_ceiling_is_refused_and_the_cord_is_pulled(tmp_path: Path) -> None:
    ceiling = "ceilings: [{per: tree, count: spawned, at_most: 1, then: halt}]\n"
    async with controlled(tmp_path, POLICY + ceiling) as running:
        await running.asked("POST", "/v1/tokens", run="root", tenant="acme")
        await running.asked("POST", "/v1/tokens", run="one", parent="root")
        refused = await running.refused("POST", "/v1/tokens", run="two", parent="root")
        assert refused.status == 409
        assert "so two was not made" in str(refused)
        assert "halt:run:root is pulled now" in str(refused)
        assert [row["rule"] for row in running.rows("cord.pulled")] == ["halt:run:root"]
        assert len((await running.asked("GET", "/v1/tokens"))["tokens"]) == 2


async def test_status_tells_what_nobody_bounded(tmp_path: Path) -> None:
    ceilings = (
        "ceilings:\n"
        "  - {per: run, count: calls, unbounded: true}\n"
        "  - {per: tenant, count: spend_usd, at_most: 5}\n"
    )
    async with controlled(tmp_path, POLICY + ceilings) as running:
        state = await running.asked("GET", "/v1/status")
    assert state["bounds"] == {
        "unbounded": ["calls per run"],
        "shipped": [
            "at most 20.00 USD per run",
            "at most 64 calls in flight per run",
            "at most 1000 started runs per tree",
            "at most 12000 calls per tenant within 60 s",
            "at most 512 calls in flight per tenant",
        ],
    }
    assert state["prices"]["date"].startswith("20")
    assert state["prices"]["source"]
