"""What the detectors know a call by: tests/cases/noticing.yaml, and what no table says well."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from policies.call import Dialect, Effect, Request, ToolCall, Traits
from policies.detectors import noticing, recipients
from policies.detectors.volatile import HASHED_BYTES_MAX
from policies.verdict import Reason

CASES = yaml.safe_load(Path("tests/cases/noticing.yaml").read_text("utf-8"))
NOW_US = 1_795_392_900_000_000  # 2026-11-23T00:15:00Z


def a_call(effect: Effect = Effect.READ, dialect: str = "http", **more: Any) -> ToolCall:
    return ToolCall("some.tool", effect, "op", b"", dialect=Dialect(dialect), **more)


def a_request(**told: Any) -> Request:
    headers = {"content-type": told.get("type", "application/json"), **told.get("headers", {})}
    body = told.get("body", "")
    return Request(
        told.get("method", "GET"),
        "https",
        told.get("host", "api.example"),
        443,
        told.get("target", "/x"),
        tuple(headers.items()),
        body.encode() if isinstance(body, str) else body,
    )


def traits(call: ToolCall | None = None, **told: Any) -> Traits:
    call = call or a_call(dialect=told.get("dialect", "http"))
    return noticing.traits(a_request(**told), call, NOW_US)


def said(row: dict[str, Any], which: str, status: int = 200) -> noticing.Told:
    return noticing.result(status, row[which].encode(), Dialect(row.get("dialect", "http")))


@pytest.mark.parametrize("row", CASES["asked"], ids=lambda row: row["case"])
def test_two_calls_that_ask_the_same_have_one_action(row: dict[str, Any]) -> None:
    first, second = traits(**row["a"]), traits(**{**row["a"], **row["b"]})
    assert (first.action == second.action) is row["same"]
    assert len(first.action) == 32


@pytest.mark.parametrize("row", CASES["told"], ids=lambda row: row["case"])
def test_two_answers_that_tell_the_same_have_one_result(row: dict[str, Any]) -> None:
    first, second = row.get("status", (200, 200))
    assert (said(row, "a", first).digest == said(row, "b", second).digest) is row["same"]


@pytest.mark.parametrize("row", CASES["failed"], ids=lambda row: row["case"])
def test_an_answer_can_tell_of_a_failure_itself(row: dict[str, Any]) -> None:
    assert said(row, "a").failed is row["failed"]


@pytest.mark.parametrize("row", CASES["recipients"], ids=lambda row: row["case"])
def test_a_write_tells_whom_it_is_for(row: dict[str, Any]) -> None:
    write, more = a_call(Effect.WRITE), {"type": row.get("type", "application/json")}
    found = [traits(write, body=row[each], **more).recipient for each in ("a", "b") if each in row]
    assert all((found_one == b"") is row.get("none", False) for found_one in found)
    assert row.get("none") or (found[0] == found[1]) is row["same"]


def test_a_read_is_for_nobody() -> None:
    assert traits(body='{"to":"a"}').recipient == b""


def test_a_recipient_is_of_one_host_and_tool() -> None:
    write, body = a_call(Effect.WRITE), '{"to":"a"}'
    here, there = traits(write, body=body), traits(write, body=body, host="other.example")
    assert here.recipient != there.recipient


def test_an_mcp_tools_arguments_tell_whom_it_is_for() -> None:
    body = (
        '{"jsonrpc":"2.0","id":1,"method":"tools/call",'
        '"params":{"name":"pay","arguments":{"recipient":"a"}}}'
    )
    write = a_call(Effect.WRITE, "mcp")
    assert traits(write, body=body).recipient
    assert traits(write, body=body) == traits(write, body=body.replace('"id":1', '"id":2'))


def test_no_padding_hides_whom_a_write_is_for() -> None:
    write = a_call(Effect.WRITE)
    plain = traits(write, body='{"to":"x"}').recipient
    members = "".join(f'"p{number}":1,' for number in range(5_000))
    nodes = "[" + ",".join(['{"n":1}'] * 5_000) + "]"
    for padding in (members, f'"pad":{nodes},', f'"pad":"{"x" * HASHED_BYTES_MAX}",'):
        assert traits(write, body="{" + padding + '"to":"x"}').recipient == plain


def test_what_stands_too_deep_or_in_too_long_a_body_is_for_nobody() -> None:
    write = a_call(Effect.WRITE)
    deep = '{"a":' * 50 + '{"to":"x"}' + "}" * 50
    assert traits(write, body=deep).recipient == b""
    pad = "x" * recipients.SCANNED_BYTES_MAX
    assert traits(write, body='{"pad":"' + pad + '","to":"x"}').recipient == b""


def test_a_made_up_field_of_the_query_changes_nothing() -> None:
    write, body = a_call(Effect.WRITE), '{"recipient":"x"}'
    plain = traits(write, body=body)
    assert traits(write, body=body, target="/x?to=y").recipient == plain.recipient != b""


def test_of_a_long_body_beginning_end_and_length_count() -> None:
    middle = 3 * HASHED_BYTES_MAX
    first = traits(body=b"a" + b"x" * middle + b"b").action
    assert first == traits(body=b"a" + b"x" * middle + b"b").action
    assert first != traits(body=b"c" + b"x" * middle + b"b").action
    assert first != traits(body=b"a" + b"x" * middle + b"c").action
    assert first != traits(body=b"a" + b"x" * (middle + 1) + b"b").action


SOCKET = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}


def test_a_header_of_websockets_opens_none() -> None:
    alone = {"sec-websocket-version": "13", "sec-websocket-key": "eA=="}
    for body in ('{"a":1}', '{"a":2}'):
        told = traits(body=body, method="POST", headers=alone)
        assert told == traits(body=body, method="POST")
    first, second = (traits(body=body, headers=alone).action for body in ("1", "2"))
    assert first != second


def test_a_socket_is_known_by_its_head() -> None:
    opened = traits(headers=SOCKET).action
    assert opened == traits(headers={**SOCKET, "sec-websocket-key": "eA=="}).action
    assert opened == traits(headers=SOCKET, body="never looked at").action
    assert opened != traits().action
    for other in ("/x?room=2", "/y"):
        assert opened != traits(headers=SOCKET, target=other).action
    assert opened != traits(headers=SOCKET, host="b.example").action
    assert opened == traits(headers=SOCKET, target="/x?nonce=7").action
    assert traits(headers=SOCKET, method="CONNECT").action == traits(method="CONNECT").action


def upload(target: str = "/x", **headers: str) -> bytes:
    request = Request(
        *("PUT", "https", "a.example", 443, target),
        tuple((name.replace("_", "-"), value) for name, value in headers.items()),
        streamed=True,
    )
    return noticing.traits(request, a_call(Effect.WRITE), NOW_US).action


def test_an_upload_is_known_by_its_head_and_length() -> None:
    assert upload() == upload(x_request_id="7", if_none_match="7", sec_websocket_version="13")
    assert upload(content_length="10") == upload(content_length="0010")
    parts = ("bytes 0-9/20", "bytes 10-19/20")
    others = [upload("/y"), upload("/x?partNumber=2"), upload(content_length="10")]
    others += [upload(content_range=part) for part in parts]
    assert len({upload(), *others}) == 6


def test_the_result_of_an_upload_is_of_its_body_too() -> None:
    first, second = b"a" * 32, b"b" * 32
    same = noticing.with_body(b"r", first)
    assert same == noticing.with_body(b"r", first)
    assert len({same, noticing.with_body(b"r", second), noticing.with_body(b"r", None)}) == 3


def test_what_could_not_be_looked_at_is_known_by_its_head_as_it_was_sent() -> None:
    calls: list[dict[str, Any]]
    calls = [{}, {"headers": {"x-a": "b"}}, {"target": "/y"}, {"method": "PUT"}, {"host": "b.c"}]
    first, same, *others = (noticing.unread(a_request(**told), a_call()) for told in calls)
    assert first == same
    assert len({first, *others}) == 4
    assert first != traits().action


def test_housekeeping_has_no_action() -> None:
    body = '{"jsonrpc":"2.0","id":1,"method":"ping"}'
    assert traits(a_call(dialect="mcp", own=True), body=body) == Traits()


def test_what_can_only_be_refused_has_none() -> None:
    assert traits(a_call(fault=Reason.MALFORMED_REQUEST), body="{") == Traits()


@pytest.mark.parametrize(
    "value, number",
    [("7", 7), ("9007199254740992", 2**53), ("9007199254740993", 0), ("0", 0), ("-1", 0),
     ("1.5", 0), ("", 0), ("seven", 0), ("\u0667", 0), ("1" * 400, 0)],
)  # fmt: skip
def test_a_run_says_how_far_it_is(value: str, number: int) -> None:
    assert traits(headers={"x-pullcord-progress": value}).mark == number
    model = a_call(Effect.MODEL)
    assert traits(model, headers={"x-pullcord-progress": value}).mark == number


def test_the_whole_length_counts_of_what_is_longer() -> None:
    beginning = b"x" * 100
    short = noticing.result(200, beginning, Dialect.HTTP)
    longer = noticing.result(200, beginning, Dialect.HTTP, longer_bytes=1_000)
    assert len({short.digest, longer.digest, said({"a": "x" * 101}, "a").digest}) == 3


def test_what_was_learned_is_left_out() -> None:
    out = [("rid",), ("meta", "zork")]
    answers = [b'{"n":1,"rid":"%d","meta":{"zork":"%d","x":2}}' % (n, n) for n in (1, 2)]
    first, second = (noticing.result(200, text, Dialect.HTTP, left_out=out) for text in answers)
    assert first == second
    other = noticing.result(200, b'{"n":2,"meta":{"x":2}}', Dialect.HTTP, left_out=out)
    assert first != other
    texts = [
        b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"{\\"n\\":1,'
        b'\\"rid\\":\\"%d\\"}"}],"structuredContent":{"n":1,"rid":"%d"}}}' % (n, n, n)
        for n in (1, 2)
    ]
    first, second = (noticing.result(200, text, Dialect.MCP, left_out=out) for text in texts)
    assert first == second
    assert noticing.result(200, texts[0], Dialect.MCP) != noticing.result(
        200, texts[1], Dialect.MCP
    )


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize(
    "body",
    [b"\xff\xfe", b"{", b"[[[[", b"null", b"[1]", b'{"params":1}', b'{"a":"\xed\xa0\x80"}',
     b'{"a":"\\ud800"}', b'{"result":{"content":[{"text":"x"},7]}}', b"data: x\n\n", b"data:\n\n",
     b"[" * 900 + b"]" * 900, b'{"a":' * 900 + b"1" + b"}" * 900,
     b'{"jsonrpc":"2.0","id":1,"result":' + b'{"a":' * 900 + b"1" + b"}" * 901,
     b"[" * 5_000 + b"]" * 5_000, b'{"id":' + b"9" * 400 + b"}", b"\0" * 10],
)  # fmt: skip
def test_no_body_makes_it_fail(dialect: Dialect, body: bytes) -> None:
    for effect in Effect:
        call = a_call(effect, dialect.value)
        noticing.traits(a_request(body=body, target="/x?%ff=%zz&=&&a"), call, NOW_US)
    noticing.result(200, body, dialect, left_out=[("a",)])
