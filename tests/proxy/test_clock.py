"""Call ids are UUIDv7: they sort by time, within a millisecond too."""

from uuid import UUID

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
