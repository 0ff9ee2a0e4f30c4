"""`/v1/signals`, `/metrics`, `pullcord signals` and a line of `status`, by calls that were made."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ledger.states import CallState, ClaimAfter
from ledger.store import Outcome, Store
from policies.call import Request
from policies.verdict import Level, Pull, Scope
from proxy import pulling, screen, secret_keys
from proxy.cli.main import cli
from proxy.clock import SystemClock
from proxy.identity import Credentials
from proxy.live import Live
from tests.proxy.controlled import NOW_US, Controlled, controlled
from tests.proxy.test_metrics import Series, parsed, value

SECOND_US = 1_000_000


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Controlled]:
    monkeypatch.delenv("PULLCORD_CONTROL", raising=False)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    async with controlled(tmp_path) as made:
        yield made


async def read(running: Controlled, run: str, tenant: str = "acme", path: str = "/inbox") -> None:
    """A read that was let through and answered."""
    request = Request("GET", "https", "mail.example", 443, path)
    live = await running.gate.ask(request, Credentials(run, tenant), running)
    assert isinstance(live, Live)
    running.gate.live.pop(live.call_id)
    outcome = Outcome(
        live.call_id,
        running.clock.us,
        CallState.DONE,
        ClaimAfter.KEPT,
        200,
        cost_microusd=250_000,
        input_tokens=40,
    )
    await running.service.decider.settle(outcome, durable=True)


async def typed(*words: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, cli, words)


async def scraped(running: Controlled) -> Series:
    status, text = await running.at_socket("GET", "/metrics")
    assert status == 200
    return parsed(text)


# ---------------------------------------------------------------------------------- in JSON


async def test_signals_are_of_all_of_tenants_and_of_runs(running: Controlled) -> None:
    for run, tenant in (("r1", "acme"), ("r1", "acme"), ("r2", "acme"), ("r3", "umbrella")):
        await read(running, run, tenant)
    told = await running.asked("GET", "/v1/signals")
    assert told["fleet"]["minute"] == {
        "tool_calls": 4,
        "writes": 0,
        "model_calls": 0,
        "tokens": 160,
        "spend_usd": 1.0,
        "new_destinations": 2,
        "progress": told["fleet"]["minute"]["progress"],
        "progress_per_usd": told["fleet"]["minute"]["progress_per_usd"],
    }
    assert told["fleet"]["usd_per_hour"] == 12.0
    assert told["fleet"]["minute"]["progress"] > 0
    calls = {each["tenant"]: each["minute"]["tool_calls"] for each in told["tenants"]}
    assert calls == {"acme": 3, "umbrella": 1}
    assert [(each["run"], each["minute"]["tool_calls"]) for each in told["runs"]] == [
        ("r1", 2),
        ("r3", 1),
        ("r2", 1),
    ]


async def test_one_run_or_one_tenant_can_be_asked_for(running: Controlled) -> None:
    for run, tenant in (("r1", "acme"), ("r2", "acme"), ("r3", "umbrella")):
        await read(running, run, tenant)
    told = await running.asked("GET", "/v1/signals?run=r3")
    assert (told["fleet"], told["tenants"]) == (None, [])
    assert [each["run"] for each in told["runs"]] == ["r3"]
    told = await running.asked("GET", "/v1/signals?tenant=acme&top=1")
    assert [each["tenant"] for each in told["tenants"]] == ["acme"]
    assert [each["run"] for each in told["runs"]] == ["r2"]


@pytest.mark.parametrize(
    "query, status",
    [("run=nobody", 404), ("tenant=nobody", 404), ("top=0", 400), ("top=1001", 400), ("x=1", 400)],
)
async def test_what_is_not_known_and_what_cannot_be_asked(
    running: Controlled, query: str, status: int
) -> None:
    assert (await running.refused("GET", f"/v1/signals?{query}")).status == status


async def test_a_minute_and_five_pass(running: Controlled) -> None:
    await read(running, "r1")
    running.clock.us += 90 * SECOND_US
    told = (await running.asked("GET", "/v1/signals?run=r1"))["runs"][0]
    assert (told["minute"]["tool_calls"], told["five_minutes"]["tool_calls"]) == (0, 1)
    running.clock.us += 300 * SECOND_US
    assert (await running.asked("GET", "/v1/signals"))["runs"] == []


async def test_a_restart_makes_the_signals_again_from_the_record(tmp_path: Path) -> None:
    async with controlled(tmp_path) as before:
        for path in ("/a", "/b", "/b"):
            await read(before, "r1", path=path)
        told = await before.asked("GET", "/v1/signals")
    async with controlled(tmp_path) as after:
        await after.service.adopt(after.policy.good)  # as every start does
        again = await after.asked("GET", "/v1/signals")
    assert again == told
    assert again["runs"][0]["five_minutes"]["tool_calls"] == 3
    assert again["fleet"]["five_minutes"]["progress"] > 0


# ---------------------------------------------------------------------------------- the metrics


async def test_metrics_count_what_was_decided_and_how_it_ended(running: Controlled) -> None:
    await read(running, "r1")
    await running.called("r2")
    cord = Pull(Level.HALT, Scope.RUN, "r1", "loops", "ada", NOW_US)
    await pulling.pull(running.service, cord)
    with pytest.raises(AssertionError):
        await running.called("r1")
    found = await scraped(running)
    assert value(found, "calls_total", decision="allow", effect="read") == 2
    assert value(found, "calls_total", decision="refuse", effect="read") == 1
    assert value(found, "refusals_total", reason="halted") == 1
    assert value(found, "outcomes_total", state="done") == 1
    assert value(found, "calls_in_flight") == 1
    assert value(found, "cords_standing", level="halt") == 1
    assert value(found, "cords_standing", level="freeze") == 1
    assert value(found, "spend_usd_total") == 0.25
    assert value(found, "recent_tool_calls", tenant="acme", window="1m") == 1
    assert value(found, "incidents_open") == 0
    assert value(found, "ledger_ok") == 1
    assert value(found, "engines") == 1


async def test_metrics_are_told_while_the_ledger_fails(running: Controlled) -> None:
    await read(running, "r1")
    (running.data / "ledger.db").rename(running.data / "elsewhere.db")
    with pytest.raises(AssertionError):
        await running.called("r1")
    found = await scraped(running)
    assert (value(found, "ledger_ok"), value(found, "incidents_open")) == (0, None)
    assert value(found, "recent_tool_calls", tenant="acme", window="1m") == 1
    assert value(found, "calls_total", decision="allow", effect="read") == 1
    assert value(found, "calls_total", decision="refuse", effect="read") == 0  # in no record


async def test_the_port_tells_metrics_as_text_to_a_token_that_may_look(running: Controlled) -> None:
    assert (await running.at_port("GET", "/metrics"))[0] == 401
    secret = await running.enrolled("view")
    status, text, headers = await running.at_port("GET", "/metrics", secret)
    assert status == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert parsed(text)


# ---------------------------------------------------------------------------------- what people see


async def test_status_tells_the_rates(running: Controlled) -> None:
    for path in ("/a", "/b"):
        await read(running, "r1", path=path)
    told = (await screen.status_of(running.service))["signals"]
    assert (told["tool_calls_per_minute"], told["writes_per_minute"]) == (2, 0)
    assert (told["usd_per_hour"], told["progress_per_usd"]) == (6.0, told["progress"] / 0.5)
    shown = (await typed("status")).stdout
    assert "signals tool calls 2/min  writes 0/min  $6.00/h  progress " in shown
    assert shown.count("$") == 2  # no number twice: an hour's, and progress for each


async def test_the_command_shows_all_the_busiest_tenants_and_runs(running: Controlled) -> None:
    for run in ("r1", "r1", "r2"):
        await read(running, run)
    told = await typed("signals")
    lines = [line.split("  ")[0].strip() for line in told.stdout.splitlines()]
    assert lines[1:] == ["everything", "tenant acme", "run r1 (acme)", "run r2 (acme)"]
    rows = [json.loads(line) for line in (await typed("signals", "--json")).stdout.splitlines()]
    assert [row["subject"] for row in rows] == ["fleet", "tenant", "run", "run"]
    one = (await typed("signals", "--run", "r2", "--json")).stdout
    assert json.loads(one)["run"] == "r2"


async def test_the_command_says_when_nothing_goes_on(running: Controlled) -> None:
    told = await typed("signals")
    assert (told.exit_code, "no call ended in the last five minutes" in told.stderr) == (0, True)


async def test_the_command_ends_with_its_codes(running: Controlled) -> None:
    assert (await typed("signals", "--run", "nobody")).exit_code == 4
    assert (await typed("signals", "--run", "r1", "--tenant", "t")).exit_code == 2
    assert (await typed("signals", "--top", "0")).exit_code == 2


def test_without_a_proxy_there_are_no_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PULLCORD_CONTROL", raising=False)
    data = tmp_path / "data"
    Store.open(data, secret_keys.vault_key(data), SystemClock().now_us).close()
    told = CliRunner().invoke(cli, ["signals", "--data", str(data)])
    assert told.exit_code == 5
    assert "no proxy runs" in told.stderr
