"""Transactions of the store, all or nothing on the disk and in memory; cords and settlements."""

import dataclasses
from typing import Any

import pytest

from ledger.errors import LedgerError
from ledger.records import OwnState
from ledger.states import CallState, ClaimAfter
from policies.ceilings import Per, Then
from policies.verdict import Action, Level, Scope
from tests.ledger.world import R1, World, a_ceiling, a_policy, a_pull


def pulls_on_disk(world: World) -> set[tuple[Any, ...]]:
    return set(world.rows("SELECT level, scope, subject FROM pull"))


def durability(world: World) -> int:
    return int(world.conn.execute("PRAGMA synchronous").fetchone()[0])


# Settling


def test_a_call_is_settled_once(world: World) -> None:
    world.decided(world.ask("a"))
    assert world.settle("a", status=201) is True
    assert world.settle("a", status=500) is False
    row = world.shown("a")
    assert (row["state"], row["status"]) == ("done", 201)


def test_a_call_that_never_began_is_not_settled(world: World) -> None:
    assert world.store.settle(world.outcome("nobody")) is False
    assert world.rows("SELECT count(*) FROM event") == [(0,)]


def test_a_refused_call_is_not_settled(world: World) -> None:
    world.decided(world.ask("a", claimant=None))
    assert world.settle("a") is False


def test_a_call_may_be_settled_in_the_transaction_that_let_it_through(world: World) -> None:
    with world.store.transaction(durable=True):
        world.store.admit(world.ask("a"), world.policy, world.judge)
        assert world.settle("a")
        assert not world.settle("a")
        verdict = world.store.admit(world.ask("b"), world.policy, world.judge).verdict
    assert verdict.action is Action.REPLAY
    assert world.rows("SELECT count(*) FROM open_call") == [(0,)]
    assert world.shown("a")["state"] == "done"


def test_a_claimed_call_never_stays_pending(world: World) -> None:
    world.decided(world.ask("a"))
    world.store.settle(world.outcome("a", CallState.UNKNOWN, ClaimAfter.KEPT))
    assert world.rows("SELECT state FROM claim") == [("unknown",)]


def test_a_state_that_cannot_follow_is_refused_and_nothing_is_written(world: World) -> None:
    world.decided(world.ask("a"))
    with world.store.transaction(durable=True):
        with pytest.raises(LedgerError, match="cannot become refused"):
            world.store.settle(world.outcome("a", CallState.REFUSED))
        assert world.settle("a")
    assert world.shown("a")["state"] == "done"


def test_an_error_is_recorded_without_its_secrets(world: World) -> None:
    world.decided(world.read("a"))
    error = "reset by ghp_16C7e42F292c6912E7710c838347"
    outcome = world.outcome("a", CallState.UNKNOWN, ClaimAfter.KEPT, status=None, error=error)
    world.store.settle(outcome)
    ((detail,),) = world.rows("SELECT detail FROM event WHERE type = 'call.outcome'")
    assert detail.startswith("reset by [redacted:")


# All or nothing


def test_a_failed_transaction_leaves_nothing_on_disk_and_in_memory(world: World) -> None:
    world.store.pull(a_pull(subject="before"))
    world.decided(world.ask("open", body="o"))
    pulls, before = world.store.pulls, world.rows("SELECT count(*) FROM event")
    with world.failing():
        world.store.pull(a_pull(subject="other"))
        world.store.release(Level.HALT, Scope.RUN, "before", reason="ok", actor="ann", at_us=1)
        world.store.admit(world.ask("a"), world.policy, world.judge)
        world.settle("open")
        world.store.record_policy("d9", "text", "policy.yaml", 1)
    assert world.store.pulls is pulls
    assert pulls_on_disk(world) == {("halt", "run", "before")} == set(world.store.pulls)
    assert world.rows("SELECT count(*) FROM event") == before
    assert world.rows("SELECT call_id FROM open_call") == [("open",)]
    assert world.decided(world.ask("a")).verdict.action is Action.ALLOW
    assert world.settle("open") is True
    world.policy = a_policy(digest="d9")
    world.decided(world.read("b"))
    assert world.shown("b")["policy"] == "d9"


