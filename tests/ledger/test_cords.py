"""Cords that end by themselves, are narrowed to some releases, and are pulled tight again."""

import dataclasses
from typing import Any

import pytest

from ledger.errors import LedgerError
from ledger.states import EventType
from policies.verdict import Level, Pull, Scope
from tests.ledger.world import START_US, World, a_pull

SOON, LATER = START_US + 60_000_000, START_US + 120_000_000


def timed(until_us: int | None = None, but: tuple[str, ...] = (), **rest: Any) -> Pull:
    return dataclasses.replace(a_pull(), until_us=until_us, but_releases=but, **rest)


def standing(world: World) -> tuple[int | None, tuple[str, ...], str]:
    """The end, the releases and the actor of the one cord, the same in memory and on the disk."""
    world.check_memory()
    (pull,) = world.store.pulls.values()
    return pull.until_us, pull.but_releases, pull.actor


def acts(world: World) -> list[tuple[Any, ...]]:
    return world.rows("SELECT type, actor, detail FROM event WHERE rule = 'halt:run:r1'")


def lift(world: World, *releases: str) -> Pull | None:
    return world.store.release(
        Level.HALT,
        Scope.RUN,
        "r1",
        reason="fixed",
        actor="bob",
        at_us=world.now_us,
        releases=releases,
    )


# Pulled over one that stands: the most restrictive of both


@pytest.mark.parametrize(
    "first, second, until_us, but",
    [
        ((SOON,), (), None, ()),
        ((SOON,), (LATER,), LATER, ()),
        ((None, ("v1", "v2")), (), None, ()),
        ((None, ("v1", "v2")), (None, ("v2", "v3")), None, ("v2",)),
        ((SOON, ("v1",)), (LATER, ("v1",)), LATER, ("v1",)),
        ((SOON, ("v1",)), (SOON,), SOON, ()),
        ((None, ("v1",)), (SOON,), None, ()),
    ],
)
def test_a_second_pull_tightens(
    world: World, first: Any, second: Any, until_us: int | None, but: tuple[str, ...]
) -> None:
    world.store.pull(timed(*first))
    assert world.store.pull(timed(*second, actor="bob", reason="again", at_us=7)) is True
    assert standing(world) == (until_us, but, "bob")
    assert acts(world)[1:] == [("cord.pulled", "bob", "again")]
    world.reopen()
    assert standing(world) == (until_us, but, "bob")


@pytest.mark.parametrize(
    "first, second",
    [
        ((), ()),
        ((), (SOON,)),
        ((), (None, ("v1",))),
        ((LATER,), (SOON,)),
        ((LATER,), (LATER,)),
        ((None, ("v1",)), (None, ("v1", "v2"))),
        ((SOON, ("v1",)), (SOON, ("v1",))),
    ],
)
def test_a_second_pull_loosens_nothing(world: World, first: Any, second: Any) -> None:
    world.store.pull(timed(*first))
    before = standing(world)
    assert world.store.pull(timed(*second, actor="bob")) is False
    assert standing(world) == before
    assert len(acts(world)) == 1


def test_who_pulls_what_stands_is_in_the_record_where_a_person_does(world: World) -> None:
    world.store.pull(timed())
    before = standing(world)
    assert world.store.pull(timed(actor="bob", reason="STOP"), tells=True) is False
    assert standing(world) == before
    assert acts(world)[1:] == [("cord.pulled_again", "bob", "STOP")]


@pytest.mark.parametrize(
    "wrong",
    [
        {"but_releases": ("",)},
        {"scope": Scope.RELEASE, "subject": "v1", "but_releases": ("v2",)},
        {"reason": "caf\udce9"},
        {"subject": "caf\udce9"},
    ],
)
def test_a_cord_that_cannot_be_kept_fails_no_batch(world: World, wrong: Any) -> None:
    with world.store.transaction(durable=True):
        with pytest.raises(LedgerError):
            world.store.pull(dataclasses.replace(a_pull(), **wrong))
        world.store.admit(world.read("a"), world.policy, world.judge)
    assert world.shown("a")["state"] == "pending"
    assert dict(world.store.pulls) == {}


