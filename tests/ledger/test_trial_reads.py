"""How the runs fare that go first past the cords of an incident, and what follows from it."""

from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from ledger import replaying
from ledger.connection import open_reader
from ledger.cords import CordName
from ledger.incident_timeline import milestones
from ledger.replaying import pull_of
from ledger.states import CallState, ClaimAfter
from ledger.tokens import Grant
from ledger.trial_reads import Course, Health, course, last
from policies.call import Identity
from policies.standing import standing
from policies.verdict import Level, Pull, Reason, Scope
from tests.ledger.findings import ALERT, TRIP, told
from tests.ledger.looping import USUAL, Looping
from tests.ledger.test_trials import (
    BAD,
    CORD,
    GOOD,
    asked,
    called,
    one,
    opened,
    ours,
    trial,
    widened,
    world,
)
from tests.ledger.world import World, a_pull

__all__ = ["world"]


def test_all_of_it_follows_where_a_run_went_first_and_fared_well(world: World) -> None:
    opened(world)
    assert widened(world) == (Health.IDLE, [])
    assert asked(world, "a", one("r9")) is Reason.ALLOWED
    assert widened(world) == (Health.IDLE, [])  # it has not ended
    world.settle("a")
    world.wait(5)
    assert widened(world) == (Health.GOOD, ["halt:tenant:acme"])
    assert trial(world) is None
    assert world.store.pulls[CORD].but_releases == (GOOD,)
    assert asked(world, "b", one("r8")) is Reason.ALLOWED
    assert asked(world, "c", one("r8", BAD)) is Reason.HALTED


RUN_1, OTHER = (Level.HALT, Scope.RUN, "r1"), one("other")
FROZEN = (Level.FREEZE, Scope.TENANT, "acme")


@pytest.mark.parametrize(
    "cord, who, effect, tool",
    [
        (FROZEN, one("r9"), "read", "read"),
        (FROZEN, one("r9"), "model", "pay"),
        (RUN_1, OTHER, "write", "pay"),
        ((Level.HALT, Scope.TOOL, "pay"), OTHER, "write", "mail"),
        ((Level.HALT, Scope.TOOL, "r1/pay"), OTHER, "write", "pay"),
        ((Level.HALT, Scope.TENANT, "globex"), OTHER, "write", "pay"),
    ],
)
def test_calls_that_the_cord_would_never_stop_say_nothing_of_it(
    world: World, cord: Any, who: Identity, effect: str, tool: str
) -> None:
    only(world, cord, who.run)
    ask = world.ask("a", claimant=who, effect=effect, tool=tool)
    assert world.decided(ask).verdict.reason is Reason.ALLOWED
    world.settle("a")
    assert widened(world) == (Health.IDLE, [])
    assert world.store.pulls[cord].trial is not None


def only(world: World, cord: CordName, run: str) -> None:
    """One run goes first past this cord, the only one."""
    world.store.release(*CORD, reason="x", actor="ann", at_us=world.now_us)
    world.store.pull(Pull(*cord, "", "ann", world.now_us))
    opened(world, (run,), 0, cord)


@pytest.mark.parametrize(
    "cord, who",
    [
        ((Level.HALT, Scope.GLOBAL, ""), OTHER),
        (FROZEN, OTHER),
        ((Level.FREEZE, Scope.TOOL, "pay"), OTHER),
        ((Level.HALT, Scope.TOOL, "other/pay"), OTHER),
        (RUN_1, one("other", GOOD, "r1")),
        ((Level.HALT, Scope.TOOL, "top/pay"), one("other", GOOD, "mid", "top")),
    ],
)
def test_calls_that_the_cord_would_stop_tell_how_they_fare(
    world: World, cord: Any, who: Identity
) -> None:
    only(world, cord, who.run)
    called(world, "a", who)
    health, widen = widened(world)
    assert (health, len(widen)) == (Health.GOOD, 1)