def test_a_transaction_of_reads_alone_fails_as_a_whole_too(world: World) -> None:
    with world.failing(durable=False):
        world.store.admit(world.read("a"), world.policy, world.judge)
    assert world.calls() == []
    assert world.store._memory.open_calls == {}


def test_a_failure_that_is_caught_still_fails_the_transaction(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_rest: object) -> None:
        raise ZeroDivisionError

    def careless() -> None:
        """Goes on after each failure, as if nothing had happened."""
        with world.store.transaction(durable=True):
            world.store.admit(world.ask("a"), world.policy, world.judge)
            with monkeypatch.context() as patch:
                patch.setattr(world.store._open_batch().journal, "decided", broken)
                with pytest.raises(ZeroDivisionError):
                    world.store.admit(world.ask("b", body="y"), world.policy, world.judge)
            with pytest.raises(ZeroDivisionError):
                world.store.admit(world.ask("c", body="z"), world.policy, world.judge)
            with pytest.raises(ZeroDivisionError):
                world.store.pull(a_pull())

    with pytest.raises(ZeroDivisionError):
        careless()
    assert world.calls() == []
    assert pulls_on_disk(world) == set()


def test_nothing_is_admitted_outside_a_transaction(world: World) -> None:
    with pytest.raises(LedgerError, match="no transaction"):
        world.store.admit(world.ask("a"), world.policy, world.judge)


def test_transactions_do_not_nest(world: World) -> None:
    with (
        world.store.transaction(durable=True),
        pytest.raises(LedgerError, match="open already"),
        world.store.transaction(durable=True),
    ):
        pass


def test_readers_see_nothing_before_the_commit(world: World) -> None:
    with world.store.transaction(durable=True):
        world.store.admit(world.ask("a"), world.policy, world.judge)
        world.store.pull(a_pull())
        assert world.calls() == []
        assert dict(world.store.pulls) == {}
    assert len(world.calls()) == 1
    assert set(world.store.pulls) == pulls_on_disk(world)


# Durability


def test_reads_do_not_wait_for_the_disk_and_writes_do(world: World) -> None:
    with world.store.transaction(durable=False):
        world.store.admit(world.read("a"), world.policy, world.judge)
        assert durability(world) == 1
    assert durability(world) == 1
    with world.store.transaction(durable=True):
        world.store.admit(world.ask("b"), world.policy, world.judge)
        assert durability(world) == 2


@pytest.mark.parametrize("act", ["claim", "settle", "pull", "ceiling", "policy"])
def test_what_must_last_is_made_durable_whatever_was_asked(world: World, act: str) -> None:
    world.decided(world.ask("open", body="o"))
    with world.store.transaction(durable=False):
        if act == "claim":
            world.store.admit(world.ask("a"), world.policy, world.judge)
        elif act == "settle":
            world.settle("open")
        elif act == "pull":
            world.store.pull(a_pull())
        elif act == "ceiling":
            policy = a_policy(a_ceiling(0, then=Then.HALT))
            world.store.admit(world.read("a"), policy, world.judge)
        else:
            world.store.record_policy("d9", "text", "policy.yaml", 1)
        assert durability(world) == 1
    assert durability(world) == 2


# Cords


def test_a_cord_is_latched_once(world: World) -> None:
    assert world.store.pull(a_pull()) is True
    later = dataclasses.replace(a_pull(), actor="bob", reason="other")
    assert world.store.pull(later) is False
    assert list(world.store.pulls.values()) == [a_pull()]
    assert world.rows("SELECT type, rule, run, actor, detail FROM event") == [
        ("cord.pulled", "halt:run:r1", "r1", "ann", "looks wrong")
    ]


def test_a_cord_survives_a_restart(world: World) -> None:
    world.store.pull(a_pull())
    world.store.pull(a_pull(Scope.GLOBAL, "", Level.FREEZE))
    before = dict(world.store.pulls)
    world.reopen()
    assert dict(world.store.pulls) == before
    assert world.decided(world.read("a")).verdict.reason == "halted"


