"""The report as one page: all can read it, nothing in it comes to life, and it stays small."""

import html

import pytest

from ledger.open_incidents import new_id
from proxy.report_html import BYTES_MAX, fitting, page
from proxy.report_parts import (
    Appendix,
    Command,
    Document,
    Heading,
    Ref,
    Said,
    Section,
    Table,
    Words,
)
from proxy.report_sentences import ROOMS, document
from tests.ledger.conftest import template, world
from tests.ledger.world import World
from tests.proxy.page_checks import Page, contrast, faults, palettes
from tests.proxy.reported import HOSTILE, PROMPT, Runaway, a_runaway, facts, written

__all__ = ["template", "world"]


def test_a_report_is_a_page_that_everybody_can_read(world: World) -> None:
    a_runaway(world)
    text = page(written(world))
    assert faults(text) == []
    told = Page(text).text
    for words in (PROMPT, "calls refund with", "the same write 5 times", "halt:run:r1", "Appendix"):
        assert words in told
    assert "sk-live" not in text


def test_nothing_that_the_world_wrote_comes_to_life(world: World) -> None:
    a_runaway(world, hostile=HOSTILE)
    text = page(written(world))
    assert faults(text) == []
    assert "<script" not in text
    for controls in ("\x1b", "\u202e", "\u200b", "\r"):
        assert controls not in text
    assert "\\u202etxt.exe" in text
    assert "&lt;/pre&gt;" in text


def test_every_part_is_harmless() -> None:
    """Also those in which a ledger cannot hold such text."""
    table = Table(HOSTILE, (HOSTILE, "b"), ((HOSTILE, Command(HOSTILE)), (Ref(HOSTILE), 5)))
    parts = (
        Said(HOSTILE, HOSTILE, (HOSTILE, "known")),
        Heading(HOSTILE, HOSTILE),
        Words(HOSTILE, HOSTILE),
        Appendix(Table("Calls", ("call", "what"), ((Ref("known"), HOSTILE),))),
        table,
    )
    sections = (Section("All of it", (Heading("first"), *parts)),)
    text = page(Document(HOSTILE, sections, {"known": 1}))
    assert [one for one in faults(text) if "follows" not in one] == []
    assert '<a href="#call-1">call 1</a>' in text
    assert '<tr id="call-1">' in text


def test_a_sentence_leads_to_its_command_and_its_calls(world: World) -> None:
    made = a_runaway(world)
    text = page(written(world))
    parsed = Page(text)
    assert parsed.links.count("#call-10") > 2
    assert html.escape(f"pullcord ledger show {made.ids[9]}") in text


@pytest.mark.parametrize("setting", [0, 1, 2])
def test_colours_can_be_told_apart(setting: int) -> None:
    colours = palettes(Page(page(Document("x", ()))).style)
    assert len(colours) == 3
    palette = colours[setting]
    for ink in ("ink", "quiet", "link", "bad", "good", "money", "warm"):
        for ground in ("paper", "panel"):
            assert contrast(palette[ink], palette[ground]) >= 4.5, (ink, ground)


def test_contrast_is_as_wcag_counts_it() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_ten_thousand_hostile_calls_stay_small(world: World) -> None:
    made = Runaway(world, hostile=HOSTILE * 4)
    writes = [made.step(number, traced=number > 90) for number in range(100)]
    made.trip(writes[0], *writes[-30:])
    with world.store.transaction(durable=True):
        for number in range(9_800):
            ask = world.ask(new_id(world.now_us), body=f"l{number}", target=HOSTILE)
            world.store.admit(ask, world.policy, world.judge)
    made.keep()
    told = facts(world)
    assert told["scope"]["calls"]["count"] == 10_000
    text = fitting(lambda size: document(told, ROOMS[size]), len(ROOMS))
    assert len(text.encode()) < BYTES_MAX
    assert faults(text) == []
    assert "The incident has 10,000 calls." in text


def test_the_largest_that_fits_is_taken() -> None:
    def made(size: int) -> Document:
        words = Words("said", "x" * (BYTES_MAX if size == 0 else 10))
        return Document(f"size {size}", (Section("One", (words,)),))

    assert "<h1>size 1</h1>" in fitting(made, 3)
    assert "<h1>size 0</h1>" in fitting(lambda _: made(0), 1)
