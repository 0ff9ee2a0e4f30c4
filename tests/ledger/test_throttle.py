"""Cords that detectors pull: a throttle lets few calls of each run pass, and a cord may stand over
one tool of one run."""

import pytest

from ledger import containment
from ledger.connection import open_reader
from ledger.states import CallState, ClaimAfter
from policies.bounds import THROTTLED_CALLS
from policies.call import Identity
from policies.policy import CANARY, DRILL_TENANT
from policies.verdict import Action, Level, Reason, Scope, Verdict
from tests.ledger.world import R1, World, a_ceiling, a_policy, a_pull

ROOT = Identity("root", "acme", release="v1")
CHILD = Identity("child", "acme", ("root",), release="v1")
LEAF = Identity("leaf", "acme", ("child", "root"), release="v1")
OTHER = Identity("other", "acme")


def verdicts(world: World, count: int, claimant: Identity = R1) -> list[Verdict]:
    names = [f"c{len(world.asks) + number}" for number in range(count)]
    asks = [world.read(name, claimant=claimant) for name in names]
    return [decision.verdict for decision in world.admit(*asks)]


def passed(world: World, count: int, claimant: Identity = R1) -> int:
    told = verdicts(world, count, claimant)
    return sum(verdict.action is Action.ALLOW for verdict in told)


def throttle(world: World, scope: Scope, subject: str) -> None:
    world.store.pull(a_pull(scope, subject, Level.THROTTLE))


def test_a_throttle_lets_six_calls_of_a_run_pass_in_a_minute(world: World) -> None:
    assert passed(world, 50) == 50
    throttle(world, Scope.RUN, "r1")
    told = verdicts(world, 20)
    assert sum(verdict.action is Action.ALLOW for verdict in told) == THROTTLED_CALLS == 6
    last = told[-1]
    assert (last.reason, last.rule) == (Reason.OVER_CEILING, "throttle:run:r1")
    assert last.detail == "at most 6 calls per run within 60 s"
    assert last.retry_after_seconds is not None
    assert 59 <= last.retry_after_seconds <= 62
    assert last.pull is None
    world.wait(last.retry_after_seconds)
    assert passed(world, 20) == 6


def test_a_throttle_survives_a_restart_and_ends_with_its_release(world: World) -> None:
    throttle(world, Scope.RUN, "r1")
    assert passed(world, 4) == 4
    world.reopen()
    assert passed(world, 20) == 2
    world.store.release(Level.THROTTLE, Scope.RUN, "r1", reason="ok", actor="bob", at_us=1)
    assert passed(world, 20) == 20


@pytest.mark.parametrize(
    "scope, subject, throttled, free",
    [
        (Scope.GLOBAL, "", [ROOT, OTHER, R1], []),
        (Scope.TENANT, "acme", [ROOT, OTHER], [Identity("b", "bolt")]),
        (Scope.RELEASE, "v1", [ROOT], [OTHER]),
        (Scope.RUN, "child", [CHILD], [ROOT, OTHER]),
        (Scope.TOOL, "read", [ROOT, OTHER], []),
        (Scope.TOOL, "other/read", [OTHER], [ROOT]),
        (Scope.TOOL, "pay", [], [ROOT, OTHER]),
    ],
)
def test_each_run_of_the_scope_has_its_own_six(
    world: World, scope: Scope, subject: str, throttled: list[Identity], free: list[Identity]
) -> None:
    throttle(world, scope, subject)
    assert [passed(world, 9, who) for who in throttled] == [6] * len(throttled)
    assert [passed(world, 9, who) for who in free] == [9] * len(free)


def test_a_run_that_starts_runs_does_not_slip_out_of_it(world: World) -> None:
    throttle(world, Scope.RUN, "child")
    assert passed(world, 4, LEAF) == 4
    assert passed(world, 4, CHILD) == 2
    assert passed(world, 4, LEAF) == 0
    assert passed(world, 9, ROOT) == 9


