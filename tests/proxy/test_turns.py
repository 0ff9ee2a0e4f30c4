"""The fair queue alone: time is what the test says it is."""

from collections import Counter
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from proxy.turns import Turns

W = ("in_flight", "everything")
OTHER = ("calls", "r1")


def joined(turns, *tenants, window=W, **times):
    times.setdefault("until_seconds", 30.0)
    return [turns.join(tenant, window, **times) for tenant in tenants]


def served(turns, count=1000, now_seconds=0.0):
    """Who has a turn, in order, when there is room for so many."""
    order: list[int] = []
    turns.stir()
    while len(order) < count and (number := turns.next(now_seconds)) is not None:
        turns.served(number)
        order.append(number)
    return order


def test_within_a_tenant_who_came_first_is_first():
    turns = Turns()
    numbers = joined(turns, "a", "a", "a")
    assert served(turns) == numbers
    assert len(turns) == 0


def test_tenants_take_turns():
    turns = Turns()
    a1, a2, a3, b1, c1, b2 = joined(turns, "a", "a", "a", "b", "c", "b")
    assert served(turns) == [a1, b1, c1, a2, b2, a3]


def test_a_single_one_is_served_second_however_many_wait_before_it():
    turns = Turns()
    numbers = joined(turns, *["a"] * 100, "b")
    assert served(turns, 2) == [numbers[0], numbers[100]]


def test_turns_go_on_where_they_stopped():
    turns = Turns()
    a1, a2, b1, b2 = joined(turns, "a", "a", "b", "b")
    assert served(turns, 1) == [a1]
    assert served(turns) == [b1, a2, b2]


def test_when_one_finds_no_room_nobody_of_its_line_who_needs_as_much_is_tried():
    turns = Turns()
    (first, *_) = joined(turns, *["a"] * 50, *(f"t{number}" for number in range(50)))
    (elsewhere,) = joined(turns, "b", window=OTHER)
    turns.stir()
    assert turns.next(0) == first
    turns.refused(first, W)
    assert turns.next(0) == elsewhere
    turns.refused(elsewhere, OTHER)
    assert turns.next(0) is None


def tried(turns, room, now_seconds=0.0):
    """Who is served, in order, and who is tried in vain, where each needs its own amount."""
    got, vain = [], []
    while (number := turns.next(now_seconds)) is not None:
        amount = turns._places[number].amount
        if amount <= room:
            room -= amount
            turns.served(number)
            got.append(number)
        else:
            turns.refused(number, W, amount=amount)
            vain.append(number)
    return got, vain


def test_one_that_needs_much_holds_up_its_own_tenant_alone():
    turns = Turns()
    (wide,) = joined(turns, "a", amount=99)
    behind, small, smaller = joined(turns, "a", "b", "c", amount=5)
    turns.stir()
    assert tried(turns, 20) == ([small, smaller], [wide])
    turns.stir()
    assert tried(turns, 104) == ([wide, behind], [])


def test_it_is_the_first_to_be_tried_whenever_there_may_be_room():
    turns = Turns()
    (wide,) = joined(turns, "a", amount=99)
    for _ in range(3):
        small, later = joined(turns, "b", "b")
        turns.stir()
        assert tried(turns, 1) == ([small], [wide, later])
        turns.leave(later)
    turns.stir()
    assert tried(turns, 99)[0] == [wide]


def test_each_in_vain_needs_less_than_the_one_before():
    turns = Turns()
    amounts = [50, 60, 40, 45, 40, 39, 70]
    numbers = [joined(turns, f"t{at}", amount=amount)[0] for at, amount in enumerate(amounts)]
    turns.stir()
    assert tried(turns, 0) == ([], [numbers[0], numbers[2], numbers[5]])


def test_who_was_not_tried_yet_is_tried_before_the_others_are_tried_again():
    """However often there may be room, and however few are tried at a time."""
    turns = Turns()
    amounts = range(300, 0, -1)
    left = {joined(turns, f"t{amount}", amount=amount)[0] for amount in amounts}
    for _ in range(400):
        turns.stir()
        if (number := turns.next(0)) is not None:
            turns.refused(number, W, amount=turns._places[number].amount)
            left.discard(number)
    assert not left


def test_a_line_that_was_not_tried_yet_comes_before_one_that_is_tried_again():
    turns = Turns()
    (first,) = joined(turns, "a")
    (second,) = joined(turns, "a", window=OTHER)
    turns.stir()
    assert turns.next(0) == first
    turns.refused(first, W)
    turns.stir()
    assert turns.next(0) == second


def test_a_newcomer_waits_behind_its_own_and_behind_who_was_not_tried():
    turns = Turns()
    (wide,) = joined(turns, "a", amount=99)
    assert (turns.awaits("a", W), turns.awaits("b", W)) == (True, False)
    turns.stir()
    assert turns.awaits("b", W)
    (newcomer,) = joined(turns, "b")
    assert tried(turns, 1) == ([newcomer], [wide])
    assert not turns.awaits("b", W)


