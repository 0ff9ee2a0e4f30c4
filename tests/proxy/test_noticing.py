"""What the gate notices of calls for the detectors, without an engine."""

import gzip
import json
import zlib
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard
from structlog.testing import capture_logs

from ledger.connection import open_reader
from ledger.records import Ask
from policies.call import Request
from policies.detectors import noticing as reading
from policies.detectors.learning import DIFFERENT
from policies.detectors.volatile import HASHED_BYTES_MAX
from policies.load import load
from policies.match import identify
from proxy import noticing
from proxy.asking import Asking
from proxy.identity import Credentials
from proxy.live import Live
from tests.proxy.controlled import Controlled, controlled

POLICY = """\
version: 1
tools:
  mail.read: {match: {host: mail.example, method: GET}, effect: read}
  mail.send: {match: {host: mail.example, method: POST}}
  openai: {match: {host: api.openai.com}, model_api: openai}
"""
READ = Request("GET", "https", "mail.example", 443, "/inbox?unread=1&nonce=7")
WHO = Credentials("r1", "acme")
BODY = json.dumps([{"id": number, "subject": "hello"} for number in range(20)]).encode()

CODED = {
    "gzip": gzip.compress(BODY),
    "deflate": zlib.compress(BODY),
    "br": brotli.compress(BODY),
    "zstd": zstandard.compress(BODY),
    "": BODY,
    "identity": BODY,
}


async def answered(
    running: Controlled,
    *chunks: bytes,
    request: Request = READ,
    coding: str = "",
    status: int = 200,
    **how: Any,
) -> Live:
    """One call from asked to settled."""
    live = await running.gate.ask(request, WHO, running)
    assert isinstance(live, Live)
    assert running.gate.sent(live) is None
    running.gate.answering(live, "application/json", coding)
    for chunk in chunks:
        running.gate.body(live, chunk)
    await running.gate.settle(live, status=status, complete=True, **how)
    return live


NOTHING = {"action": "", "human": "", "mark": 0, "result": "", "failed": False}


async def seen(running: Controlled) -> list[dict[str, Any]]:
    """What the record's rows tell of each call: of its decision and of its outcome, together."""
    await running.service.decider.act(lambda store: None)
    with closing(open_reader(running.data)) as reader:
        rows = reader.execute(
            "SELECT call_id, seen FROM event "
            "WHERE type IN ('call.intent', 'call.outcome') ORDER BY seq"
        ).fetchall()
    calls: dict[str, dict[str, Any]] = {}
    for call_id, told in rows:
        calls.setdefault(call_id, dict(NOTHING)).update(json.loads(told or "{}"))
    return list(calls.values())


async def results(running: Controlled) -> list[str]:
    return [call["result"] for call in await seen(running)]


async def test_two_polls_that_bring_the_same_are_the_same(tmp_path: Path) -> None:
    async with controlled(tmp_path, POLICY) as running:
        for number in range(2):
            polled = replace(READ, target=f"/inbox?unread=1&nonce={number}")
            await answered(running, b'{"new":0,"now":%d}' % number, request=polled)
        await answered(running, b'{"new":1,"now":9}')
        await answered(running, b'{"new":1,"now":9}', request=replace(READ, target="/inbox"))
        first, second, third, fourth = await seen(running)
        assert first["action"] == second["action"] == third["action"] != ""
        assert first["result"] == second["result"] != third["result"] == fourth["result"]
        assert fourth["action"] != third["action"]
        assert len(first["result"]) == 16


async def test_an_answer_is_the_same_in_any_coding_and_in_any_pieces(tmp_path: Path) -> None:
    async with controlled(tmp_path, POLICY) as running:
        for coding, body in CODED.items():
            await answered(running, body[:7], body[7:], coding=coding)
        assert len(set(await results(running))) == 1


async def test_what_cannot_be_decoded_counts_as_it_came(tmp_path: Path) -> None:
    async with controlled(tmp_path, POLICY) as running:
        await answered(running, b"one", coding="rot13")
        await answered(running, b"one", coding="gzip")
        await answered(running, b"one")
        await answered(running, b"two", coding="rot13")
        first, second, third, other = await results(running)
        assert first == second == third != other


async def test_no_more_than_the_beginning_is_held_and_a_bomb_is_not_unpacked(
    tmp_path: Path,
) -> None:
    async with controlled(tmp_path, POLICY) as running:
        live = await running.gate.ask(READ, WHO, running)
        assert isinstance(live, Live)
        running.gate.answering(live, "text/plain", "")
        for _ in range(100):
            running.gate.body(live, b"x" * 10_000)
        assert live.beginning is not None
        assert len(live.beginning.body) == HASHED_BYTES_MAX
        await running.gate.settle(live, status=200, complete=True)
        assert live.beginning is None
        await answered(running, b"x" * 1_000_000)
        await answered(running, b"x" * 1_000_001)
        await answered(running, gzip.compress(bytes(50_000_000)), coding="gzip")
        first, second, longer, _ = await results(running)
        assert first == second != longer


async def test_a_long_answer_to_a_write_is_known_by_its_beginning(tmp_path: Path) -> None:
    async with controlled(tmp_path, POLICY) as running:
        for number, first in enumerate([b"a", b"a", b"b"]):
            write = Request("POST", "https", "mail.example", 443, "/x", body=b"%d" % number)
            await answered(running, first, bytes(2**20), b"end", request=write)
        one, two, other = await results(running)
        assert one == two != other


