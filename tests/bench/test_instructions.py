"""What a count is compared with, and the answers that the load takes for right."""

from itertools import count
from pathlib import Path

import pytest

from tests.bench import instructions
from tests.bench.instructions import (
    least,
    read_baseline,
    table,
    this_build,
    worsened,
    write_baseline,
)
from tests.bench.messages import HEAD_END, Expected, Kind, Requests, answer

BEFORE = {"http1": {"plain read": 1_000_000.0}}


@pytest.mark.parametrize("cost, worse", [(1_020_000.0, 0), (1_020_001.0, 1), (900_000.0, 0)])
def test_two_percent_more_than_before_is_worse(cost: float, worse: int) -> None:
    assert len(worsened({"http1": {"plain read": cost}}, BEFORE)) == worse


def test_what_was_never_counted_is_not_worse() -> None:
    assert worsened({"http1": {"TLS read": 9e9}, "stock": {"plain read": 9e9}}, BEFORE) == []


def test_the_table_tells_the_change() -> None:
    told = table({"http1": {"plain read": 1_100_000.0}, "stock": {"TLS read": 2e6}}, BEFORE)
    rows = [[field.strip() for field in line.split("|")[1:-1]] for line in told.splitlines()]
    assert rows[2:] == [["plain read", "1.100 (+10.0%)", "-"], ["TLS read", "-", "2.000"]]


def test_of_what_was_counted_twice_the_less_stands() -> None:
    first = {"http1": {"plain read": 3.0, "TLS read": 2.0}, "mitmproxy": {"plain read": 9.0}}
    second = {"http1": {"plain read": 2.5, "TLS read": 2.5}}
    assert least(first, second) == {
        "http1": {"plain read": 2.5, "TLS read": 2.0},
        "mitmproxy": {"plain read": 9.0},
    }


def test_a_baseline_keeps_the_other_builds_and_what_was_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "instructions.json"
    path.write_text('{"another": {"http1": {"plain read": 1}}}')
    write_baseline(path, "this", {"http1": {"plain read": 2.4}})
    write_baseline(path, "this", {"mitmproxy": {"plain read": 5.0}})
    assert read_baseline(path) == {
        "another": {"http1": {"plain read": 1}},
        "this": {"http1": {"plain read": 2}, "mitmproxy": {"plain read": 5}},
    }


def test_the_shipped_baseline_can_be_read_and_a_build_is_named_in_one_line() -> None:
    for of_build in read_baseline(instructions.BASELINE).values():
        assert all(cost > 0 for costs in of_build.values() for cost in costs.values())
    assert "\n" not in this_build()


def requests(kind: Kind) -> Requests:
    return Requests("127.0.0.1:1", absolute=True, credentials="a:b", kind=kind, numbers=count(1))


@pytest.mark.parametrize(
    "kind, is_new",
    [
        (Kind.READ, True),
        (Kind.WRITE, True),
        (Kind.REPLAY, False),
        (Kind.REFUSED, False),
        (Kind.LARGE, False),
    ],
)
def test_reads_and_writes_never_repeat_and_replays_do(kind: Kind, is_new: bool) -> None:
    each = requests(kind)
    assert (each.next()[0] != each.next()[0]) == is_new
    assert HEAD_END in each.next()[0]


def test_an_answer_is_right_whole_or_wrong() -> None:
    expected, right = Expected(b"HTTP/1.1 200", b"abc"), bytearray(answer(b"abc"))
    for end in range(len(right)):
        assert not expected.is_whole(right[:end])
        assert not expected.is_wrong(right[:end])
    assert expected.is_whole(right)
    assert expected.is_wrong(right + b"d")
    assert expected.is_wrong(bytearray(b"HTTP/1.1 502 Bad Gateway\r\n\r\n"))


def test_a_refusal_is_whole_by_its_length() -> None:
    refusal = bytearray(answer(b'{"error":"no"}').replace(b"200 OK", b"403 Forbidden"))
    expected = Expected(b"HTTP/1.1 403")
    assert not expected.is_whole(refusal[:-1])
    assert expected.is_whole(refusal)
    assert not expected.is_whole(bytearray(answer(b"abc")))