# Narrowed


def test_a_narrowed_cord_stays_and_lets_releases_pass(world: World) -> None:
    world.store.pull(timed(SOON))
    assert lift(world, "v2") == timed(SOON, ("v2",))
    assert lift(world, "v3", "v2") == timed(SOON, ("v2", "v3"))
    assert standing(world) == (SOON, ("v2", "v3"), "ann")
    assert acts(world)[1:] == [
        ("cord.narrowed", "bob", "v2 may pass: fixed"),
        ("cord.narrowed", "bob", "v3, v2 may pass: fixed"),
    ]
    world.reopen()
    assert standing(world) == (SOON, ("v2", "v3"), "ann")


def test_what_may_pass_already_leaves_no_row(world: World) -> None:
    world.store.pull(a_pull())
    lift(world, "v2")
    assert lift(world, "v2") == timed(but=("v2",))
    assert len(acts(world)) == 2


def test_a_cord_that_is_not_pulled_is_not_narrowed(world: World) -> None:
    assert lift(world, "v2") is None
    assert acts(world) == []


def test_a_release_without_a_name_passes_nothing(world: World) -> None:
    world.store.pull(a_pull())
    with pytest.raises(LedgerError, match="a release has a name"):
        lift(world, "v2", "")
    assert standing(world) == (None, (), "ann")


def test_a_cord_on_a_release_is_not_narrowed(world: World) -> None:
    world.store.pull(a_pull(Scope.RELEASE, "v1"))
    with pytest.raises(LedgerError, match="release it instead"):
        world.store.release(
            Level.HALT, Scope.RELEASE, "v1", reason="x", actor="bob", at_us=1, releases=("v1",)
        )


def test_a_narrowed_cord_is_lifted_whole(world: World) -> None:
    world.store.pull(a_pull())
    lift(world, "v2")
    assert lift(world) == timed(but=("v2",))
    assert dict(world.store.pulls) == {}
    world.check_memory()
    assert lift(world) is None


# Their time is up


def test_a_cord_ends_when_its_time_is_up(world: World) -> None:
    world.store.pull(timed(SOON))
    world.store.pull(a_pull(subject="r2"))
    assert world.store.expire(SOON - 1) == []
    assert world.store.expire(SOON) == [timed(SOON)]
    assert [pull.subject for pull in world.store.pulls.values()] == ["r2"]
    world.check_memory()
    assert acts(world)[1:] == [(EventType.RELEASED, "pullcord", "its time was up")]
    assert world.store.expire(LATER) == []


def test_a_cord_whose_time_is_up_holds_until_it_is_ended(world: World) -> None:
    world.store.pull(timed(SOON))
    world.wait(600)
    world.reopen()
    assert world.decided(world.read("a")).verdict.reason == "halted"


# All or nothing


def test_what_a_failed_transaction_did_to_a_cord_is_undone(world: World) -> None:
    world.store.pull(timed(SOON, ("v1",)))
    before = world.store.pulls
    for act in (
        lambda: world.store.pull(a_pull()),
        lambda: lift(world, "v2"),
        lambda: lift(world),
        lambda: world.store.expire(LATER),
    ):
        with world.failing():
            act()
            assert world.store._open_batch().pulls != before
        assert world.store.pulls is before
        assert standing(world) == (SOON, ("v1",), "ann")
    assert len(acts(world)) == 1


@pytest.mark.parametrize("act", ["tighten", "narrow", "expire"])
def test_a_changed_cord_is_durable(world: World, act: str) -> None:
    world.store.pull(timed(SOON))
    with world.store.transaction(durable=False):
        if act == "tighten":
            world.store.pull(a_pull())
        elif act == "narrow":
            lift(world, "v2")
        else:
            world.store.expire(SOON)
    assert world.conn.execute("PRAGMA synchronous").fetchone() == (2,)