async def test_an_answer_that_is_not_seen_before_it_flows_is_like_no_other(tmp_path: Path) -> None:
    async with controlled(tmp_path, POLICY) as running:
        for number in range(2):
            write = Request("POST", "https", "mail.example", 443, "/x", body=b"%d" % number)
            await answered(running, request=write, ended=False)
        first, second = await results(running)
        assert first != second


async def test_nothing_is_told_of_what_no_answer_came_to_and_of_a_models(tmp_path: Path) -> None:
    chat = Request(
        *("POST", "https", "api.openai.com", 443, "/v1/chat/completions"),
        (("content-type", "application/json"), ("x-pullcord-progress", "3")),
        b'{"model":"gpt-5.1","messages":[{"role":"user","content":"hi"}]}',
    )
    async with controlled(tmp_path, POLICY) as running:
        live = await running.gate.ask(READ, WHO, running)
        assert isinstance(live, Live)
        await running.gate.settle(live, status=None, complete=False)
        await answered(running, b'{"id":"x"}', request=chat)
        unanswered, model = await seen(running)
        assert unanswered["result"] == model["result"] == model["action"] == ""
        assert model["human"] != ""
        assert model["mark"] == 3


async def test_an_error_inside_an_answer_is_recorded(tmp_path: Path) -> None:
    policy = POLICY + "  crm: {match: {host: crm.example, mcp_tool: '*'}, effect: read}\n"
    asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "find"}}
    request = Request(
        *("POST", "https", "crm.example", 443, "/mcp"),
        (("content-type", "application/json"),),
        json.dumps(asked).encode(),
    )
    async with controlled(tmp_path, policy) as running:
        for failed in (True, False):
            told = {"jsonrpc": "2.0", "id": 1, "result": {"content": [], "isError": failed}}
            await answered(running, json.dumps(told).encode(), request=request)
        assert [call["failed"] for call in await seen(running)] == [True, False]


async def test_a_member_that_only_changes_by_itself_is_learned(tmp_path: Path) -> None:
    async with controlled(tmp_path, POLICY) as running:
        for number in range(DIFFERENT + 4):
            word = f"kx{'ghjkmnpqrs'[number]}{number}zz"
            await answered(running, json.dumps({"new": 0, "zork": word}).encode())
        told = await results(running)
        assert len(set(told[: DIFFERENT + 1])) == DIFFERENT + 1
        assert len(set(told[DIFFERENT + 1 :])) == 1


async def test_a_failure_to_notice_is_logged_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_args: Any, **_more: Any) -> Any:
        raise RecursionError("injected")

    async with controlled(tmp_path, POLICY) as running:
        monkeypatch.setattr(reading, "traits", failing)
        monkeypatch.setattr(reading, "result", failing)
        with capture_logs() as lines:
            for _ in range(2):
                await answered(running, b"x")
        events = [line["event"] for line in lines if "noticed" in line["event"]]
        assert events == ["call.not_noticed", "answer.not_noticed"] * 2
        first, second = await seen(running)
        assert first["action"] == second["action"] != ""
        assert first["result"] == second["result"] != ""


async def test_a_mark_that_is_no_number_is_told_to_whoever_looks_closely(tmp_path: Path) -> None:
    marked = replace(READ, headers=(("x-pullcord-progress", "half"),))
    async with controlled(tmp_path, POLICY) as running:
        with capture_logs() as lines:
            await answered(running, request=marked)
        told = [line for line in lines if line["event"] == "progress.unread"]
        assert [line["log_level"] for line in told] == ["debug"]
        assert (await seen(running))[0]["mark"] == 0


async def test_a_call_is_known_by_the_tool_that_a_new_policy_takes_it_for(tmp_path: Path) -> None:
    before = load(POLICY.replace("mail.read", "mail.old"), "policy.yaml")
    async with controlled(tmp_path, POLICY) as running:
        old = Ask("c1", 1, None, READ, identify(before, READ))
        asking = Asking(running.service.decider, running.clock, {})
        known, _ = asking._current(old, before)
        assert known.call.tool == "mail.read"
        assert known.traits == noticing.traits(READ, known.call, "c1", 1)
        assert known.traits.action != noticing.traits(READ, old.call, "c1", 1).action


async def test_an_upload_is_known_by_its_head_and_tells_in_its_result_what_went_by(
    tmp_path: Path,
) -> None:
    policy = POLICY + "  put: {match: {host: put.example}, stream: true, idempotency: "
    policy += "{missing: 'off', same_body: allow}}\n"
    upload = Request("PUT", "https", "put.example", 443, "/x", streamed=True)
    async with controlled(tmp_path, policy) as running:
        for nonce, content in enumerate([b"a" * 32, b"a" * 32, b"b" * 32]):
            request = replace(upload, headers=(("sec-websocket-version", str(nonce)),))
            live = await running.gate.ask(request, WHO, running)
            assert isinstance(live, Live), live
            assert running.gate.sent(live) is None
            live.body_digest = content
            running.gate.answering(live, "", "")
            await running.gate.settle(live, status=200, complete=True)
        one, two, other = await seen(running)
        assert one["action"] == two["action"] == other["action"] != ""
        assert one["result"] == two["result"] != other["result"]
