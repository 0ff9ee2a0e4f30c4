"""What would undo the writes of an incident, as it is planned and shown."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proxy.credentials import FILE
from tests.proxy.controlled import Controlled
from tests.proxy.looked_at import Service, serving
from tests.proxy.undoable import incident, planned, states, typed, undoable, wrote


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path) as served:
        served.says(200, '{"id": "re_1"}')
        yield served


@pytest.fixture
async def running(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Controlled]:
    async with undoable(tmp_path, service, monkeypatch) as made:
        yield made


async def test_the_plan_has_every_write_in_reverse_and_why_some_cannot_be_undone(
    running: Controlled,
) -> None:
    await wrote(running, "c1")
    await wrote(running, "c2", "/v1/orders", answer={"id": 'or"1', "amount": 12.50})
    await wrote(running, "c3", host="tag.example")
    await wrote(running, "c4", host="mail.example")
    await wrote(running, "c5", host="wiki.example")
    await wrote(running, "c6", status=402)
    await wrote(running, "c7", status=None)
    await wrote(running, "c8", answer={"object": "charge"})
    await wrote(running, "other", run="r2")
    name = await incident(running)
    steps = await planned(name)
    assert list(steps) == ["c8", "c7", "c6", "c5", "c4", "c3", "c2", "c1"]
    assert [step["step"] for step in steps.values()] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert {call: (step["state"], step["reversibility"]) for call, step in steps.items()} == {
        "c1": ("ready", "compensable"),
        "c2": ("ready", "compensable"),
        "c3": ("unneeded", "reversible"),
        "c4": ("impossible", "irreversible"),
        "c5": ("impossible", "unknown"),
        "c6": ("declined", "compensable"),
        "c7": ("verify", "compensable"),
        "c8": ("blocked", "compensable"),
    }
    first = steps["c1"]["undo"]
    assert (first["tool"], first["method"], first["auth"]) == ("refunds", "POST", "ops")
    assert first["url"].endswith("/v1/refunds")
    assert first["body"] == "charge=ch_c1&metadata%5Bcall%5D=c1"
    assert json.loads(steps["c2"]["undo"]["body"]) == {
        "order": 'or"1', "amount": 12.5, "of": "run r1",
    }  # fmt: skip
    assert '"amount":12.5' in steps["c2"]["undo"]["body"]
    assert "{response.id} is not known: the response holds nothing there" in steps["c8"]["why"]
    assert steps["c7"]["next"] == "pullcord ledger resolve c7 --verify"
    assert "give the tool an `undo`" in steps["c5"]["why"]


async def test_people_read_it_and_what_to_type_next(running: Controlled) -> None:
    await wrote(running, "c1")
    await wrote(running, "c2", status=None)
    name = await incident(running)
    lines = (await typed(name)).stdout
    assert "1 can be undone, 1 VERIFY FIRST: it may not have been made" in lines
    assert "pullcord ledger resolve c2 --verify" in lines
    assert "charge=ch_c1" in lines
    assert lines.splitlines()[-1] == f"next: pullcord incident compensate {name} --do all"


async def test_what_an_agent_was_told_is_harmless_on_a_screen(running: Controlled) -> None:
    await wrote(running, "c1", "/v1/orders", answer={"id": "or_\u202e1", "amount": 1})
    await wrote(running, "c2", "/v1/orders", answer={"id": "or_\x1b[2J", "amount": 1})
    await wrote(running, "c3", "/v1/orders", answer={"id": "<b>&", "amount": 1})
    lines = (await typed(await incident(running))).stdout
    assert "\x1b" not in lines
    assert "\u202e" not in lines
    assert '{"order":"<b>&"' in lines


async def test_before_it_is_contained_the_plan_is_only_shown(running: Controlled) -> None:
    await wrote(running, "c1")
    name = await incident(running, halted=False)
    for words in ((), ("--plan",)):
        lines = (await typed(name, *words)).stdout
        assert "is not contained: what stands does not stop run r1" in lines
        assert "until it is stopped nothing is undone, and this plan may change" in lines
        assert "charge=ch_c1" in lines
        assert lines.splitlines()[-1] == "next: pullcord halt run r1"
    plan = json.loads((await typed(name, "--json")).stdout)
    assert "is not contained" in plan["uncontained"]
    for step in ("all", "1", "c1"):
        told = await typed(name, "--do", step, code=2)
        assert "is not contained" in told.stderr
        assert "pullcord halt run r1" in told.stderr
    refused = await running.refused("POST", "/v1/incidents/compensate", incident=name, call="c1")
    assert refused.status == 400
    await running.asked("POST", "/v1/pull", level="halt", scope="tenant", subject="acme")
    assert await states(name) == {"c1": "ready"}
    assert json.loads((await typed(name, "--json")).stdout)["uncontained"] is None


async def test_without_its_answer_or_its_credentials_a_write_is_not_undone(
    running: Controlled, service: Service
) -> None:
    await wrote(running, "c1")
    name = await incident(running)
    (running.data / FILE).unlink()
    step = (await planned(name))["c1"]
    assert step["state"] == "blocked"
    assert "write there, for you alone" in step["why"]
    running.clock.us += 700 * 1_000_000
    await running.service.decider.act(lambda store: store.reap())
    step = (await planned(name))["c1"]
    assert "its answer is kept no more, and nothing was traced" in step["why"]
    await typed(name, "--do", "c1", code=3)
    assert service.asked == []


async def test_an_answer_that_may_name_what_another_made_is_verified_first(
    running: Controlled,
) -> None:
    params = {"name": "contacts.add", "arguments": {"name": "Ann"}}
    body = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
    result = {"isError": True, "content": [], "structuredContent": {"id": 41}}
    answer = {"jsonrpc": "2.0", "id": 7, "result": result}
    await wrote(running, "c1", status=409, answer={"id": "ch_innocent"})
    await wrote(running, "c2", status=303, answer={"id": "ch_innocent"})
    await wrote(running, "c3", "/mcp", body=json.dumps(body), answer=answer)
    assert set((await states(await incident(running))).values()) == {"verify"}
