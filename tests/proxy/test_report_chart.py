"""The chart: its time, its lanes, its marks, and what it is for whoever cannot see it."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from proxy.report_chart import LEAST_WIDTH_US, SLOTS, Chart, Lane, Mark, lanes, svg, told, window

START = 1_795_000_000_000_000


def row(
    slot: int, decision: str = "allow", effect: str = "write", calls: int = 1
) -> dict[str, Any]:
    cost = 500 if decision == "allow" else 0
    return {"slot": slot, "decision": decision, "effect": effect, "calls": calls,
            "cost_microusd": cost, "release": "v1"}  # fmt: skip


def figures(found: tuple[Lane, ...]) -> dict[str, int]:
    return {lane.kind: sum(lane.figures) for lane in found}


def test_lanes_hold_what_was_decided_and_the_rest_is_counted() -> None:
    found, before, after = lanes([
        row(0), row(0, effect="read", calls=2), row(3, "refuse", calls=4), row(-1, calls=5),
        row(SLOTS, "refuse", calls=6), row(SLOTS - 1),
    ])  # fmt: skip
    assert figures(found) == {"calls": 4, "writes": 2, "spend": 1_500, "refuse": 4}
    assert (before, after) == (5, 6)
    assert found[0].figures[0] == 3
    assert found[0].figures[SLOTS - 1] == 1


def test_replays_and_holds_have_lanes_where_there_are_any() -> None:
    found, _, _ = lanes([row(0, "replay"), row(1, "hold")])
    assert figures(found) == {
        "calls": 0, "writes": 0, "spend": 0, "replay": 1, "hold": 1, "refuse": 0
    }  # fmt: skip


@pytest.mark.parametrize(
    "focus_seconds, last_seconds, width_seconds",
    [
        (60, 60, 1.0),  # all of it
        (60, 90, 1.5),
        (60, 86_400, 2.0),  # what came much later does not press the rest together
        (60, 10, 1.0),
        (0, 600, 0.001),
    ],
)
def test_the_time_of_a_chart_is_that_of_what_matters(
    focus_seconds: int, last_seconds: int, width_seconds: float
) -> None:
    start, width = window(
        START, START + focus_seconds * 1_000_000, START + last_seconds * 1_000_000
    )
    assert start == START
    assert width == pytest.approx(max(width_seconds * 1e6, LEAST_WIDTH_US), rel=0.1)
    assert start + SLOTS * width > START + focus_seconds * 1_000_000


def a_chart(*marks: Mark, amount: int = 3) -> Chart:
    lane = Lane("calls let through", "calls", (amount, *[0] * (SLOTS - 2), 1))
    return Chart(
        START, 1_000_000, (lane, Lane("spend", "spend", (2_500_000, *[0] * (SLOTS - 1)))), marks
    )


def drawn(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(svg(chart))


def test_it_has_a_title_and_says_what_it_shows() -> None:
    image = drawn(a_chart())
    title, desc = image.find("title"), image.find("desc")
    assert title is not None
    assert desc is not None
    assert title.text == "Calls, writes, spend and verdicts over time"
    assert desc.text == told(a_chart())
    assert "4 calls let through, 2.500000 USD spend" in str(desc.text)
    assert set(str(image.get("aria-labelledby")).split()) == {title.get("id"), desc.get("id")}
    assert not re.search(r"script|href|http|style=", svg(a_chart()))


def test_the_highest_bar_fills_its_lane_and_a_low_one_is_seen() -> None:
    path = next(
        p for p in drawn(a_chart(amount=1_000)).iter("path") if "calls" in str(p.get("class"))
    )
    heights = [float(found) for found in re.findall(r"v-([\d.]+)", str(path.get("d")))]
    assert heights == [44.0, 2.0]


def test_marks_are_numbered_within_its_time_and_do_not_hide_each_other() -> None:
    at = START + 30_000_000
    image = drawn(a_chart(
        Mark(at, "pulled", "pulled halt:run:r1"), Mark(at, "other", "x"), Mark(at, "released", "y"),
        Mark(START - 1, "other", "before"),
    ))  # fmt: skip
    circles = list(image.iter("circle"))
    assert [one.get("class") for one in circles] == ["mark pulled", "mark other", "mark released"]
    assert len({one.get("cy") for one in circles}) == 3
    assert [t.text for t in image.iter("text") if t.get("class") == "number"] == ["1", "2", "3"]


def test_an_empty_lane_says_so() -> None:
    image = drawn(Chart(START, 1_000, (Lane("refused", "refuse", (0,) * SLOTS),)))
    assert "none" in [text.text for text in image.iter("text")]


def test_every_figure_stays_inside() -> None:
    image = drawn(a_chart(Mark(START + 60_000_000, "pulled", "the end")))
    _, _, wide, high = (float(part) for part in str(image.get("viewBox")).split())
    for element in image.iter():
        for name, end in (("x", wide), ("cx", wide), ("y", high), ("cy", high)):
            if element.get(name) is not None:
                assert 0 <= float(str(element.get(name))) <= end