@pytest.mark.parametrize("ended", [{"status": 404}, {"sent": False, "status": None}])
def test_what_failed_or_was_not_sent_is_no_success(world: World, ended: Any) -> None:
    opened(world)
    called(world, "a", one("r9"), **ended)
    assert widened(world) == (Health.IDLE, [])
    called(world, "b", one("r9"))
    assert widened(world)[0] is Health.GOOD


@pytest.mark.parametrize("cord", [CORD, FROZEN])
def test_a_write_in_flight_is_waited_for(world: World, cord: Any) -> None:
    only(world, cord, "r9")
    assert asked(world, "w", one("r9")) is Reason.ALLOWED
    read = world.read("a", claimant=one("r9"))
    assert world.decided(read).verdict.reason is Reason.ALLOWED
    world.settle("a")
    assert widened(world) == (Health.IDLE, [])
    world.settle("w")
    assert widened(world)[0] is Health.GOOD


def test_an_answer_from_the_record_is_no_success(world: World) -> None:
    world.store.release(*CORD, reason="x", actor="ann", at_us=world.now_us)
    called(world, "a", one("r9"))
    world.store.pull(replace(a_pull(Scope.TENANT, "acme"), at_us=world.now_us))
    opened(world, ("r9",), 0)
    again = replace(world.ask("a", body="a", claimant=one("r9")), call_id="b")
    assert world.decided(again).verdict.reason is Reason.REPLAYED
    assert widened(world) == (Health.IDLE, [])


def test_what_a_run_was_refused_before_it_had_its_place_spoils_nothing(world: World) -> None:
    opened(world)
    assert asked(world, "a", replace(one("r9"), tools=("read",))) is Reason.TOOL_NOT_ALLOWED
    called(world, "b", one("r9"))
    assert widened(world)[0] is Health.GOOD


@pytest.mark.parametrize("how", ["pulled again", "lifted", "narrowed by hand"])
def test_it_ends_as_a_whole_where_one_of_its_cords_was_changed(world: World, how: str) -> None:
    world.store.pull(Pull(*FROZEN, "", "bob", world.now_us))
    opened(world, (), 1, CORD, FROZEN)
    called(world, "a", one("r9"))
    lift: dict[str, Any] = {"reason": "x", "actor": "bob", "at_us": world.now_us}
    if how == "pulled again":
        assert world.store.pull(replace(a_pull(Scope.TENANT, "acme"), at_us=world.now_us))
    elif how == "lifted":
        world.store.release(*CORD, **lift)
    else:
        world.store.release(*CORD, **lift, releases=(GOOD,))
    assert widened(world) == (Health.BAD, [])
    assert not any(pull.trial for pull in world.store.pulls.values())
    assert world.store.pulls[FROZEN].but_releases == ()
    (row,) = world.rows("SELECT rule, detail FROM event WHERE detail LIKE 'nobody goes%'")
    assert row[0] == "freeze:tenant:acme"
    assert "halt:tenant:acme was pulled again, or changed by somebody, since" in row[1]


def test_the_record_knows_past_which_cords_runs_went_first_last(world: World) -> None:
    world.store.pull(Pull(*FROZEN, "", "bob", world.now_us))
    opened(world, (), 1, CORD, FROZEN)
    called(world, "a", one("r9"))
    world.store.end_trial(ours(world).id, reason="x", actor="ann", at_us=world.now_us)
    with closing(open_reader(world.data)) as reader:
        was = last(reader, ours(world).id)
        assert was is not None
        assert set(was.cords) == {"halt:tenant:acme", "freeze:tenant:acme"}
        assert (course(reader, was).done, was.runs) == (1, ("r9",))


