"""Operators and their tokens; alerts that come once; rows about what people did."""

from typing import Any

import pytest

from ledger.errors import LedgerError
from ledger.operators import ALERT_KEPT_US
from ledger.records import Operator
from ledger.states import EventType
from tests.ledger.world import START_US, World

HASH, OTHER = b"h" * 32, b"o" * 32
BOB = Operator(HASH.hex()[:16], "bob", "pull", "ann", START_US, None)


def enroll(world: World, name: str = "bob", token_hash: bytes = HASH, **rest: Any) -> Operator:
    given = {"role": "pull", "actor": "ann", "at_us": world.now_us, **rest}
    return world.store.enroll(name, token_hash=token_hash, **given)


def noted(world: World) -> list[tuple[Any, ...]]:
    return world.rows("SELECT type, actor, detail FROM event ORDER BY seq")


def test_an_operator_is_known_by_the_token_alone(world: World) -> None:
    assert enroll(world) == BOB
    assert world.store.operator(HASH) == BOB
    assert world.store.operator(OTHER) is None
    world.reopen()
    assert world.store.operator(HASH) == BOB
    assert noted(world) == [
        ("operator.enrolled", "ann", f"operator bob (pull, token {BOB.id})"),
    ]
    assert "hash" not in repr(BOB)


def test_a_dismissed_operator_is_nobody_and_the_name_is_free(world: World) -> None:
    enroll(world)
    world.wait(1)
    gone = world.store.dismiss("bob", actor="cy", at_us=world.now_us)
    assert gone is not None
    assert gone.revoked_us == world.now_us
    assert world.store.operator(HASH) is None
    assert world.store.dismiss("bob", actor="cy", at_us=1) is None
    enroll(world, token_hash=OTHER)
    assert [(each.id, each.revoked_us) for each in world.store.operators()] == [
        (OTHER.hex()[:16], None),
        (BOB.id, gone.revoked_us),
    ]
    assert [row[0] for row in noted(world)] == [
        "operator.enrolled",
        "operator.dismissed",
        "operator.enrolled",
    ]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({}, "an operator bob already"),
        ({"name": "cy"}, "token exists already"),
        ({"name": " "}, "with a name"),
        ({"name": "cy", "role": ""}, "with a role"),
        ({"name": "cy", "actor": ""}, "with an actor"),
        ({"name": "caf\udce9"}, "no Unicode text"),
    ],
)
def test_who_cannot_be_enrolled_fails_no_batch(world: World, wrong: Any, message: str) -> None:
    enroll(world)
    with world.store.transaction(durable=True):
        with pytest.raises(LedgerError, match=message):
            enroll(world, **wrong)
        world.store.admit(world.read("a"), world.policy, world.judge)
    assert world.store.operators() == [BOB]
    assert len(world.calls()) == 1


def test_a_dismissed_token_enrolls_nobody(world: World) -> None:
    enroll(world)
    world.store.dismiss("bob", actor="cy", at_us=1)
    with pytest.raises(LedgerError, match="token exists already"):
        enroll(world, "cy")


def test_operators_of_a_failed_transaction_are_nobody(world: World) -> None:
    with world.failing():
        enroll(world)
        assert world.store.operator(HASH) == BOB
    assert world.store.operator(HASH) is None
    assert world.store.operators() == []
    assert noted(world) == []
    enroll(world)
    with world.failing():
        world.store.dismiss("bob", actor="cy", at_us=1)
    assert world.store.operator(HASH) == BOB


@pytest.mark.parametrize("act", ["enroll", "dismiss", "alert"])
def test_acts_are_durable(world: World, act: str) -> None:
    enroll(world)
    with world.store.transaction(durable=False):
        if act == "enroll":
            enroll(world, "cy", OTHER)
        elif act == "dismiss":
            world.store.dismiss("bob", actor="cy", at_us=1)
        else:
            world.store.alert_is_new("f1", "t1", 1)
    assert world.conn.execute("PRAGMA synchronous").fetchone() == (2,)


# Alerts


def test_an_alert_comes_once(world: World) -> None:
    told = [world.store.alert_is_new("f1", start, START_US) for start in ("t1", "t1", "t2")]
    assert told == [True, False, True]
    assert world.store.alert_is_new("f2", "t1", START_US) is True
    world.reopen()
    assert world.store.alert_is_new("f1", "t1", START_US) is False


def test_an_alert_of_a_failed_transaction_has_not_come(world: World) -> None:
    with world.failing():
        assert world.store.alert_is_new("f1", "t1", START_US) is True
        assert world.store.alert_is_new("f1", "t1", START_US) is False
    assert world.store.alert_is_new("f1", "t1", START_US) is True


def test_an_alert_that_is_no_text_fails_no_batch(world: World) -> None:
    with world.store.transaction(durable=True):
        with pytest.raises(LedgerError):
            world.store.alert_is_new("f\udce9", "t1", 1)
        world.store.alert_is_new("f1", "t1", 1)
    assert world.rows("SELECT fingerprint FROM alert") == [("f1",)]


def test_only_alerts_that_stay_away_are_forgotten(world: World) -> None:
    for name in ("repeated", "gone"):
        world.store.alert_is_new(name, "t1", world.now_us)
    world.now_us += ALERT_KEPT_US
    assert world.store.alert_is_new("repeated", "t1", world.now_us) is False
    assert world.store.reap() == 0
    world.wait(1)
    assert world.store.reap() == 1
    assert world.rows("SELECT fingerprint FROM alert") == [("repeated",)]


# Other acts


def test_an_act_is_noted(world: World) -> None:
    world.store.note(
        EventType.REFUSED_ACT,
        actor="mallory",
        at_us=7,
        detail="GET /x/ghp_16C7e42F292c6912E7710c838347",
        run="r1",
        tenant="acme",
        tool="pay",
    )
    ((*row, detail),) = world.rows(
        "SELECT type, actor, at_us, run, tenant, tool, detail FROM event"
    )
    assert row == ["control.refused", "mallory", 7, "r1", "acme", "pay"]
    assert detail.startswith("GET /x/[redacted:")


def test_an_act_in_words_that_are_no_text_is_noted_all_the_same(world: World) -> None:
    world.store.note(EventType.ALERTED, actor="a\udce9", at_us=7, detail="d\udce9", run="r\udce9")
    assert noted(world) == [("alert.received", r"a\udce9", r"d\udce9")]


def test_an_act_of_a_failed_transaction_is_not_noted(world: World) -> None:
    with world.failing():
        world.store.note(EventType.CLOCK, actor="pullcord", at_us=7, detail="1 h back")
    assert noted(world) == []
