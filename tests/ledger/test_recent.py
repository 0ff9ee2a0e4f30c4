"""What was asked for lately is remembered; the rest is given back by time, and by number."""

from ledger.recent import KEPT_US, Recent


def made(*keys: int, size_max: int = 10) -> Recent[int, str]:
    known = Recent[int, str](size_max)
    known.turn(10 * KEPT_US)
    for key in keys:
        known[key] = str(key)
    return known


def test_what_nobody_asks_for_is_given_back_and_the_rest_is_not() -> None:
    known = made(1, 2)
    for turn in range(1, 6):
        known.turn((10 + turn) * KEPT_US)
        assert known.get(1) == "1"
    assert known.get(2) is None
    assert len(known) == 1


def test_it_is_kept_for_a_time_at_least_in_whatever_order_calls_come() -> None:
    known = made(1)
    for later_us in (1, -1, KEPT_US - 1, 5, KEPT_US, KEPT_US - 5, 2 * KEPT_US - 1):
        known.turn(10 * KEPT_US + later_us)
    assert known.get(1) == "1"
    known.turn(0)
    known.turn(KEPT_US)
    assert known.get(1) is None


def test_what_was_changed_is_what_is_read() -> None:
    known = made(1)
    known.turn(11 * KEPT_US)
    known[1] = "changed"
    assert (known.get(1), len(known)) == ("changed", 1)
    known.clear()
    assert (known.get(1), len(known)) == (None, 0)


def test_there_are_never_more_than_so_many() -> None:
    known = made()
    for key in range(100):
        known[key] = str(key)
        known.get(0)
        assert len(known) <= 10
    assert known.get(0) == "0"
    assert known.get(99) == "99"
    assert known.get(50) is None
