"""Over most calls nothing can be found at once: the detectors are fed with those a moment later,
and say the same.
"""

from typing import Any

import pytest

from ledger.watching import Watch
from policies.detectors.rules import SHIPPED, Mode, Rule
from policies.detectors.runs import Runs
from policies.detectors.step import Finding, Step
from tests.ledger.world import World
from tests.policies.runs_of import START_US
from tests.policies.test_may_find import LOW, mixed

RULES = {
    name: Rule(Mode.ENFORCE, LOW.get(name, rule.limits), rule.then)
    for name, rule in SHIPPED.items()
}


@pytest.fixture
def watch(world: World) -> Watch:
    return made(world)


def made(world: World) -> Watch:
    watch = Watch()
    assert watch.make(world.store._conn, RULES, START_US)
    return watch


def always(self: Runs, step: Step) -> bool:
    return True


def fails(self: Runs, step: Step) -> bool:
    raise ValueError


@pytest.mark.parametrize("look", [always, fails])
def test_the_same_is_found_and_counted(
    world: World, watch: Watch, monkeypatch: pytest.MonkeyPatch, look: Any
) -> None:
    """`look` is by one that has all fed at once."""
    steps, ends = list(mixed(1)), list[str]()
    found, late = [], 0
    for step in steps:
        found += watch.follow() + watch.feed(step)
        late += not watch._is_fed
    found += watch.follow()
    monkeypatch.setattr(Runs, "may_find", look)
    at_once = made(world)
    assert [one for step in steps for one in (*at_once.feed(step), *at_once.follow())] == found
    now_us = steps[-1].at_us
    for each in (watch, at_once):
        ends.append(f"{each.signals.fleet(now_us)} {each.signals.runs(now_us, 100)}")
    assert (ends[0], late > 100) == (ends[1], True)


def test_who_reads_between_sees_each_step_and_what_it_earned_once(
    world: World, watch: Watch
) -> None:
    read, unread = watch, made(world)
    for number, step in enumerate(mixed(2)):
        for each in (read, unread):
            each.feed(step)
        before = read.signals.fleet(step.at_us).minute
        assert before.tool_calls == read.signals.fleet(step.at_us).minute.tool_calls
        if number % 3:
            read.follow()
            assert read.signals.fleet(step.at_us).minute.credit_milli >= before.credit_milli
        read.signals.tenants(step.at_us)
    for each in (read, unread):
        each.follow()
    assert read.signals.fleet(step.at_us) == unread.signals.fleet(step.at_us)
    assert read.signals.runs(step.at_us, 100) == unread.signals.runs(step.at_us, 100)


def test_one_that_fails_over_such_a_call_halts_its_run_all_the_same(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Runs, step: Step) -> list[Finding]:
        raise ValueError

    first, second, *_ = mixed(1)
    monkeypatch.setattr(Runs, "may_find", lambda *_: False)
    monkeypatch.setattr(Runs, "at_once", broken)
    assert watch.feed(first) == []
    (one,) = watch.feed(second)
    assert one.pull is not None
    assert (one.pull.subject, one.step) == (first.run, first)
    (one,) = watch.follow()
    assert one.step is second
