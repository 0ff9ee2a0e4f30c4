"""Which members of answers are learned away, and which never are."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import pytest

from policies.call import Dialect
from policies.detectors import answers, noticing
from policies.detectors.learning import ACTIONS_MAX, DIFFERENT, TOOLS_MAX, Learned


def word(number: int, size: int = 10) -> str:
    """A request id as many services write them: letters and digits, none of them hex."""
    drawn = hashlib.sha256(b"%d" % number).digest()
    return "k7" + "".join("ghjkmnpqrstvwxyz0123456789"[byte % 26] for byte in drawn[: size - 2])


def feed(
    learned: Learned, told: Iterable[Any], action: bytes = b"a", tool: str = "t"
) -> list[bytes]:
    """The digests of these answers to one call, one after the other."""
    digests = []
    for answer in told:
        text = json.dumps(answer).encode()
        left_out = learned.left_out(tool)
        digest = noticing.result(200, text, Dialect.HTTP, left_out=left_out).digest
        learned.feed(tool, action, digest, lambda text=text: answers.message(text, Dialect.HTTP))  # type: ignore[misc]
        digests.append(digest)
    return digests


def test_a_request_id_under_a_name_that_nobody_knows_is_learned() -> None:
    learned = Learned()
    told = [{"status": "pending", "zork": word(number)} for number in range(DIFFERENT + 4)]
    digests = feed(learned, told)
    assert learned.left_out("t") == {("zork",)}
    assert len(set(digests[: DIFFERENT + 1])) == DIFFERENT + 1
    assert len(set(digests[DIFFERENT + 1 :])) == 1


def test_it_is_learned_inside_objects_and_beside_clocks() -> None:
    learned = Learned()
    feed(
        learned,
        [
            {"now": number, "meta": {"zork": word(number), "region": "eu"}, "items": []}
            for number in range(DIFFERENT + 1)
        ],
    )
    assert learned.left_out("t") == {("meta", "zork")}


def test_what_was_learned_holds_for_all_calls_of_the_tool_and_for_no_other_tool() -> None:
    learned = Learned()
    feed(learned, [{"n": 1, "zork": word(number)} for number in range(DIFFERENT + 1)])
    first, second = feed(learned, [{"n": 1, "zork": word(1)}, {"n": 1, "zork": word(2)}], b"b")
    assert first == second
    assert learned.left_out("other") == frozenset()


def test_real_news_is_told_after_it() -> None:
    learned = Learned()
    feed(learned, [{"n": 1, "zork": word(number)} for number in range(DIFFERENT + 1)])
    digests = feed(learned, [{"n": n, "zork": word(n)} for n in range(5)])
    assert len(set(digests)) == 5


@pytest.mark.parametrize(
    "kind",
    [
        "a count", "a percentage", "a status", "a text", "a list", "a float", "a time to come",
        "the only member", "a cursor", "a piece of a stream", "a commit", "an id of a thing",
        "words of other lengths", "not each time", "a word that comes again", "beside progress",
    ],
)  # fmt: skip
def test_what_may_be_news_is_never_learned(kind: str) -> None:
    def answer(n: int) -> dict[str, Any]:
        told: dict[str, dict[str, Any]] = {
            "a count": {"done": n, "of": 100},
            "a percentage": {"percent": f"{n}%", "job": 7},
            "a status": {"status": f"phase{n}", "job": 7},
            "a text": {"zork": f"line {n} of the log", "job": 7},
            "a list": {"zork": [word(n)], "job": 7},
            "a float": {"zork": n / 7, "job": 7},
            "a time to come": {"zork": 600 - n, "job": 7},
            "the only member": {"zork": word(n)},
            "a cursor": {"nextToken": word(n), "job": 7},
            "a piece of a stream": {"chunk": word(n), "job": 7},
            "a commit": {"commit": word(n), "job": 7},
            "an id of a thing": {"message_id": word(n), "job": 7},
            "words of other lengths": {"zork": word(n, 8 + n % 5), "job": 7},
            "not each time": {"zork": word(n // 3), "job": 7},
            "a word that comes again": {"zork": word(n % 3), "job": 7},
            "beside progress": {"zork": word(n), "done": n},
        }
        return told[kind]

    learned = Learned()
    feed(learned, [answer(n) for n in range(40)])
    assert learned.left_out("t") == frozenset()


def test_what_is_remembered_is_bounded() -> None:
    learned = Learned()
    for number in range(3 * TOOLS_MAX):
        feed(learned, [{"n": 1}], tool=f"t{number}")
    for number in range(3 * ACTIONS_MAX):
        feed(learned, [{"n": 1}], b"%d" % number, f"t{3 * TOOLS_MAX - 1}")
    assert len(learned._tools) == TOOLS_MAX
    assert max(len(tool.actions) for tool in learned._tools.values()) == ACTIONS_MAX


def test_an_answer_that_cannot_be_read_teaches_nothing() -> None:
    learned = Learned()
    for number in range(20):
        learned.feed("t", b"a", b"%d" % number, lambda: None)
    assert learned.left_out("t") == frozenset()
