"""Stored answers: exact, encrypted on disk, and of use with the right key and call only."""

import os

import pytest

from ledger.errors import LedgerError
from ledger.records import Answer
from ledger.vault import BODY_BYTES_MAX, Vault
from policies.verdict import Action
from tests.ledger.world import HEADERS, World

KEY = bytes(range(32))
ANSWER = Answer(201, HEADERS, b'{"id": "ch_1"}')
MARKER = b"a body that nobody may read from the disk"


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        Answer(204, (), b""),
        Answer(200, HEADERS, os.urandom(5000)),
        Answer(200, HEADERS, b"\x00" * BODY_BYTES_MAX),
    ],
    ids=["short", "empty", "random", "longest"],
)
def test_an_answer_comes_back_byte_for_byte(answer: Answer) -> None:
    vault = Vault(KEY)
    assert vault.open("c1", vault.seal("c1", answer)) == answer


def test_an_answer_belongs_to_its_call() -> None:
    vault = Vault(KEY)
    assert vault.open("c2", vault.seal("c1", ANSWER)) is None


def test_another_key_opens_nothing() -> None:
    assert Vault(bytes(32)).open("c1", Vault(KEY).seal("c1", ANSWER)) is None


@pytest.mark.parametrize("cut", [0, 5, 12, 20])
def test_a_damaged_answer_is_none(cut: int) -> None:
    vault = Vault(KEY)
    assert vault.open("c1", vault.seal("c1", ANSWER)[:cut]) is None


def test_a_key_of_the_wrong_size_is_told() -> None:
    with pytest.raises(LedgerError, match="32 bytes, this one has 5"):
        Vault(b"short")


def test_no_body_stands_on_the_disk(world: World) -> None:
    answers = {"short": MARKER, "long": MARKER * 1000}
    for name, body in answers.items():
        world.decided(world.ask(name, body=name))
        world.settle(name, body=body)
    files = [path.read_bytes() for path in world.data.iterdir()]
    assert b"short" in b"".join(files)  # the log is read as well
    assert not any(MARKER in content for content in files)
    assert not any(b"x-odd" in content for content in files)
    for name, body in answers.items():
        answer = world.decided(world.ask(f"again {name}", body=name)).answer
        assert answer
        assert answer.body == body


def test_a_replay_that_cannot_be_opened_is_refused(world: World) -> None:
    world.decided(world.ask("a"))
    world.settle("a")
    world.decided(world.ask("b", body="y"))
    world.settle("b", status=500)
    world.store._vault = Vault(KEY)
    for name, body, reason in (("c", "x", "done_but_not_stored"), ("d", "y", "outcome_unknown")):
        decision = world.decided(world.ask(name, body=body))
        assert decision.verdict.action is Action.REFUSE
        assert (decision.verdict.reason, decision.answer) == (reason, None)
        assert world.shown(name)["reason"] == reason