@pytest.mark.parametrize("below", [False, True], ids=["it itself", "one below it"])
@pytest.mark.parametrize("severity", [ALERT, TRIP])
def test_where_something_is_found_nobody_goes_first_any_more(
    world: World, severity: Any, below: bool
) -> None:
    for run, parent in (("r9", ""), ("kid", "r9")):
        minted(world, run, parent)
    opened(world, (), 2)
    called(world, "a", one("r9"))
    called(world, "k", one("kid", GOOD, "r9"))
    told(world, severity, run="kid" if below else "r9", release=GOOD, call="a", detector="burn")
    # At once, whoever watches; that it was opened is known until somebody has seen why.
    assert trial(world) is not None
    for name, who in (("b", one("r8")), ("c", one("r9")), ("d", one("kid", GOOD, "r9"))):
        assert asked(world, name, who) is Reason.HALTED
    told(world, severity, run="r9", release=GOOD, call="b", detector="spiral")
    world.reopen()
    assert widened(world) == (Health.BAD, [])
    assert trial(world) is None
    said = f"nobody goes first any more: detector:burn of run {'kid' if below else 'r9'}: it goes"
    rows = world.rows("SELECT actor, detail FROM event WHERE detail LIKE 'nobody goes%'")
    assert rows == [(who, f"{said} round") for who in ("pullcord", "ann")]


def test_what_the_runs_below_it_do_counts(world: World) -> None:
    for run, parent in (("r9", ""), ("kid", "r9"), ("cousin", "")):
        minted(world, run, parent)
    opened(world)
    called(world, "a", one("r9"))
    called(world, "b", one("kid", GOOD, "r9"))
    told(world, ALERT, run="cousin", release=GOOD)
    course, _ = world.store.widen_trial(
        ours(world).id, replace(world.policy), reason="x", actor="ann", at_us=world.now_us
    )
    assert (course.health, course.runs, course.calls) == (Health.GOOD, ("r9",), 2)
    opened(world, ("r9",), 0, *kept_out(world))
    called(world, "c", one("kid", GOOD, "r9"))
    told(world, ALERT, run="kid", root="r9", release=GOOD, detector="burn")
    assert widened(world) == (Health.BAD, [])


def minted(world: World, run: str, parent: str = "") -> None:
    grant = Grant(run, "" if parent else "acme", parent, release=GOOD)
    secret = run.encode().ljust(32, b"_")
    world.store.mint(grant, secret, actor="ann", at_us=world.now_us, policy=world.policy)


def kept_out(world: World) -> list[Any]:
    """A cord anew, past which nobody goes."""
    world.store.pull(replace(a_pull(Scope.TENANT, "acme"), at_us=world.now_us))
    return [CORD]


def test_an_alert_that_was_told_before_shows_in_the_evidence(world: World) -> None:
    """It has no row of its own."""
    told(world, ALERT, run="r9", release=BAD, call="old", detector="spiral")
    incident = next(row[0] for row in world.rows("SELECT id FROM incident WHERE root = 'r9'"))
    opened_at = world.store.open_trial(
        incident, (CORD,), GOOD, ("r9",), 0, reason="x", actor="ann", at_us=world.now_us
    )
    world.wait(60)
    called(world, "a", one("r9"))
    before = len(world.rows("SELECT 1 FROM event WHERE type = 'detector.alerted'"))
    told(world, ALERT, run="r9", release=GOOD, call="a", detector="spiral")
    assert len(world.rows("SELECT 1 FROM event WHERE type = 'detector.alerted'")) == before
    course, _ = world.store.widen_trial(
        incident, world.policy, reason="x", actor="ann", at_us=world.now_us
    )
    assert opened_at
    assert course.health is Health.BAD


@pytest.mark.parametrize("wrong", ["refused", "unknown"])
def test_what_is_in_doubt_widens_nothing_and_ends_nothing(world: World, wrong: str) -> None:
    opened(world)
    called(world, "a", one("r9"))
    if wrong == "refused":
        assert asked(world, "b", replace(one("r9"), tools=("read",))) is Reason.TOOL_NOT_ALLOWED
    else:
        assert asked(world, "b", one("r9")) is Reason.ALLOWED
        world.store.settle(world.outcome("b", CallState.UNKNOWN, ClaimAfter.KEPT))
    assert widened(world) == (Health.DOUBTFUL, [])
    assert trial(world) is not None