def test_behind_one_that_leaves_its_own_tenant_is_tried():
    turns = Turns()
    (wide,) = joined(turns, "a", amount=99)
    (behind,) = joined(turns, "a")
    turns.stir()
    assert tried(turns, 50) == ([], [wide])
    turns.leave(wide)
    assert tried(turns, 50) == ([behind], [])


def test_time_makes_room_for_the_least_of_a_line_first():
    turns = Turns()
    (wide,) = joined(turns, "a", amount=99, again_seconds=20.0)
    (small,) = joined(turns, "b", amount=5, again_seconds=7.0)
    assert turns.next(6.9) is None
    assert turns.next(7.0) == wide
    turns.refused(wide, W, 20.0, 99)
    assert turns.next(7.0) == small
    turns.served(small)
    assert (turns.next(19.9), turns.due_seconds) == (None, 20.0)
    assert turns.next(20.0) == wide


def test_only_the_line_that_may_have_room_is_tried():
    turns = Turns()
    _, other = joined(turns, "a") + joined(turns, "a", window=OTHER)
    turns.stir(OTHER)
    turns.stir(("nobody", "waits for it"))
    assert turns.next(0) == other
    turns.refused(other, OTHER)
    assert turns.next(0) is None


def test_a_window_that_moves_on_is_tried_again_by_itself():
    turns = Turns()
    (number,) = joined(turns, "a", again_seconds=7.0)
    assert turns.next(6.9) is None
    assert turns.due_seconds == 7.0
    assert turns.next(7.0) == number
    turns.refused(number, W, 9.0)
    assert (turns.next(8.9), turns.due_seconds) == (None, 9.0)
    assert turns.next(9.0) == number


def test_who_waits_for_another_window_now_keeps_its_place_by_its_number():
    turns = Turns()
    early, late = joined(turns, "a") + joined(turns, "a", window=OTHER)
    turns.stir()
    turns.refused(early, OTHER)
    assert not turns.awaits("a", W)
    assert served(turns) == [early, late]


def test_who_left_is_not_called_and_the_next_one_is():
    turns = Turns()
    first, second, third = joined(turns, "a", "a", "b")
    turns.leave(second)
    turns.leave(second)
    assert turns.next(0) is None
    turns.leave(first)
    assert served(turns, 1) == [third]
    assert not turns.awaits("b", W)
    assert (len(turns), turns.due_seconds) == (0, inf)


def test_a_wait_ends_at_its_time_and_the_earliest_first():
    turns = Turns()
    late, early, gone = (turns.join("a", W, until_seconds=at) for at in (5.0, 3.0, 1.0))
    turns.leave(gone)
    assert turns.due_seconds == 3.0
    assert turns.over(2.9) is None
    assert turns.over(9.0) == early
    turns.leave(early)
    assert turns.over(9.0) == late


def test_there_is_room_for_so_many_of_a_tenant_and_for_so_many_in_all():
    turns = Turns(waiters_max=3, tenant_waiters_max=2)
    a1, _ = joined(turns, "a", "a")
    assert (turns.has_room("a"), turns.has_room("b")) == (False, True)
    joined(turns, "b")
    assert not turns.has_room("b")
    turns.leave(a1)
    assert turns.has_room("a")


def test_what_was_to_come_up_and_holds_no_more_is_not_kept():
    turns = Turns()
    (number,) = joined(turns, "a")
    for second in range(10_000):
        turns.stir()
        turns.refused(number, W, 1e6 + second)
        turns.leave(*joined(turns, "b"))
    assert len(turns._again) + len(turns._ends) < 300


@given(st.lists(st.sampled_from(["a", "b", "c", "d", "serve", "leave"]), max_size=80))
def test_between_two_turns_of_a_tenant_every_other_one_that_waits_has_one(steps):
    turns = Turns()
    waiting: dict[int, str] = {}
    since: dict[str, Counter[str]] = {}  # whose turns there were while this tenant waited
    for step in steps:
        if step == "leave" and waiting:
            number = min(waiting, key=lambda one: one * 7919 % 101)
            turns.leave(number)
            del waiting[number]
        elif step == "serve":
            for number in served(turns, 1):
                tenant = waiting.pop(number)
                assert number < min((n for n, t in waiting.items() if t == tenant), default=inf)
                since.pop(tenant, None)
                for others in since.values():
                    others[tenant] += 1
                    assert others[tenant] <= 1
        elif step not in ("serve", "leave"):
            (number,) = joined(turns, step)
            waiting[number] = step
        for tenant in set(waiting.values()):
            since.setdefault(tenant, Counter())
        since = {tenant: met for tenant, met in since.items() if tenant in waiting.values()}
    assert len(turns) == len(waiting)
