"""The report as Markdown: it renders, and what the world wrote means nothing but itself."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from proxy.report_markdown import inert, markdown
from proxy.report_parts import (
    Appendix,
    Command,
    Document,
    Ref,
    Said,
    Section,
    Table,
    Words,
    in_cell,
)
from tests.ledger.conftest import template, world
from tests.ledger.world import World
from tests.proxy.reported import HOSTILE, PROMPT, a_runaway, written

__all__ = ["template", "world"]

ROWS: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "cases" / "report_text.yaml").read_text("utf-8")
)


def named(row: dict[str, Any]) -> str:
    return str(row["it"])


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_a_text_of_the_world(row: dict[str, Any]) -> None:
    assert inert(row["text"]) == row["markdown"]
    if "cell" in row:
        assert in_cell(row["text"], 40) == row["cell"]


@pytest.mark.parametrize("row", ROWS, ids=named)
@pytest.mark.parametrize("place", ["{}", "> {}  ", "words {} and", "| a |\n|---|\n| {} |"])
def test_it_renders_as_itself(row: dict[str, Any], place: str) -> None:
    """By another program's reading of CommonMark: nothing but text and our own code spans."""
    tokens = flat(MarkdownIt("commonmark").enable("table").parse(place.format(inert(row["text"]))))
    alive = {"link_open", "image", "html_inline", "html_block", "em_open", "strong_open", "fence",
             "heading_open", "bullet_list_open", "ordered_list_open", "hr"}  # fmt: skip
    assert not alive & {one.type for one in tokens}
    assert {one.content.strip("@") for one in tokens if one.type == "code_inline"} <= {""}


def flat(tokens: list[Token]) -> list[Token]:
    return [each for one in tokens for each in (one, *flat(one.children or []))]


def rendered(text: str) -> list[Token]:
    return flat(MarkdownIt("commonmark").enable("table").parse(text))


def test_a_report_renders(world: World) -> None:
    a_runaway(world)
    text = markdown(written(world))
    tokens = rendered(text)
    kinds = [one.type for one in tokens]
    assert kinds.count("table_open") >= 8
    assert kinds.count("heading_open") >= 12
    links = {str(one.attrs["href"]) for one in tokens if one.type == "link_open"}
    places = {one.content for one in tokens if one.type == "html_inline"} - {"</a>"}
    assert links
    assert all(f'<a id="{link[1:]}">' in places for link in links)
    assert PROMPT in text
    assert "sk-live" not in text


def test_a_hostile_report_has_no_more_than_our_own_markup(world: World) -> None:
    made = a_runaway(world, hostile=HOSTILE)
    tokens = rendered(markdown(written(world)))
    assert {one.markup for one in tokens if one.type == "heading_open"} == {"#", "##", "###"}
    assert sum(one.type == "heading_open" and one.tag == "h1" for one in tokens) == 1
    html = {one.content for one in tokens if one.type in ("html_inline", "html_block")}
    assert all(one == "</a>" or one.startswith('<a id="call-') for one in html)
    links = {str(one.attrs["href"]) for one in tokens if one.type == "link_open"}
    assert all(link.startswith("#call-") for link in links)
    assert not any(one.type in ("image", "em_open", "fence") for one in tokens)
    assert made.ids


def test_a_command_in_a_cell_keeps_its_bar_and_its_ticks() -> None:
    table = Table("t", ("a", "b"), (("x", Command("a | `b`")), (Ref("nobody"), 1_000)))
    text = markdown(Document("d", (Section("S", (table, Words("w", "  a\n\n# b"))),)))
    assert "| x | `` a \\| `b` `` |" in text
    assert "| call `nobody` | 1,000 |" in text
    assert "> &nbsp;&nbsp;a  \n>   \n> \\# b" in text


def test_calls_of_the_appendix_have_places() -> None:
    appendix = Appendix(Table("Calls", ("call", "id"), ((Ref("c1"), "c1"),)))
    said = Said("It paid.", "pullcord ledger show c1", ("c1",))
    text = markdown(Document("d", (Section("S", (said, appendix)),), {"c1": 1}))
    assert "It paid. [call 1](#call-1) `pullcord ledger show c1`" in text
    assert '| <a id="call-1"></a>1 | c1 |' in text
