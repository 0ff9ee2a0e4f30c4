"""The writes of an incident undone through the running proxy: what is made, and what is not made
again."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ledger.connection import open_reader
from policies.verdict import Scope
from proxy import authority, compensating, compensations, tracing
from proxy.cli.main import cli
from proxy.control_socket import bound
from proxy.tracer import Tracer
from proxy.tracing import Tracing
from tests.proxy.controlled import Controlled
from tests.proxy.looked_at import Service, serving
from tests.proxy.undoable import SECRET, incident, last, planned, states, typed, undoable, wrote


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


async def test_all_are_undone_the_newest_first_each_once(
    running: Controlled, service: Service
) -> None:
    for number in range(1, 4):
        await wrote(running, f"c{number}")
    name = await incident(running)
    told = await typed(name, "--do", "all", "--reason", "it was too much")
    assert "3 writes of 3 undone" in told.stdout
    assert [body.decode().split("&")[0] for body in service.bodies] == [
        *("charge=ch_c3", "charge=ch_c2", "charge=ch_c1"),
    ]
    keys = {headers["idempotency-key"] for _, _, headers in service.asked}
    assert len(keys) == 3
    assert {headers["authorization"] for _, _, headers in service.asked} == {f"Bearer {SECRET}"}
    again = await typed(name, "--do", "all")
    assert "0 writes of 0 undone" in again.stdout
    one = last(await typed(name, "--do", "2", "--json"))
    assert (one["state"], one["refused"]) == ("compensated", None)
    assert len(service.asked) == 3
    assert await states(name) == dict.fromkeys(("c3", "c2", "c1"), "compensated")
    with closing(open_reader(running.data)) as reader:
        found = reader.execute(
            "SELECT rule, run, tenant, incident, detail FROM event "
            "WHERE type = 'call.intent' AND actor IS NOT NULL ORDER BY seq"
        ).fetchall()
    assert found == [
        (f"undo:c{number}", "pullcord:undo", "acme", name, "it was too much")
        for number in (3, 2, 1)
    ]


async def test_what_it_sent_and_heard_is_in_the_trace_without_the_credential(
    running: Controlled, service: Service
) -> None:
    (running.data / "private").mkdir(mode=0o700, exist_ok=True)
    keeping = Tracer(running.data, 30, 2**30)
    server = await asyncio.start_unix_server(
        keeping.serve, sock=bound(running.data / tracing.SOCKET)
    )
    caught = Tracing(running.clock, "full", running.data / tracing.SOCKET)
    service.says(200, json.dumps({"id": "re_1", "note": f"{SECRET} has taken it back"}))
    await wrote(running, "c1")
    name = await incident(running)
    async with caught.going() as running.service.tracing:
        one = last(await typed(name, "--do", "c1", "--json"))
    await asyncio.sleep(0)
    server.close()
    await keeping.over()
    shown = await asyncio.to_thread(
        CliRunner().invoke, cli, ["ledger", "show", one["by"]["id"], "--json"]
    )
    request, response = json.loads(shown.stdout)["trace"]
    assert request["start"].startswith("POST https://localhost:")
    assert "charge=ch_c1" in request["text"]
    assert response["start"] == "200"
    assert "[redacted] has taken it back" in response["text"]
    assert SECRET not in shown.stdout
    assert SECRET.encode() not in b"".join(
        path.read_bytes() for path in running.data.glob("trace.db*")
    )


async def test_who_asks_at_the_same_time_makes_one_call(
    running: Controlled, service: Service
) -> None:
    await wrote(running, "c1")
    name = await incident(running)
    service.held.clear()
    asks = [
        asyncio.create_task(
            running.asked("POST", "/v1/incidents/compensate", incident=name, call="c1")
        )
        for _ in range(3)
    ]
    while not service.asked:
        await asyncio.sleep(0.01)
    early = await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
    assert {one.result()["state"] for one in early[0]} == {"pending"}
    service.held.set()
    told = await asyncio.gather(*asks)
    assert [one["state"] for one in told].count("compensated") == 1
    assert len(service.asked) == 1
    assert await states(name) == {"c1": "compensated"}


async def test_one_of_which_no_answer_comes_is_unknown_and_is_not_made_again(
    running: Controlled, service: Service
) -> None:
    await wrote(running, "c1")
    name = await incident(running)
    service.says(503, "{}")
    told = await typed(name, "--do", "all", code=3)
    assert "UNKNOWN: it may have been undone" in told.stdout
    service.says(200, "{}")
    await typed(name, "--do", "all", code=3)
    step = last(await typed(name, "--do", "c1", "--json", code=3))
    assert (step["state"], step["by"]["status"], len(service.asked)) == ("unknown", 503, 1)
    assert step["next"] == f"pullcord ledger show {step['by']['id']}"  # refunds has no `verify`
    by = step["by"]["id"]
    word = {"call": by, "state": "not_sent", "reason": "it is not there"}
    await running.asked("POST", "/v1/calls/resolve", **word)
    await typed(name, "--do", "all")
    assert len(service.asked) == 2
    assert len({headers["idempotency-key"] for _, _, headers in service.asked}) == 1
    assert await states(name) == {"c1": "compensated"}


@pytest.mark.parametrize("status", [400, 401, 403, 429])
async def test_one_that_the_tool_declines_may_be_tried_again(
    running: Controlled, service: Service, status: int
) -> None:
    await wrote(running, "c1")
    name = await incident(running)
    service.says(status, "{}")
    step = last(await typed(name, "--do", "all", "--json", code=3))
    assert (step["state"], step["by"]["status"]) == ("ready", status)
    assert f"the tool answered {status}" in step["why"]
    service.says(201, "{}")
    await typed(name, "--do", "all")
    assert len(service.asked) == 2
    assert len({headers["idempotency-key"] for _, _, headers in service.asked}) == 2


@pytest.mark.parametrize("status", [302, 409, 500])
async def test_what_says_nothing_certain_is_unknown(
    running: Controlled, service: Service, status: int
) -> None:
    await wrote(running, "c1")
    name = await incident(running)
    service.says(status, "{}", Location="https://localhost/elsewhere")
    await typed(name, "--do", "all", code=3)
    assert await states(name) == {"c1": "unknown"}
    assert len(service.asked) == 1


@pytest.mark.parametrize("is_error, state", [(False, "compensated"), (True, "unknown")])
async def test_a_tool_of_mcp_is_undone_by_another(
    running: Controlled, service: Service, is_error: bool, state: str
) -> None:
    params = {"name": "contacts.add", "arguments": {"name": "Ann"}}
    body = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
    answer = {"jsonrpc": "2.0", "id": 7, "result": {"structuredContent": {"id": 41}}}
    await wrote(running, "c1", "/mcp", body=json.dumps(body), answer=answer)
    name = await incident(running)
    result = {"isError": is_error, "content": [{"type": "text", "text": "?"}]}
    service.says(200, json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}))
    await typed(name, "--do", "all", code=3 if is_error else 0)
    assert json.loads(service.bodies[0])["params"] == {
        "name": "contacts.delete", "arguments": {"id": 41},
    }  # fmt: skip
    assert await states(name) == {"c1": state}


async def test_where_nothing_left_it_may_be_made_again(
    running: Controlled, service: Service
) -> None:
    await wrote(running, "c1")
    name = await incident(running)
    (running.data / authority.UPSTREAM_FILE).write_text("")
    await typed(name, "--do", "all", code=3)
    step = (await planned(name))["c1"]
    assert (step["state"], step["by"]["state"]) == ("ready", "not_sent")
    (running.data / authority.UPSTREAM_FILE).write_bytes(service.ca.read_bytes())
    await typed(name, "--do", "all")
    assert await states(name) == {"c1": "compensated"}


@pytest.mark.parametrize("level", ["halt", "freeze"])
@pytest.mark.parametrize("scope, subject", [("global", ""), ("tool", "refunds")])
async def test_what_stands_over_all_or_the_tool_stops_it(
    running: Controlled, service: Service, level: str, scope: str, subject: str
) -> None:
    await wrote(running, "c1")
    name = await incident(running)
    await running.asked("POST", "/v1/pull", level=level, scope=scope, subject=subject)
    told = await typed(name, "--do", "all", code=3)
    assert f"{level}:{scope}" in told.stdout
    assert service.asked == []


async def test_the_file_halt_stops_it(running: Controlled, service: Service) -> None:
    await wrote(running, "c1")
    name = await incident(running)
    (running.data / "HALT").touch()
    await typed(name, "--do", "all", code=3)
    assert service.asked == []


async def test_a_halt_of_all_cuts_one_that_is_on_its_way(
    running: Controlled, service: Service
) -> None:
    await wrote(running, "c1")
    name = await incident(running)
    service.held.clear()
    asks = asyncio.create_task(
        running.asked("POST", "/v1/incidents/compensate", incident=name, call="c1")
    )
    while not service.asked:
        await asyncio.sleep(0.01)
    await running.asked("POST", "/v1/pull", level="halt", scope="global")
    assert (await asks)["state"] == "unknown"


async def test_what_a_person_knows_stands_in_for_what_is_not_kept(
    running: Controlled, service: Service
) -> None:
    await wrote(running, "c1", status=None)
    name = await incident(running)
    await running.asked(
        "POST", "/v1/calls/resolve", call="c1", state="done", reason="it is in their list"
    )
    step = (await planned(name))["c1"]
    assert step["state"] == "blocked"
    assert "--do STEP --set response.id=VALUE" in step["why"]
    given = ("--set", "response.id=ch_9")
    await typed(name, "--do", "all", *given, code=2)
    await typed(name, "--do", "1", "--set", "response.other=x", code=3)
    assert service.asked == []
    await typed(name, "--do", "1", "--reason", "agreed", *given)
    assert service.bodies == [b"charge=ch_9&metadata%5Bcall%5D=c1"]
    (row,) = running.rows("call.intent")[-1:]
    assert row["detail"] == "agreed; response.id was given as ch_9"


async def test_what_is_known_is_not_given_otherwise(running: Controlled, service: Service) -> None:
    await wrote(running, "c1")
    name = await incident(running)
    for given in ("response.id=ch_other", "call=zzz", "made=yes"):
        await typed(name, "--do", "c1", "--set", given, code=3)
    assert service.asked == []


async def test_a_write_in_doubt_is_undone_by_a_persons_word_alone(
    running: Controlled, service: Service
) -> None:
    await wrote(running, "c1", status=409, answer={"id": "ch_innocent"})
    name = await incident(running)
    await typed(name, "--do", "all", code=3)
    await typed(name, "--do", "c1", "--set", "made=yes", code=3)
    assert service.asked == []
    await typed(name, "--do", "c1", "--set", "made=yes", "--set", "response.id=ch_1")
    assert service.bodies == [b"charge=ch_1&metadata%5Bcall%5D=c1"]


async def test_what_did_nothing_hides_no_write(
    running: Controlled, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compensations, "READY_MAX", 1)
    monkeypatch.setattr(compensations, "LISTED_MAX", 1)
    await wrote(running, "c1")
    await wrote(running, "c2")
    for number in range(4):
        await wrote(running, f"x{number}", status=422)
    name = await incident(running)
    told = await typed(name, "--do", "all", code=3)
    assert "1 write of 1 undone" in told.stdout
    assert f"older ones follow: pullcord incident compensate {name} --do all" in told.stdout
    await typed(name, "--do", "c1")
    assert [body.decode().split("&")[0] for body in service.bodies] == [
        *("charge=ch_c2", "charge=ch_c1"),
    ]
    assert "0 writes of 0 undone" in (await typed(name, "--do", "all")).stdout


async def test_only_writes_of_the_incident_are_undone(
    running: Controlled, service: Service
) -> None:
    await wrote(running, "c1")
    await wrote(running, "d1", run="r2")
    name = await incident(running)
    path, told = "/v1/incidents/compensate", {"incident": name}
    assert (await running.refused("POST", path, **told, call="d1")).status == 400
    assert (await running.refused("POST", path, **told, call="e1")).status == 404
    assert (await running.refused("POST", path, incident="0123", call="c1")).status == 404
    for words, code in ((("--do", "9"), 4), (("--do", "d1"), 4), (("--plan", "--do", "1"), 2)):
        await typed(name, *words, code=code)
    assert service.asked == []


async def test_what_undid_is_no_write_of_a_tenants_incident(
    running: Controlled, service: Service
) -> None:
    await wrote(running, "c1")
    now_us = running.clock.us + 1_000_000
    running.clock.us = now_us
    made, _ = await running.service.decider.act(
        lambda store: store.open_incident(
            Scope.TENANT, "acme", "acme", now_us - 3_600_000_000, "too much", "ann", now_us
        )
    )
    await running.asked("POST", "/v1/pull", level="freeze", scope="tenant", subject="acme")
    await typed(made.id, "--do", "all")
    assert await states(made.id) == {"c1": "compensated"}


async def test_a_policy_that_was_edited_meanwhile_sends_nothing(
    running: Controlled, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await wrote(running, "c1")
    name = await incident(running)
    looked = compensating._looked

    def edited(*words: Any) -> Any:
        found = looked(*words)
        running.service.decider.policy = replace(running.policy.good)
        return found

    monkeypatch.setattr(compensating, "_looked", edited)
    refused = await running.refused("POST", "/v1/incidents/compensate", incident=name, call="c1")
    assert (refused.status, service.asked) == (409, [])


async def test_without_a_proxy_it_says_to_start_one(running: Controlled, tmp_path: Path) -> None:
    await wrote(running, "c1")
    name = await incident(running)
    (running.data / "control.sock").rename(tmp_path / "away")
    told = await typed(name, "--do", "all", code=5)
    assert "pullcord up" in told.stderr
    assert await states(name) == {"c1": "ready"}
    (tmp_path / "away").rename(running.data / "control.sock")
