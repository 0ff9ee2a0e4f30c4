"""A stored answer under the id of who asks again."""

import json
import time

import pytest

from proxy.rpc_ids import EVENTS_MAX, under_id

JSON = (("Content-Type", "application/json"),)
EVENTS = (("content-type", "text/event-stream; charset=utf-8"),)

ANSWERS: dict[str, tuple[str | int, str, str]] = {
    "a number": (7, '{"jsonrpc":"2.0","id":1,"result":{}}', '{"jsonrpc":"2.0","id":7,"result":{}}'),
    "a text": (
        "b",
        '{"id":"a","jsonrpc":"2.0","result":1}',
        '{"id":"b","jsonrpc":"2.0","result":1}',
    ),
    "a text for a number": (
        "x",
        '{"jsonrpc":"2.0","id":1,"result":1}',
        '{"jsonrpc":"2.0","id":"x","result":1}',
    ),
    "a number for nothing": (
        3,
        '{"jsonrpc":"2.0","error":{"code":-32600},"id":null}',
        '{"jsonrpc":"2.0","error":{"code":-32600},"id":3}',
    ),
    "signs that JSON escapes": (
        'a"\ud800é',
        '{"jsonrpc":"2.0","id":1,"result":1}',
        '{"jsonrpc":"2.0","id":"a\\"\\ud800\\u00e9","result":1}',
    ),
    "all else as it came": (
        2,
        ' { "result" : {"id": 1, "n": 1.0, "t": "é\\/", "big": 123456789012345678901234567890},\n'
        ' "\\u0069d" : 1 ,"jsonrpc":"2.0"}\n',
        ' { "result" : {"id": 1, "n": 1.0, "t": "é\\/", "big": 123456789012345678901234567890},\n'
        ' "\\u0069d" : 2 ,"jsonrpc":"2.0"}\n',
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_id_is_replaced_and_all_else_stays(name: str) -> None:
    rpc_id, stored, told = ANSWERS[name]
    assert under_id(JSON, stored.encode(), rpc_id) == (JSON, told.encode())
    assert json.loads(told)["id"] == rpc_id


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"ok",
        b"[]",
        b"{}",
        b"{",
        b'{"id":1}',
        b'{"id":1,"result":1}',
        b'{"jsonrpc":"2.0","result":1}',
        b'{"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"id":2,"result":1}',
        b'{"jsonrpc":"2.0","id":1,"result":1',
        b'{"jsonrpc":"2.0","id":1,"result":1,}',
        b'{"jsonrpc":"2.0","id":1,"result":1} x',
        b'[{"jsonrpc":"2.0","id":1,"result":1}]',
        b'{"jsonrpc":"2.0","id":1,"result":' + b"[" * 100_000,
        b'{"jsonrpc":"2.0","id":1,"result":' + b"9" * 5000 + b"}",
        b'{"jsonrpc":"2.0","id":1,"result":1,%b"z":1}'
        % b"".join(b'"%d":1,' % n for n in range(30)),
        '{"jsonrpc":"2.0","id":1,"result":1}'.encode("utf-16"),
    ],
)
def test_what_is_not_plainly_one_response_stays_as_it_is(body: bytes) -> None:
    for headers in ((), JSON, EVENTS):
        assert under_id(headers, body, 9) == (headers, body)
    events = b"data: " + body + b"\n\n"
    assert under_id(EVENTS, events, 9) == (EVENTS, events)


@pytest.mark.parametrize(
    "headers",
    [
        (*JSON, ("Content-Encoding", "gzip")),
        (*EVENTS, ("content-encoding", "br")),
        (("content-type", "application/json; charset=utf-16"),),
        (("content-type", "application/json; charset=utf-8; charset=utf-7"),),
    ],
)
def test_what_is_no_plain_text_stays_as_it_is(headers: tuple[tuple[str, str], ...]) -> None:
    body = b'{"jsonrpc":"2.0","id":1,"result":1}'
    for sent in (body, b"data: " + body + b"\n\n"):
        assert under_id(headers, sent, 9) == (headers, sent)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_in_a_stream_the_response_has_it_and_nothing_else(end: str) -> None:
    stored = end.join((
        "\ufeffdata: {}",
        "",
        ": é",
        "id: 1",
        'data: {"jsonrpc":"2.0","method":"notifications/progress","params":{"id":1}}',
        "",
        'data:{"jsonrpc":"2.0","method":"sampling/createMessage","id":1}',
        "",
        "event: message",
        'data: {"jsonrpc":"2.0",',
        'data: "id": 1, "result":',
        "id: 1",
        'data: {"é": "id"}}',
        "",
        'data: {"jsonrpc":"2.0","id":1,"error":{}}',
    ))  # fmt: skip
    told = stored.replace('"id": 1, "result"', '"id": "x-9", "result"')
    told = told.replace('"id":1,"error"', '"id":"x-9","error"')
    assert under_id(EVENTS, stored.encode(), "x-9") == (EVENTS, told.encode())


def test_a_response_that_begins_the_stream_has_it() -> None:
    stored = b'\xef\xbb\xbfdata: {"jsonrpc":"2.0","id":1,"result":1}\n\n'
    assert under_id(EVENTS, stored, 2) == (EVENTS, stored.replace(b'"id":1', b'"id":2'))


def test_a_stream_of_too_many_events_stays_as_it_is() -> None:
    answer = b'data: {"jsonrpc":"2.0","id":1,"result":1}\n\n'
    for count, rpc_id in ((EVENTS_MAX - 2, b"2"), (EVENTS_MAX - 1, b"1")):
        stored = b"data: {}\n\n" * count + answer
        told = b"data: {}\n\n" * count + answer.replace(b"1,", rpc_id + b",")
        assert under_id(EVENTS, stored, 2) == (EVENTS, told)


def test_what_says_what_the_bytes_were_goes_with_them() -> None:
    headers = (*JSON, ("Content-Digest", "sha-256=:x:"), ("digest", "y"), ("Content-MD5", "z"))
    body = b'{"jsonrpc":"2.0","id":1,"result":1}'
    assert under_id(headers, body, 1) == (headers, body)
    assert under_id(headers, body, 2)[0] == JSON


@pytest.mark.parametrize(
    "body",
    [
        b'{"jsonrpc":"2.0","id":1,"result":[' + b"1," * 520_000 + b"1]}",
        b"data: {}\n\n" * 100_000,
        b"data:\n" * 170_000,
        b'data:{"id":{}}\n' * 70_000,
        b"\n" * 1_000_000,
    ],
)
def test_a_long_answer_keeps_others_waiting_for_a_moment(body: bytes) -> None:
    begun = time.process_time()
    for headers in (JSON, EVENTS):
        under_id(headers, body, 2)
    assert time.process_time() - begun < 2
