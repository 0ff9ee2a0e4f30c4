"""A few runs of a good release go first past the cords of an incident: who passes, how they fare,
and what survives a crash.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ledger.connection import open_reader
from ledger.cord_reads import head
from ledger.errors import LedgerError
from ledger.incidents import QUIET_SECONDS
from ledger.open_incidents import Incident
from ledger.records import Arguments
from ledger.states import HoldState
from ledger.trial_reads import Health
from ledger.trials import PLACES_MAX, of
from policies.call import Identity
from policies.verdict import Level, Pull, Reason, Scope, Trial
from tests.ledger.findings import ALERT, TRIP, close, listed, told
from tests.ledger.world import World, a_pull

GOOD, BAD = "good-1", "bad-2"
CORD = (Level.HALT, Scope.TENANT, "acme")
FREEZE = (Level.FREEZE, Scope.TOOL, "pay")


def one(run: str, release: str = GOOD, *above: str) -> Identity:
    return Identity(run, "acme", ancestors=above, release=release)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "data")
    made.policy = replace(made.policy, known_good=frozenset({GOOD}))
    told(made, run="r1", release=BAD)
    made.store.pull(replace(a_pull(Scope.TENANT, "acme"), at_us=made.now_us))
    yield made
    made.store.close()


def ours(world: World) -> Incident:
    (found,) = [each for each in listed(world) if each.name == "r1"]
    return found


def opened(
    world: World, runs: Sequence[str] = (), places: int = 1, *cords: Any, **rest: Any
) -> list[Pull]:
    return world.store.open_trial(
        ours(world).id, cords or (CORD,), GOOD, runs, places,
        reason="mended", actor="ann", at_us=world.now_us, **rest,
    )  # fmt: skip


def widened(world: World) -> tuple[Health, list[str]]:
    course, cords = world.store.widen_trial(
        ours(world).id, world.policy, reason="it holds", actor="ann", at_us=world.now_us
    )
    return course.health, [pull.rule for pull in cords]


def asked(world: World, name: str, who: Identity, **rest: Any) -> Reason:
    """A call of its own body."""
    return world.decided(world.ask(name, body=name, claimant=who, **rest)).verdict.reason


def called(world: World, name: str, who: Identity, **ended: Any) -> None:
    assert asked(world, name, who) is Reason.ALLOWED
    world.settle(name, **ended)


def trial(world: World) -> Trial | None:
    world.check_memory()
    return world.store.pulls[CORD].trial


# ---------------------------------------------------------------------------------- who passes


def test_the_next_run_of_the_good_release_goes_first_and_no_other(world: World) -> None:
    opened(world)
    assert asked(world, "a", one("r8", BAD)) is Reason.HALTED
    assert asked(world, "b", one("r8", "")) is Reason.HALTED
    assert asked(world, "c", one("r9")) is Reason.ALLOWED
    assert asked(world, "d", one("r8")) is Reason.HALTED
    assert asked(world, "e", one("r9", BAD)) is Reason.HALTED
    assert asked(world, "f", one("kid", GOOD, "r9")) is Reason.ALLOWED
    assert asked(world, "g", one("r9")) is Reason.ALLOWED
    on = ("halt:tenant:acme",)
    assert trial(world) == Trial(ours(world).id, GOOD, ("r9",), 0, after(world), on, ("r9",))


def after(world: World) -> int:
    first = world.rows("SELECT min(seq) FROM event WHERE type = 'cord.narrowed'")
    return int(first[0][0]) - 1


def test_runs_that_are_named_leave_no_place_to_others(world: World) -> None:
    opened(world, ("r7",), 0)
    assert asked(world, "a", one("r9")) is Reason.HALTED
    assert asked(world, "b", one("r7")) is Reason.ALLOWED


def test_what_would_be_refused_all_the_same_takes_no_place(world: World) -> None:
    """By another cord, or by a rule; it is told by which, and may come again."""
    opened(world)
    world.store.pull(replace(a_pull(subject="r8"), at_us=world.now_us))
    assert asked(world, "a", one("r8")) is Reason.HALTED
    assert asked(world, "b", replace(one("r7"), tools=("read",))) is Reason.TOOL_NOT_ALLOWED
    assert left(world) == ((), 1)


def left(world: World) -> tuple[tuple[str, ...], int]:
    first = trial(world)
    assert first is not None
    return first.runs, first.places


def test_what_would_wait_all_the_same_is_told_of_the_cord(world: World) -> None:
    world.store.release(*CORD, reason="x", actor="ann", at_us=world.now_us)
    ask = world.ask("b", body="same", claimant=one("r9"))
    assert world.decided(ask).verdict.reason is Reason.ALLOWED
    world.store.pull(replace(a_pull(Scope.TENANT, "acme"), at_us=world.now_us))
    opened(world)
    again = replace(ask, call_id="c", may_wait=True)
    assert world.decided(again).verdict.reason is Reason.HALTED
    assert left(world) == ((), 1)


def test_what_waits_for_a_person_takes_its_place_when_it_passes(world: World) -> None:
    pay = replace(world.policy.tools["pay"], hold=True)
    world.policy = replace(world.policy, tools={**world.policy.tools, "pay": pay})
    opened(world)
    ask = world.ask("a", claimant=one("r9"))
    assert world.decided(ask).verdict.reason is Reason.HELD
    assert left(world) == ((), 1)
    ask = replace(ask, bound_to=ask.call.fingerprint)
    shown = Arguments("POST", "https://api.example/v1/charges", (), b"{}")
    hold = world.store.hold(ask, shown, "tool:pay", 300)
    assert hold is not None
    ask = replace(ask, approval=hold.ticket)
    rest: dict[str, Any] = {"actor": "ann", "reason": "fine", "at_us": world.now_us}
    world.store.decide_hold(hold.ticket, HoldState.APPROVED, **rest)
    assert world.decided(ask).verdict.reason is Reason.ALLOWED
    assert left(world) == (("r9",), 0)


def test_what_is_answered_from_the_record_takes_no_place(world: World) -> None:
    world.store.release(*CORD, reason="x", actor="ann", at_us=world.now_us)
    called(world, "a", one("r9"))
    world.store.pull(replace(a_pull(Scope.TENANT, "acme"), at_us=world.now_us))
    opened(world)
    again = replace(world.ask("a", body="a", claimant=one("r9")), call_id="b")
    assert world.decided(again).verdict.reason is Reason.REPLAYED
    assert left(world) == ((), 1)


@pytest.mark.parametrize("elsewhere", [1, 0], ids=["a place of both", "a place of one"])
def test_a_run_takes_the_places_of_all_that_stops_it_or_none(world: World, elsewhere: int) -> None:
    """Of two incidents, each with its canary."""
    tool = (Level.HALT, Scope.TOOL, "pay")
    world.store.pull(Pull(*tool, "", "ann", world.now_us))
    opened(world)
    runs = () if elsewhere else ("r2",)
    world.store.open_trial(
        "another", (tool,), GOOD, runs, elsewhere, reason="x", actor="ann", at_us=world.now_us
    )
    expected = Reason.ALLOWED if elsewhere else Reason.HALTED
    assert asked(world, "a", one("r9")) is expected
    assert left(world) == ((("r9",), 0) if elsewhere else ((), 1))
    other = world.store.pulls[tool].trial
    assert other is not None
    assert other.runs == (("r9",) if elsewhere else ("r2",))


def test_one_place_is_one_run_past_all_cords_of_the_incident(world: World) -> None:
    """Though each cord stands over other calls."""
    for run in ("r8", "r9"):
        world.store.pull(replace(a_pull(subject=run), at_us=world.now_us))
    world.store.release(*CORD, reason="x", actor="ann", at_us=world.now_us)
    opened(world, (), 1, *((Level.HALT, Scope.RUN, run) for run in ("r8", "r9")))
    assert asked(world, "a", one("r8")) is Reason.ALLOWED
    assert asked(world, "b", one("r9")) is Reason.HALTED
    assert {pull.trial.runs for pull in world.store.pulls.values() if pull.trial} == {("r8",)}


def test_a_frozen_write_takes_the_place_and_a_read_needs_none(world: World) -> None:
    world.store.pull(Pull(*FREEZE, "", "ann", world.now_us))
    world.store.release(*CORD, reason="x", actor="ann", at_us=world.now_us)
    opened(world, (), 1, FREEZE)
    read = world.decided(world.read("a", claimant=one("r8")))
    assert read.verdict.reason is Reason.ALLOWED
    assert asked(world, "b", one("r9")) is Reason.ALLOWED
    assert asked(world, "c", one("r8")) is Reason.FROZEN


def test_a_tree_of_runs_takes_one_place_and_leaves_the_others(world: World) -> None:
    opened(world, (), 2)
    assert asked(world, "a", one("k1", GOOD, "top")) is Reason.ALLOWED
    assert asked(world, "b", one("k2", GOOD, "top")) is Reason.HALTED
    assert asked(world, "c", one("top")) is Reason.HALTED
    assert asked(world, "d", one("below", GOOD, "k1", "top")) is Reason.ALLOWED
    world.reopen()
    assert asked(world, "e", one("k3", GOOD, "top")) is Reason.HALTED
    assert left(world) == (("k1",), 1)
    assert asked(world, "f", one("r9")) is Reason.ALLOWED


def test_past_a_cord_over_a_run_each_of_its_tree_takes_a_place(world: World) -> None:
    """There is no other tree to leave one to."""
    run = (Level.HALT, Scope.RUN, "r1")
    world.store.release(*CORD, reason="x", actor="ann", at_us=world.now_us)
    opened(world, (), 2, run)
    assert asked(world, "a", one("k1", GOOD, "r1")) is Reason.ALLOWED
    assert asked(world, "b", one("k2", GOOD, "r1")) is Reason.ALLOWED
    assert asked(world, "c", one("k3", GOOD, "r1")) is Reason.HALTED


def test_a_release_that_is_no_longer_good_stops_with_all_its_runs(world: World) -> None:
    opened(world)
    called(world, "a", one("r9"))
    world.policy = replace(world.policy, known_good=frozenset())
    assert asked(world, "b", one("r9")) is Reason.HALTED
    with pytest.raises(LedgerError, match="not known to be good any more"):
        widened(world)


def test_what_a_run_is_told_of_itself_is_what_holds(world: World) -> None:
    opened(world, ("r9",), 0)

    def stopped(who: Identity) -> list[str]:
        state = world.store.own_state(world.ask(claimant=who), world.policy)
        assert not isinstance(state, Reason)
        return [pull.rule for pull in state.pulls]

    assert stopped(one("r9")) == []
    assert stopped(one("r8")) == ["halt:tenant:acme"]


# ---------------------------------------------------------------------------------- what survives


def test_a_transaction_that_fails_gives_the_place_back(world: World) -> None:
    opened(world)
    with world.failing():
        ask = world.ask("a", claimant=one("r9"))
        assert world.store.admit(ask, world.policy, world.judge).verdict.reason is Reason.ALLOWED
    assert asked(world, "b", one("r8")) is Reason.ALLOWED
    assert asked(world, "c", one("r9")) is Reason.HALTED


def test_a_place_is_kept_over_a_crash_also_where_a_read_took_it(world: World) -> None:
    opened(world)
    with world.store.transaction(durable=False):
        ask = world.read("a", claimant=one("r9"))
        assert world.store.admit(ask, world.policy, world.judge).verdict.reason is Reason.ALLOWED
    before = dict(world.store.pulls)
    world.reopen()
    assert dict(world.store.pulls) == before
    assert asked(world, "b", one("r8")) is Reason.HALTED
    assert asked(world, "c", one("r9")) is Reason.ALLOWED


def test_pulled_again_the_cord_lets_nobody_pass(world: World) -> None:
    opened(world)
    called(world, "a", one("r9"))
    assert world.store.pull(replace(a_pull(Scope.TENANT, "acme"), at_us=world.now_us))
    assert trial(world) is None
    assert asked(world, "b", one("r9")) is Reason.HALTED


def test_a_trip_over_its_own_cord_closes_it_and_is_told_again(world: World) -> None:
    """The detectors said the same of the incident before."""
    world.store.release(*CORD, reason="x", actor="ann", at_us=world.now_us)
    run = (Level.HALT, Scope.RUN, "r1")
    opened(world, ("r1",), 0, run)
    called(world, "a", one("r1"))
    told(world, TRIP, run="r1", release=GOOD, call="a")
    assert world.store.pulls[run].trial is None
    assert asked(world, "b", one("r1")) is Reason.HALTED
    (_, again) = world.rows("SELECT seq FROM event WHERE type = 'detector.tripped'")
    with pytest.raises(LedgerError, match="no run goes first"):
        widened(world)
    assert again


# ---------------------------------------------------------------------------------- the acts


@pytest.mark.parametrize(
    "runs, places, cords, said",
    [
        ((), 0, (CORD,), "between 1 and"),
        ((), PLACES_MAX + 1, (CORD,), "between 1 and"),
        (("r1",), -1, (CORD,), "between 1 and"),
        ((), 1, ((Level.HALT, Scope.RUN, "rX"),), "no halt is pulled for run rX"),
        ((), 1, ((Level.HALT, Scope.RELEASE, BAD),), "is none past which"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(
    world: World, runs: Any, places: int, cords: Any, said: str
) -> None:
    world.store.pull(replace(a_pull(Scope.RELEASE, BAD), at_us=world.now_us))
    before = dict(world.store.pulls)
    with pytest.raises(LedgerError, match=said):
        opened(world, runs, places, CORD, *cords)
    assert dict(world.store.pulls) == before


@pytest.mark.parametrize("how", ["as it stands", "lifted and pulled anew", "made tighter"])
def test_nobody_goes_first_past_what_was_pulled_since_it_was_planned(
    world: World, how: str
) -> None:
    world.store.pull(Pull(*FREEZE, "", "ann", world.now_us))
    with closing(open_reader(world.data)) as reader:
        planned = head(reader)
    if how == "lifted and pulled anew":
        world.store.release(*CORD, reason="look", actor="bob", at_us=world.now_us)
    elif how == "made tighter":
        lift: dict[str, Any] = {"reason": "x", "actor": "ann", "at_us": world.now_us}
        world.store.release(*CORD, **lift, releases=("good-0",))
    stop = replace(a_pull(Scope.TENANT, "acme"), actor="bob", reason="STOP", at_us=world.now_us)
    assert world.store.pull(stop, tells=True) is (how != "as it stands")
    before = dict(world.store.pulls)
    with pytest.raises(LedgerError, match="halt:tenant:acme was pulled since, by bob: STOP; look"):
        opened(world, (), 1, FREEZE, CORD, after_seq=planned)
    assert dict(world.store.pulls) == before
    assert opened(world, (), 1, FREEZE, after_seq=planned)


def test_two_do_not_go_first_past_one_cord(world: World) -> None:
    opened(world)
    with pytest.raises(LedgerError, match="runs go first past halt:tenant:acme for incident"):
        opened(world)
    told(world, run="zz", tenant="other")
    with pytest.raises(LedgerError, match="runs go first past"):
        world.store.open_trial(
            "another", (CORD,), GOOD, (), 1, reason="x", actor="ann", at_us=world.now_us
        )


@pytest.mark.parametrize("who", ["a person", "time"])
def test_nobody_goes_first_for_an_incident_that_is_closed(world: World, who: str) -> None:
    told(world, ALERT, run="r4", release=BAD)
    (alert,) = [each for each in listed(world) if each.name == "r4"]
    world.store.open_trial(
        alert.id, (CORD,), GOOD, (), 2, reason="x", actor="ann", at_us=world.now_us
    )
    called(world, "a", one("r9"))
    if who == "time":
        world.wait(QUIET_SECONDS + 1)
        world.store.reap()
    else:
        close(world, alert)
    assert trial(world) is None
    assert asked(world, "b", one("r9")) is Reason.HALTED
    rows = world.rows("SELECT type, detail FROM event WHERE incident = ? ORDER BY seq", alert.id)
    kinds = [kind for kind, _ in rows]
    assert kinds[-2:] == ["cord.pulled", "incident.closed"]
    assert rows[-2][1].startswith("nobody goes first any more: the incident is closed: ")
    with pytest.raises(LedgerError, match="has closed it; nobody goes first for it"):
        world.store.open_trial(
            alert.id, (CORD,), GOOD, (), 2, reason="x", actor="ann", at_us=world.now_us
        )


def test_it_is_ended_as_it_was_before(world: World) -> None:
    """A release that could pass before still can."""
    lift: dict[str, Any] = {"reason": "x", "actor": "ann", "at_us": world.now_us}
    world.store.release(*CORD, releases=("good-0",), **lift)
    opened(world)
    called(world, "a", one("r9"))
    ended = world.store.end_trial(ours(world).id, **lift)
    assert [pull.but_releases for pull in ended] == [("good-0",)]
    assert world.store.pulls[CORD].but_releases == ("good-0",)
    assert not of(world.store.pulls.values(), ours(world).id)
    assert asked(world, "b", one("r9")) is Reason.HALTED
    assert world.store.end_trial(ours(world).id, **lift) == []