def test_what_is_throttled_apart_is_counted_apart(world: World) -> None:
    """A parent that is not throttled shares its children's calls with nobody."""
    sibling = Identity("sibling", "acme", ("root",))
    throttle(world, Scope.RUN, "child")
    throttle(world, Scope.TOOL, "sibling/read")
    assert [passed(world, 9, who) for who in (CHILD, sibling, ROOT)] == [6, 6, 9]


def test_a_throttle_counts_messages_of_a_running_call_and_no_drill(world: World) -> None:
    throttle(world, Scope.GLOBAL, "")
    call = world.read("ws").call
    told = [world.store.count(R1, call, world.policy, world.judge, world.now_us) for _ in range(9)]
    assert sum(verdict.action is Action.ALLOW for verdict in told) == 6
    drill = Identity("drill", DRILL_TENANT)
    asks = [
        world.ask(f"d{number}", effect="read", tool=CANARY, claimant=drill) for number in range(9)
    ]
    assert {told.verdict.action for told in world.admit(*asks)} == {Action.ALLOW}


def test_a_halt_and_a_freeze_go_before_a_throttle(world: World) -> None:
    throttle(world, Scope.RUN, "r1")
    world.store.pull(a_pull(Scope.TENANT, "acme"))
    assert {verdict.reason for verdict in verdicts(world, 9)} == {Reason.HALTED}


def test_the_ceilings_hold_under_a_throttle(world: World) -> None:
    world.policy = a_policy(a_ceiling(3))
    throttle(world, Scope.RUN, "r1")
    assert passed(world, 9) == 3


# ---- one tool of one run


def test_a_cord_on_a_tool_of_a_run_stops_it_for_the_run_and_its_descendants(world: World) -> None:
    world.store.pull(a_pull(Scope.TOOL, "child/read"))
    (verdict,) = verdicts(world, 1, CHILD)
    assert (verdict.reason, verdict.rule) == (Reason.HALTED, "halt:tool:child/read")
    assert [passed(world, 2, who) for who in (CHILD, LEAF, ROOT, OTHER)] == [0, 0, 2, 2]
    pay = world.ask("pay", claimant=CHILD)
    assert world.decided(pay).verdict.action is Action.ALLOW
    world.store.pull(a_pull(Scope.TOOL, "child/pay", Level.FREEZE))
    again = world.decided(world.ask("again", claimant=CHILD, body="y")).verdict
    assert (again.reason, again.rule) == (Reason.FROZEN, "freeze:tool:child/pay")


def test_its_rows_name_the_run_and_the_tool(world: World) -> None:
    world.store.pull(a_pull(Scope.TOOL, "r1/pay"))
    world.store.release(Level.HALT, Scope.TOOL, "r1/pay", reason="ok", actor="bob", at_us=1)
    rows = world.conn.execute("SELECT run, tool, rule FROM event WHERE rule IS NOT NULL").fetchall()
    assert rows == [("r1", "pay", "halt:tool:r1/pay")] * 2


def test_its_proof_is_about_it_alone(world: World) -> None:
    cut, other = world.ask("cut"), world.ask("other", claimant=OTHER, body="o")
    world.admit(cut, other)
    world.store.pull(a_pull(Scope.TOOL, "r1/pay"))
    outcome = world.outcome(
        "cut", CallState.UNKNOWN, ClaimAfter.KEPT, status=None, error="halt:tool:r1/pay"
    )
    assert world.store.settle(outcome)
    reader = open_reader(world.data)
    try:
        proof = containment.proof(reader, Level.HALT, Scope.TOOL, "r1/pay")
        assert [row["id"] for row in proof.cut] == ["cut"]
        assert not proof.still_open
        assert containment.is_known(reader, Scope.TOOL, "r1/pay")
        assert not containment.is_known(reader, Scope.TOOL, "r9/pay")
    finally:
        reader.close()
