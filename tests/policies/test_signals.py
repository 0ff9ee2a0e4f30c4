"""How much is going on: windows, what counts as what, what is remembered."""

from typing import Any

import pytest

from policies.detectors import signals
from policies.detectors.rate import MOST
from policies.detectors.signals import Gauges, Signals
from policies.detectors.step import Kind, Step

START_US = 1_795_000_000_000_000
SECOND_US = 1_000_000


def a_step(seconds: float, kind: Kind = Kind.TOOL, run: str = "r1", **rest: Any) -> Step:
    """One that was asked a second before it ended."""
    told = {"root": run, "tenant": "acme", "destination": "pay.example", **rest}
    ended_us = START_US + round(seconds * SECOND_US)
    return Step(ended_us - SECOND_US, kind, "c", run, ended_us=ended_us, **told)


def after(seconds: float) -> int:
    return START_US + round(seconds * SECOND_US)


def fed(*steps: Step, credit_milli: int = 0) -> Signals:
    made = Signals()
    for step in steps:
        made.feed(step, credit_milli)
    return made


def test_each_kind_of_step_counts_as_what_it_is() -> None:
    made = fed(
        a_step(0, is_write=True),
        a_step(1, is_write=True, replayed=True),
        a_step(2),
        a_step(3, Kind.MODEL, spend_microusd=2_000_000, tokens=70),
        a_step(4, Kind.MARK),
        a_step(5, Kind.END),
        credit_milli=500,
    )
    told = made.fleet(after(6))
    assert told.minute == Gauges(
        tool_calls=3,
        writes=1,
        model_calls=1,
        tokens=70,
        spend_microusd=2_000_000,
        destinations=1,
        credit_milli=3_000,
    )
    assert told.five_minutes == told.minute
    assert told.minute.progress_per_usd == 1.5


def test_where_nothing_is_spent_there_is_no_progress_per_dollar() -> None:
    assert fed(a_step(0), credit_milli=1000).fleet(after(1)).minute.progress_per_usd is None


def test_a_minute_forgets_before_five_do_and_time_alone_makes_them_forget() -> None:
    made = fed(a_step(0))
    for seconds, minute, five in [(50, 1, 1), (61, 0, 1), (290, 0, 1), (301, 0, 0), (9_999, 0, 0)]:
        told = made.fleet(after(seconds))
        assert (told.minute.tool_calls, told.five_minutes.tool_calls) == (minute, five)


def test_a_bucket_that_comes_round_again_begins_at_nothing() -> None:
    """One call every ten seconds, for an hour: six a minute, never more."""
    made = Signals()
    for number in range(360):
        made.feed(a_step(number * 10), 0)
        for told in (made.fleet(after(number * 10)), made.run("r1", after(number * 10))):
            assert told is not None
            assert told.minute.tool_calls == min(number + 1, 6)
            assert told.five_minutes.tool_calls == min(number + 1, 30)


def test_a_call_counts_when_it_ended_not_when_it_was_asked() -> None:
    slow = Step(START_US, Kind.MODEL, "c", "r1", "r1", "acme", ended_us=after(240))
    assert fed(slow).fleet(after(250)).minute.model_calls == 1


def test_what_is_told_late_counts_in_its_own_time_and_not_at_all_when_that_is_over() -> None:
    made = fed(a_step(400), a_step(320), a_step(10))
    told = made.fleet(after(400))
    assert (told.minute.tool_calls, told.five_minutes.tool_calls) == (1, 2)


def test_a_destination_is_new_once_for_each_tenant_and_recipient() -> None:
    made = fed(
        a_step(0),
        a_step(1),
        a_step(2, recipient=b"ada"),
        a_step(3, recipient=b"ada"),
        a_step(4, tenant="other"),
        a_step(5, destination="new.example", replayed=True),
        a_step(6, destination=""),
        a_step(7, Kind.MODEL, destination="models.example"),
    )
    assert made.fleet(after(8)).minute.destinations == 3


