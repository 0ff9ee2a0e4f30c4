"""`/metrics`: the text format, read by a strict reader of our own; who gets series; what is left
out."""

import re
from collections.abc import Iterable
from typing import Any

import pytest

from ledger.records import Outcome
from ledger.states import CallState, ClaimAfter
from ledger.tally import Tally
from policies.call import Effect
from policies.detectors.signals import Signals
from policies.detectors.step import Kind, Step
from policies.policy import CANARY
from policies.verdict import Action, Level, Reason, Verdict
from proxy import metrics
from proxy.metrics import Channel, Metrics, Standing

NOW_US = 1_800_000_000_000_000
SECOND_US = 1_000_000

STANDING = Standing(
    started_us=NOW_US - 90 * SECOND_US,
    ledger_ok=True,
    policy_ok=True,
    open_calls=3,
    waiting=1,
    queued=2,
    owed=0,
    engines=4,
    cords={Level.HALT: 2},
)

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]

_NAME = r"[a-z_:][a-z0-9_:]*"
_LABEL = rf'{_NAME}="(?:[^"\\\n]|\\\\|\\"|\\n)*"'
_SAMPLE = re.compile(
    rf"({_NAME})(?:\{{({_LABEL}(?:,{_LABEL})*)\}})? (-?[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)"
)
_COMMENT = re.compile(rf"# (HELP|TYPE) ({_NAME}) (.+)")
_UNESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def parsed(text: str) -> Series:
    """The series of a page. Fails where anything is not as the format wants it: each family whole,
    once, HELP and TYPE first; each series once; counters named so and never less than nothing."""
    assert text.endswith("\n")
    found: Series = {}
    kinds: dict[str, str] = {}
    helped = family = ""
    for line in text.removesuffix("\n").split("\n"):
        comment = _COMMENT.fullmatch(line)
        if comment is not None:
            what, family, rest = comment.groups()
            if what == "HELP":
                assert family not in kinds, line
                assert re.fullmatch(r"[A-Z0-9].*\.", rest), line
                helped = family
            else:
                assert family == helped, line
                assert rest in ("counter", "gauge"), line
                assert (rest == "counter") == family.endswith("_total"), line
                kinds[family] = rest
            continue
        sample = _SAMPLE.fullmatch(line)
        assert sample is not None, line
        name, labels, value = sample.groups()
        assert name == family, line
        assert name in kinds, line
        pairs = [tuple(each.split("=", 1)) for each in re.findall(_LABEL, labels or "")]
        told = tuple((label, _read(text)) for label, text in pairs)
        assert len(dict(told)) == len(told), line
        assert (name, told) not in found, line
        found[name, told] = float(value)
        assert found[name, told] >= 0, line
    assert kinds
    return found


def _read(quoted: str) -> str:
    return re.sub(r"\\.", lambda found: _UNESCAPED[found[0]], quoted[1:-1])


def page(
    made: Metrics | None = None,
    signals: Signals | None = None,
    tally: Tally | None = None,
    standing: Standing = STANDING,
    now_us: int = NOW_US,
) -> Series:
    text = (made or Metrics()).text(standing, tally or Tally(), signals or Signals(), now_us)
    return parsed(text)


def value(found: Series, name: str, **labels: str) -> float | None:
    return found.get((f"pullcord_{name}", tuple(labels.items())))


def tenants(found: Series) -> set[str]:
    return {dict(labels)["tenant"] for _, labels in found if "tenant" in dict(labels)}


def a_step(tenant: str, seconds: float = 0, kind: Kind = Kind.TOOL, **rest: Any) -> Step:
    at_us = NOW_US + round(seconds * SECOND_US)
    return Step(at_us, kind, "c", f"run-of-{tenant}", "", tenant, **rest)


def fed(steps: Iterable[Step], credit_milli: int = 0) -> Signals:
    made = Signals()
    for step in steps:
        made.feed(step, credit_milli)
    return made


# ---------------------------------------------------------------------------------- the page


def test_a_page_without_anything_to_tell_is_a_whole_one() -> None:
    found = page()
    assert value(found, "calls_total", decision="allow", effect="write") == 0
    assert value(found, "recent_tool_calls", tenant="other", window="1m") == 0
    assert tenants(found) == {"other"}


def test_how_the_proxy_stands() -> None:
    found = page()
    told = {
        "calls_in_flight": 3,
        "calls_waiting": 1,
        "decider_queued": 2,
        "outcomes_owed": 0,
        "engines": 4,
        "ledger_ok": 1,
        "policy_ok": 1,
        "process_start_time_seconds": 1_799_999_910,
    }
    assert {name: value(found, name) for name in told} == told
    assert value(found, "cords_standing", level="halt") == 2
    assert value(found, "cords_standing", level="freeze") == 0


def test_what_cannot_be_told_is_left_out() -> None:
    names = ("incidents_open", "trace_behind_messages", "trace_lost_messages_total")
    found = page()
    assert [value(found, name) for name in names] == [None] * 3
    channels = {'pager "1"': Channel(ok=False, waiting=7)}
    told = Standing(0, False, False, 0, 0, 0, 5, 1, {}, 3, 4, 2, channels)
    found = page(standing=told)
    assert [value(found, name) for name in names] == [2, 3, 4]
    assert value(found, "ledger_ok") == value(found, "policy_ok") == 0
    assert value(found, "alert_channel_ok", channel='pager "1"') == 0
    assert value(found, "alerts_waiting", channel='pager "1"') == 7


