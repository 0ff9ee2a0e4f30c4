"""What is taken out of arguments and results, and what stays."""

import pytest

from policies.detectors import volatile

NOW_US = 1_795_392_900_000_000  # 2026-11-23T00:15:00Z

GONE = [
    b"2026-11-23T00:15:00Z", b"2026-11-23 00:15", b"2026-11-23T00:15:00.123456+01:00",
    b"00:15:59", b"23:15:59.25", b"1795392900", b"1795392900123", b"1795392900.25",
    b"1795392900123456789", b"3FA85F64-5717-4562-b3fc-2c963f66afa6", b"0123456789abcdef",
    b"DEADBEEF00000000", b"Mon, 23 Nov 2026 00:15:00",
]  # fmt: skip
STAYS = [
    b"2026-11-23", b"15:59", b"00:99:00", b"1295392900", b"179539290", b"17953929001",
    b"a1795392900", b"1795392900x", b"deadbeefdeadbeef", b"0123456789abcde", b"x0123456789abcdef",
    b"0123456789abcdefg", b"0" * 65, b"3fa85f64-5717-4562-b3fc-2c963f66afa6f", b"12026-11-23T00:15",
    b"42", b"1.5", b"hello", b"12.34.56.78", b"+49 30 1234567",
]  # fmt: skip


@pytest.mark.parametrize("form", GONE)
@pytest.mark.parametrize("around", [b"%s", b"at %s.", b'{"x": "%s"}', b'["%s","%s"]'])
def test_what_has_the_form_of_a_time_or_an_id_goes_from_results(form: bytes, around: bytes) -> None:
    text = around.replace(b"%s", form)
    assert volatile.of_result(text) == around.replace(b"%s", b"~")


@pytest.mark.parametrize("form", STAYS)
def test_all_else_stays(form: bytes) -> None:
    for text in (form, b'{"x": "%s"}' % form):
        assert volatile.of_result(text) == text


def test_of_arguments_only_the_time_of_the_call_goes() -> None:
    for form in GONE[3:]:
        assert volatile.of_arguments(form, NOW_US) == form
    near = b'{"a":"2026-11-23T00:15:59Z","b":"2026-11-23T01:14:30+01:00","c":"2026-11-23 00:14:01"}'
    assert volatile.of_arguments(near, NOW_US) == b'{"a":"~","b":"~","c":"~"}'
    far = b'{"a":"2026-11-23T00:18:00Z","b":"2026-11-24T00:15:00Z","c":"2026-11-23T00:15:00+01:00"}'
    assert volatile.of_arguments(far, NOW_US) == far
    odd = b'{"a":"2026-99-99T99:99:99Z","b":"0000-00-00T00:00:00Z"}'
    assert volatile.of_arguments(odd, NOW_US) == odd


@pytest.mark.parametrize(
    "member",
    [b'"nonce":"abc"', b'"Nonce" : "abc"', b'"requestId":12', b'"request-id":"a"',
     b'"ts":1795392899.5',
     b'"x-request-id":"a"', b'"X_Trace_Id":"a"', b'"idempotency_key":""', b'\\"nonce\\":\\"abc\\"'],
)  # fmt: skip
def test_members_that_are_named_so_go(member: bytes) -> None:
    text = b'{"a":1,%s,"b":2}'
    assert volatile.of_arguments(text % member, NOW_US).replace(b"\\", b"") == text % b"~"
    assert volatile.of_result(text % member).replace(b"\\", b"") == text % b"~"


@pytest.mark.parametrize(
    "value, goes",
    [
        (b"1795392900", True),
        (b"1795392901.123456", True),
        (b" 1795392900123", True),
        (b'"1795392900123456"', True),
        (b"1795392900123456789", True),
        (b'"2026-11-23T00:15:01Z"', True),
        (b"1795393100", False),
        (b'"2026-11-22T00:15:01Z"', False),
        (b'"1503435956.000247"', False),
        (b'"1795392901.000247"', False),
        (b"-1.5", False),
        (b'"now"', False),
    ],
)
@pytest.mark.parametrize("name", [b"ts", b"timestamp", b"X-Timestamp", b"currentTime"])
def test_under_the_name_of_a_time_only_the_time_of_the_call_goes(
    name: bytes, value: bytes, *, goes: bool
) -> None:
    """A message of Slack's is known by its time, and so is a row of a log."""
    text = b'{"a":1,"%s":%s}' % (name, value)
    assert volatile.of_arguments(text, NOW_US) == (b'{"a":1,~}' if goes else text)
    assert volatile.of_result(text) == b'{"a":1,~}'
    plain = value.strip(b' "')
    looks_like_an_id = b".123456" in plain  # a field has no quotes to tell it by
    assert volatile.is_field(name, plain, NOW_US) is (goes and not looks_like_an_id)


def test_members_of_other_names_stay() -> None:
    told = b'{"date":"1","duration":2,"seq":3}'
    assert volatile.of_arguments(told, NOW_US) == told
    assert volatile.of_result(told) == b"{~,~,~}"
    kept = b'{"nonces":"1","renonce":2,"done":3,"nonce":{"a":1},"ts":[1]}'
    assert volatile.of_result(kept) == kept


@pytest.mark.parametrize(
    "text",
    [b'"' * 60_000, b'"a' * 30_000, b"0" * 60_000, b"0-" * 30_000, b"0:" * 30_000, b"ab" * 30_000,
     b'"nonce":"' * 6_000, b"0000-00-00T" * 5_000, b"1795392900." * 5_000, b'\\"' * 30_000,
     b"00000000-0000-0000-" * 3_000, b" 0000 00:00:00" * 4_000, b'"nonce"' + b" " * 60_000],
)  # fmt: skip
def test_odd_texts_are_read_to_their_end(text: bytes) -> None:
    """Superlinear work would show here: by a factor of thousands."""
    assert isinstance(volatile.of_result(text), bytes)
    assert isinstance(volatile.of_arguments(text, NOW_US), bytes)
