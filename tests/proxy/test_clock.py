"""Call ids are UUIDv7: they sort by time, within a millisecond too."""

from uuid import UUID

import pytest

from proxy.clock import SystemClock, new_id


def test_ids_are_version_7_and_carry_their_time():
    made = UUID(new_id(1_795_000_000_123_456))
    assert made.version == 7
    assert made.variant == "specified in RFC 4122"
    assert made.int >> 80 == 1_795_000_000_123


def test_ids_sort_by_the_microsecond_they_were_made_in():
    ids = [new_id(1_795_000_000_000_000 + step * 50) for step in range(200)]
    assert ids == sorted(ids)


def test_two_ids_of_one_microsecond_differ():
    assert len({new_id(1) for _ in range(1000)}) == 1000


def test_the_system_clock_tells_utc_microseconds():
    assert abs(SystemClock().now_us() - SystemClock().now_us()) < 1_000_000
    assert SystemClock().now_us() > 1_700_000_000_000_000


class Moved:
    """A machine's two clocks; the wall may be set, the other only runs."""

    def __init__(self):
        self.wall_ns = 1_795_000_000 * 10**9
        self.even_ns = 500 * 10**9

    def pass_seconds(self, seconds):
        self.wall_ns += round(seconds * 1e9)
        self.even_ns += round(seconds * 1e9)

    def step_seconds(self, seconds):
        self.wall_ns += round(seconds * 1e9)

    def clock(self):
        return SystemClock(lambda: self.wall_ns, lambda: self.even_ns)


@pytest.mark.parametrize("step_seconds", [3600, -3600, 2.5, -2.5])
def test_a_step_is_told_and_time_goes_on_as_if_it_had_not_been(step_seconds):
    machine = Moved()
    clock = machine.clock()
    before_us = clock.now_us()
    assert clock.stepped_seconds() == 0
    machine.pass_seconds(10)
    machine.step_seconds(step_seconds)
    assert clock.stepped_seconds() == pytest.approx(step_seconds)
    assert clock.now_us() == before_us + 10_000_000
    machine.pass_seconds(100)
    assert clock.stepped_seconds() == pytest.approx(step_seconds)
    assert clock.now_us() == before_us + 110_000_000


def test_a_step_that_is_set_right_again_is_over():
    machine = Moved()
    clock = machine.clock()
    machine.step_seconds(-7200)
    assert clock.stepped_seconds() == -7200
    machine.pass_seconds(5)
    machine.step_seconds(7200)
    assert clock.stepped_seconds() == 0


def test_what_is_corrected_little_by_little_is_followed():
    machine = Moved()
    clock = machine.clock()
    for _ in range(1000):
        machine.pass_seconds(1)
        machine.step_seconds(0.01)
        assert clock.stepped_seconds() == 0
    assert clock.now_us() == machine.wall_ns // 1000


def test_a_clock_behind_the_record_cannot_be_trusted_until_it_has_caught_up():
    machine = Moved()
    clock = machine.clock()
    clock.start_after(clock.now_us() + 60_000_000)
    assert clock.stepped_seconds() == -60
    machine.step_seconds(86_400)
    assert clock.stepped_seconds() == 0
    assert clock.now_us() == machine.wall_ns // 1000
    machine.step_seconds(-86_400)
    assert clock.stepped_seconds() == -86_400