def test_the_version_and_nothing_else_is_in_the_build() -> None:
    ((name, labels),) = [key for key in page() if key[0] == "pullcord_build_info"]
    assert [label for label, _ in labels] == ["version"]
    assert page()[name, labels] == 1


def test_counters_tell_decisions_refusals_outcomes_tokens_and_dollars() -> None:
    tally = Tally()
    tally.decided("pay", Effect.WRITE, Verdict(Action.ALLOW, Reason.ALLOWED, "tool:pay"))
    tally.decided("pay", Effect.WRITE, Verdict(Action.REFUSE, Reason.HALTED, "halt:global"))
    tally.decided(CANARY, Effect.WRITE, Verdict(Action.REFUSE, Reason.HALTED, "halt:global"))
    outcome = Outcome(
        "c",
        NOW_US,
        CallState.DONE,
        ClaimAfter.KEPT,
        input_tokens=100,
        output_tokens=20,
        cost_microusd=1_500_000,
    )
    tally.ended(None, outcome)
    tally.ended(a_step("acme", tool=CANARY), outcome)
    both = Tally()
    both.add(tally)
    both.add(tally)
    found = page(tally=both.copied())
    assert value(found, "calls_total", decision="allow", effect="write") == 2
    assert value(found, "calls_total", decision="refuse", effect="write") == 2
    assert value(found, "calls_total", decision="allow", effect="read") == 0
    assert value(found, "refusals_total", reason="halted") == 2
    assert value(found, "outcomes_total", state="done") == 2
    assert value(found, "tokens_total", type="input") == 200
    assert value(found, "tokens_total", type="output") == 40
    assert value(found, "spend_usd_total") == 3


# ---------------------------------------------------------------------------------- the signals


def test_signals_are_told_by_tenant_and_window() -> None:
    signals = fed(
        [
            a_step("acme", -200, Kind.MODEL, spend_microusd=500_000, tokens=9),
            a_step("acme", 0, destination="pay.example", is_write=True),
        ],
        credit_milli=1000,
    )
    found = page(signals=signals)
    for window, name, expected in [
        ("1m", "tool_calls", 1),
        ("1m", "model_calls", 0),
        ("1m", "progress_per_usd", None),
        ("5m", "model_calls", 1),
        ("5m", "writes", 1),
        ("5m", "tokens", 9),
        ("5m", "spend_usd", 0.5),
        ("5m", "new_destinations", 1),
        ("5m", "progress", 2),
        ("5m", "progress_per_usd", 4),
    ]:
        assert value(found, f"recent_{name}", tenant="acme", window=window) == expected, name
        assert value(found, f"recent_{name}", tenant="other", window=window) in (0, None)
    assert value(found, "run_steps_max", tenant="acme") == 1


@pytest.mark.parametrize(
    "name", ['a"b', "back\\slash", "two\nlines", "\\n", "漢字🙂", "\x1b[2J\u202e", "\ud800", "{}#="]
)
def test_a_hostile_name_is_told_whole_and_breaks_no_line(name: str) -> None:
    found = page(signals=fed([a_step(name)]))
    told = name.encode("utf-8", "replace").decode()
    assert tenants(found) == {told, "other"}
    assert value(found, "recent_tool_calls", tenant=told, window="1m") == 1


@pytest.mark.parametrize("name", ["other", "x" * 257, ""])
def test_a_name_that_cannot_be_a_label_is_among_the_others(name: str) -> None:
    found = page(signals=fed([a_step(name)]))
    assert tenants(found) == {"other"}
    assert value(found, "recent_tool_calls", tenant="other", window="1m") == 1


def test_no_run_is_ever_named() -> None:
    found = page(signals=fed([a_step("acme")]))
    assert not any("run" in dict(labels) for _, labels in found)


def test_tenants_beyond_the_bound_are_summed_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "TENANTS_MAX", 3)
    signals = fed(a_step(f"t{number}") for number in range(8) for _ in range(number + 1))
    made = Metrics()
    found = page(made, signals)
    assert tenants(found) == {"t7", "t6", "t5", "other"}
    told = {
        tenant: value(found, "recent_tool_calls", tenant=tenant, window="1m")
        for tenant in tenants(found)
    }
    assert told == {"t7": 8, "t6": 7, "t5": 6, "other": 15}
    for _ in range(4):
        signals.feed(a_step("t1", 1, Kind.MODEL), 0)
    assert value(page(made, signals), "run_steps_max", tenant="other") == 4


def test_made_up_names_take_no_series_from_one_that_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However busy they are, until it has done nothing for an hour; meanwhile it is idle."""
    monkeypatch.setattr(metrics, "TENANTS_MAX", 2)
    made, signals = Metrics(), fed([a_step("acme"), a_step("umbrella")])
    page(made, signals)
    found: Series = {}
    for number in range(50):
        seconds = 60 * number
        for _ in range(5):
            signals.feed(a_step(f"made-up-{number}", seconds), 0)
        signals.feed(a_step("acme", seconds), 0)
        found = page(made, signals, now_us=NOW_US + seconds * SECOND_US)
        assert tenants(found) == {"acme", "umbrella", "other"}
    assert value(found, "recent_tool_calls", tenant="umbrella", window="5m") == 0
    signals.feed(a_step("late", 3_900), 0)
    found = page(made, signals, now_us=NOW_US + 3_900 * SECOND_US)
    assert tenants(found) == {"acme", "late", "other"}
