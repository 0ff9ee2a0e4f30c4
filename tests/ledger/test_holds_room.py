"""How many tickets may be open: of a run, of its tree, of its tenant, and in all."""

from ledger.holds import (
    HOLDS_MAX,
    HOLDS_PER_RUN_MAX,
    HOLDS_PER_TENANT_MAX,
    HOLDS_PER_TREE_MAX,
)
from ledger.states import HoldState
from ledger.tokens import Grant
from policies.call import Identity
from tests.ledger.test_holds import ARGUMENTS, WAIT_SECONDS, asked, decide, parked, told
from tests.ledger.world import World

REJECTED = HoldState.REJECTED


def test_a_run_has_so_many_tickets_and_no_more(held: World) -> None:
    for number in range(HOLDS_PER_RUN_MAX):
        parked(held, f"n{number}", body=str(number))
    more = asked(held, "more", body="more")
    assert held.store.hold(more, ARGUMENTS, "rule", WAIT_SECONDS) is None
    decision = held.decided(more)
    assert told(decision) == ("refuse", "over_ceiling")
    assert decision.verdict.retry_after_seconds
    assert "wait for a person" in decision.verdict.detail
    assert parked(held, "again", body="3")[1].ticket == "n3"  # joins, and needs no room
    decide(held, "n0", REJECTED)
    assert parked(held, "more", body="more")[1].ticket == "more"


def filled(world: World, count: int, run: str, tenant: str) -> None:
    """So many tickets are open; `{}` in a name is a number."""
    world.conn.executemany(
        "INSERT INTO hold (ticket, run, tenant, agent, tool, fingerprint, rule, summary, "
        "arguments, state, at_us, until_us) "
        "VALUES (?, ?, ?, '', ?, x'00', '', '', x'00', 'waiting', 0, ?)",
        [
            (f"{run}{n}", run.format(n), tenant.format(n), str(n), world.now_us * 2)
            for n in range(count)
        ],
    )


def has_place(world: World, name: str, who: Identity) -> bool:
    ask = asked(world, name, body=name, claimant=who)
    judged = told(world.decided(ask)) == ("hold", "held")
    made = world.store.hold(ask, ARGUMENTS, "rule", WAIT_SECONDS) is not None
    assert judged is made
    return made


def test_all_runs_have_so_many_tickets_and_no_more(held: World) -> None:
    filled(held, HOLDS_MAX - 1, "run{}", "tenant{}")
    assert has_place(held, "a", Identity("r1", "acme"))
    assert not has_place(held, "b", Identity("r2", "globex"))


def test_a_tenant_has_so_many_tickets_and_the_others_theirs(held: World) -> None:
    filled(held, HOLDS_PER_TENANT_MAX - 1, "run{}", "acme")
    assert has_place(held, "a", Identity("r1", "acme"))
    assert not has_place(held, "b", Identity("r2", "acme"))
    assert has_place(held, "c", Identity("r2", "globex"))


def test_a_tree_of_runs_has_so_many_tickets_however_many_children(held: World) -> None:
    minted(held, "root", "acme")
    for number in range(HOLDS_PER_TREE_MAX):
        minted(held, f"kid{number}", parent="root")
    minted(held, "grandkid", parent="kid0")
    filled(held, HOLDS_PER_TREE_MAX - 1, "kid{}", "acme")
    assert has_place(held, "a", Identity("root", "acme"))
    for run, ancestors in (("root", ()), ("kid1", ("root",)), ("grandkid", ("kid0", "root"))):
        assert not has_place(held, f"b-{run}", Identity(run, "acme", ancestors))
    assert has_place(held, "c", Identity("other", "acme"))


def minted(world: World, run: str, tenant: str = "", parent: str = "") -> None:
    world.store.mint(
        Grant(run, tenant, parent), run.encode(), actor="ann", at_us=world.now_us,
        policy=world.policy,
    )  # fmt: skip