def test_calls_of_before_and_of_other_releases_say_nothing_of_it(world: World) -> None:
    assert asked(world, "a", one("r9")) is Reason.HALTED
    opened(world)
    called(world, "b", one("r9"))
    assert asked(world, "c", one("r9", BAD)) is Reason.HALTED
    assert asked(world, "d", one("r8")) is Reason.HALTED
    assert widened(world) == (Health.GOOD, ["halt:tenant:acme"])


def test_what_fails_more_often_than_not_is_in_doubt(world: World) -> None:
    opened(world)
    called(world, "a", one("r9"))
    called(world, "b", one("r9"), status=404)
    assert course_of(world).health is Health.GOOD
    called(world, "c", one("r9"), status=401)
    assert (course_of(world).done, course_of(world).failed) == (1, 2)
    assert widened(world) == (Health.DOUBTFUL, [])


def course_of(world: World) -> Course:
    first = trial(world)
    assert first is not None
    with closing(open_reader(world.data)) as reader:
        return course(reader, first)


def test_a_cord_that_somebody_pulled_over_the_run_is_a_finding(world: World) -> None:
    opened(world)
    called(world, "a", one("r9"))
    world.store.pull(replace(a_pull(subject="r9"), at_us=world.now_us))
    assert widened(world)[0] is Health.BAD


def test_it_counts_as_recovered_when_all_of_the_release_passes(world: World) -> None:
    world.store.release(*CORD, reason="x", actor="ann", at_us=world.now_us)

    def recovered_us() -> int | None:
        with closing(open_reader(world.data)) as reader:
            return milestones(reader, ours(world)).recovered_us

    opened(world, (), 1, (Level.HALT, Scope.RUN, "r1"))
    world.wait(3)
    called(world, "a", one("r1"))
    assert recovered_us() is None
    world.store.end_trial(ours(world).id, reason="x", actor="ann", at_us=world.now_us)
    assert recovered_us() is None
    opened(world, ("r1",), 0, (Level.HALT, Scope.RUN, "r1"))
    called(world, "b", one("r1"))
    world.wait(3)
    assert widened(world)[0] is Health.GOOD
    assert recovered_us() == world.now_us


def test_a_simulation_reads_from_the_rows_who_passed(world: World) -> None:
    opened(world, ("r7",), 1)
    called(world, "a", one("r9"))
    found = []
    for kind, rule, detail in world.rows(
        "SELECT type, rule, detail FROM event WHERE type = 'cord.narrowed' ORDER BY seq"
    ):
        row: list[Any] = [None] * 40
        row[replaying._TYPE], row[replaying._RULE] = kind, rule
        row[replaying._DETAIL], row[replaying._AT] = detail, 1
        found.append(pull_of(tuple(row)))
    pulls = [{(pull.level, pull.scope, pull.subject): pull} for pull in found if pull]

    def stops(who: Identity, pulls: Any) -> bool:
        return standing(world.policy, "pay", who, pulls, Level.HALT) is not None

    assert [stops(one("r7"), each) for each in pulls] == [False, False]
    assert [stops(one("r9"), each) for each in pulls] == [True, False]
    assert [stops(one("r8"), each) for each in pulls] == [True, True]


@pytest.mark.parametrize("whole", [True, False], ids=["all of it", "some go first"])
@pytest.mark.parametrize("starts", [False, True], ids=["live", "read again"])
def test_the_detectors_begin_anew_with_what_a_person_narrows(
    world: World, whole: bool, starts: bool
) -> None:
    """Else the first call of the good release would trip it again."""
    halt = (Level.HALT, Scope.RUN, "looper")
    looping, who = Looping(world), Identity("looper", "globex", release=GOOD)

    def noticed() -> int:
        """After how many calls; over the first finding those that go first are shut out."""
        return next(number for number in range(1, USUAL + 1) if looping.call(who))

    usual = noticed()
    assert usual > 1
    world.store.pull(Pull(*halt, "loops", "detector:loop", world.now_us))
    if whole:
        world.store.release(*halt, reason="x", actor="ann", at_us=world.now_us, releases=(GOOD,))
    else:
        opened(world, ("looper",), 0, halt)
    if starts:
        world.reopen()
        looping.listen()
    assert noticed() == usual