def test_a_cord_holds_from_the_next_call_of_its_own_transaction(world: World) -> None:
    with world.store.transaction(durable=True):
        first = world.store.admit(world.read("a"), world.policy, world.judge)
        world.store.pull(a_pull())
        second = world.store.admit(world.read("b"), world.policy, world.judge)
        world.store.release(Level.HALT, Scope.RUN, "r1", reason="ok", actor="ann", at_us=1)
        third = world.store.admit(world.read("c"), world.policy, world.judge)
    assert [d.verdict.reason for d in (first, second, third)] == ["allowed", "halted", "allowed"]


def test_a_release_lifts_one_cord_and_says_which(world: World) -> None:
    world.store.pull(a_pull())
    world.store.pull(a_pull(level=Level.FREEZE))
    gone = world.store.release(
        Level.HALT, Scope.RUN, "r1", reason="fixed", actor="bob", at_us=world.now_us
    )
    assert gone == a_pull()
    assert set(world.store.pulls) == {(Level.FREEZE, Scope.RUN, "r1")} == pulls_on_disk(world)
    assert world.rows("SELECT rule, actor, detail FROM event WHERE type = 'cord.released'") == [
        ("halt:run:r1", "bob", "fixed")
    ]


def test_a_release_of_nothing_is_none(world: World) -> None:
    gone = world.store.release(Level.HALT, Scope.RUN, "r1", reason="x", actor="bob", at_us=1)
    assert gone is None
    assert world.rows("SELECT count(*) FROM event") == [(0,)]


@pytest.mark.parametrize("reason, actor", [("", "bob"), (" ", "bob"), ("fixed", "")])
def test_a_release_takes_a_person_and_a_reason(world: World, reason: str, actor: str) -> None:
    world.store.pull(a_pull())
    with pytest.raises(LedgerError, match="named person with a reason"):
        world.store.release(Level.HALT, Scope.RUN, "r1", reason=reason, actor=actor, at_us=1)
    assert len(world.store.pulls) == 1


# Policies and one's own state


def test_a_policy_is_kept_once_and_noted_each_time(world: World) -> None:
    world.store.record_policy("d1", "first", "policy.yaml", 1)
    world.store.record_policy("d2", "second", "policy.yaml", 2)
    world.store.record_policy("d1", "first", "policy.yaml", 3)
    assert world.rows("SELECT digest, text, at_us FROM policy") == [
        ("d1", "first", 1),
        ("d2", "second", 2),
    ]
    assert world.rows("SELECT actor, at_us FROM event WHERE type = 'policy.accepted'") == [
        ("policy:d1", 1),
        ("policy:d2", 2),
        ("policy:d1", 3),
    ]


def test_a_run_sees_its_own_state(world: World) -> None:
    world.policy = a_policy(
        a_ceiling(5),
        a_ceiling(9, Per.TENANT),
        a_ceiling(2, Per.GLOBAL),
        a_ceiling(1, Per.TOOL),
    )
    world.decided(world.read("a"))
    for pull in (a_pull(), a_pull(Scope.TENANT, "bolt"), a_pull(Scope.TOOL, "pay")):
        world.store.pull(pull)
    world.store.pull(a_pull(Scope.GLOBAL, "", Level.FREEZE))
    state = world.store.own_state(world.read("s"), world.policy)
    assert isinstance(state, OwnState)
    assert state.identity == R1
    assert [pull.rule for pull in state.pulls] == ["halt:run:r1", "freeze:global"]
    assert [(limit.name, limit.remaining) for limit in state.limits] == [
        ("run-calls-5", 4),
        ("tenant-calls-9", 8),
    ]


def test_a_run_does_not_see_a_cord_that_lets_its_release_pass(world: World) -> None:
    world.store.pull(dataclasses.replace(a_pull(), but_releases=(R1.release,)))
    for known_good, seen in ((frozenset({R1.release}), 0), (frozenset({"v9"}), 1)):
        policy = dataclasses.replace(world.policy, known_good=known_good)
        state = world.store.own_state(world.read("s"), policy)
        assert isinstance(state, OwnState)
        assert len(state.pulls) == seen


def test_nobody_sees_no_state(world: World) -> None:
    ask = world.read("s", claimant=None)
    assert world.store.own_state(ask, world.policy) == "credentials_required"
    assert world.store.refused(ask) == "credentials_required"
    assert world.store.refused(world.read("s")) is None
    assert world.calls() == []
