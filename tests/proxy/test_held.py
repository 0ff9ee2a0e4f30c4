"""An MCP event stream: progress flows at once, the result waits for the record."""

import pytest

from proxy.held import HELD_BYTES_MAX, HeldResult

PROGRESS = b'event: message\ndata: {"jsonrpc":"2.0","method":"notifications/progress"}\n\n'
RESULT = b'event: message\ndata: {"jsonrpc":"2.0","id":1,"result":{}}\n\n'
ERROR = b'data: {"jsonrpc":"2.0","id":1,"error":{"code":1}}\r\n\r\n'
ASKED = b'data: {"jsonrpc":"2.0","id":7,"method":"sampling/createMessage"}\n\n'


@pytest.mark.parametrize("answer", [RESULT, ERROR, b"data: not json\n\n", b"data: [{}]\n\n"])
def test_progress_flows_and_the_answer_and_all_after_it_wait(answer):
    held = HeldResult()
    assert held.feed(PROGRESS) == PROGRESS
    assert held.feed(b": a comment\n\n" + ASKED) == b": a comment\n\n" + ASKED
    assert held.feed(PROGRESS + answer + PROGRESS) == PROGRESS
    assert held.feed(PROGRESS) == b""
    assert held.rest() == answer + PROGRESS + PROGRESS
    assert held.rest() == b""


def test_however_it_is_cut_into_chunks_nothing_of_the_answer_flows_early_and_nothing_is_lost():
    stream = PROGRESS + RESULT
    for size in range(1, len(stream)):
        held = HeldResult()
        chunks = [stream[place : place + size] for place in range(0, len(stream), size)]
        flowed = b"".join(held.feed(chunk) for chunk in chunks)
        assert flowed == PROGRESS
        assert flowed + held.rest() == stream


def test_an_answer_in_several_data_lines_is_seen():
    held = HeldResult()
    assert held.feed(b'data: {"id":1,\ndata: "result":{}}\n\n') == b""


def test_an_answer_without_end_does_not_fill_the_memory():
    held = HeldResult()
    assert held.feed(RESULT) == b""
    assert len(held.feed(b"x" * HELD_BYTES_MAX)) == len(RESULT) + HELD_BYTES_MAX


def test_a_long_event_is_searched_once():
    """However small its parts: what was looked at is not looked at again."""
    held = HeldResult()
    for part in range(1, 1001):
        assert held.feed(b"x" * 100) == b""
        assert held._searched > part * 100 - 4


def test_an_end_of_an_event_that_comes_in_parts_is_found():
    for end in (b"\n\n", b"\r\n\r\n", b"\r\r"):
        fed = HeldResult()
        event = b'data: {"method": "progress"}' + end
        assert b"".join(fed.feed(event[place : place + 1]) for place in range(len(event))) == event