def test_runs_and_tenants_are_told_apart_and_add_up() -> None:
    made = fed(
        a_step(0, Kind.MODEL, "a"),
        a_step(1, Kind.MODEL, "a"),
        a_step(2, Kind.MODEL, "b"),
        a_step(3, Kind.TOOL, "c", tenant="umbrella"),
    )
    now_us = after(4)
    assert [(each.run, each.tenant, each.steps) for each in made.runs(now_us, 10)] == [
        ("a", "acme", 2),
        ("c", "umbrella", 0),
        ("b", "acme", 1),
    ]
    assert [(each.tenant, each.steps) for each in made.tenants(now_us)] == [
        ("acme", 2),
        ("umbrella", 0),
    ]
    assert (made.fleet(now_us).steps, made.fleet(now_us).minute.model_calls) == (2, 3)
    assert [each.run for each in made.runs(now_us, 1)] == ["a"]
    assert [each.run for each in made.runs(now_us, 10, "umbrella")] == ["c"]
    assert made.run("nobody", now_us) is None
    assert made.tenant("nobody", now_us) is None


def test_steps_are_of_a_runs_life_and_idle_runs_are_not_listed() -> None:
    made = fed(*(a_step(number * 400, Kind.MODEL) for number in range(3)))
    told = made.run("r1", after(2_000))
    assert told is not None
    assert (told.steps, told.five_minutes) == (3, Gauges())
    assert made.runs(after(2_000), 10) == made.tenants(after(2_000)) == []
    assert made.fleet(after(2_000)).steps == 0


def test_what_is_left_of_a_sum_is_never_less_than_nothing() -> None:
    whole = Gauges(tool_calls=5, spend_microusd=10)
    left = whole.without([Gauges(tool_calls=2), Gauges(tool_calls=4, spend_microusd=1)])
    assert left == Gauges(spend_microusd=9)
    assert whole.without([]) == whole


def test_no_amount_is_too_much_to_add_up() -> None:
    dear = a_step(0, Kind.MODEL, spend_microusd=10**15, tokens=10**15)
    made = fed(*[dear] * 10_000)
    assert made.fleet(after(1)).minute.spend_microusd == 10_000 * MOST


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten; the sum of all keeps what they did."""
    monkeypatch.setattr(signals, "RUNS_MAX", 3)
    monkeypatch.setattr(signals, "TENANTS_MAX", 2)
    monkeypatch.setattr(signals, "DESTINATIONS_MAX", 2)
    names = [f"n{number}" for number in range(9)]
    made = fed(*(a_step(0, run=name, tenant=name, destination=name) for name in names))
    now_us = after(1)
    assert {each.run for each in made.runs(now_us, 99)} == {"n6", "n7", "n8"}
    assert {each.tenant for each in made.tenants(now_us)} == {"n7", "n8"}
    assert made.fleet(now_us).minute.tool_calls == 9
    made.feed(a_step(0, tenant="n0", destination="n0"), 0)
    assert made.fleet(now_us).minute.destinations == 10


def test_a_destination_that_is_in_use_is_not_the_one_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signals, "DESTINATIONS_MAX", 2)
    made = fed(*(a_step(0, destination=name) for name in ("a", "b", "a", "c", "a")))
    assert made.fleet(after(1)).minute.destinations == 3


def test_of_an_idle_run_its_steps_are_known_and_go_on() -> None:
    made = fed(a_step(0, Kind.MODEL, "a"), a_step(1, Kind.MODEL, "b"), a_step(250, run="b"))
    made.feed(a_step(400, run="c"), 0)
    assert (list(made._runs), list(made._idle)) == (["b", "c"], ["a"])
    told = made.run("a", after(401))
    assert told is not None
    assert (told.tenant, told.run, told.steps) == ("acme", "a", 1)
    assert told.minute == told.five_minutes == Gauges()
    made.feed(a_step(402, Kind.MODEL, "a", tenant="other"), 0)
    assert (list(made._runs), list(made._idle)) == (["b", "c", "a"], [])
    told = made.run("a", after(403))
    assert told is not None
    assert (told.tenant, told.steps, told.minute.model_calls) == ("acme", 2, 1)


def test_idle_runs_are_forgotten_before_those_that_are_active(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signals, "RUNS_MAX", 4)
    made = fed(*(a_step(0, run=name) for name in "abcd"))
    for number, name in enumerate("efg"):
        made.feed(a_step(1_000 + number, run=name), 0)
    assert [name for name in "abcdefg" if made.run(name, after(1_004))] == ["d", "e", "f", "g"]


def test_a_run_that_is_heard_of_is_not_the_one_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "RUNS_MAX", 2)
    made = fed(a_step(0, run="a"), a_step(1, run="b"), a_step(2, run="a"), a_step(3, run="c"))
    assert made.run("a", after(4)) is not None
    assert made.run("b", after(4)) is None
