"""What a report is made of, whatever it is written as: sections of sentences, tables and words.

Text in these is as the record has it. Whoever writes it makes it harmless for its kind of page;
`visible` and `cut` are what all of them do first. Plain values, nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from proxy.report_chart import Chart


@dataclass(frozen=True, slots=True)
class Said:
    """A sentence, the command that shows what it stands on, and the calls that it is about."""

    text: str
    command: str = ""
    calls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Sentences that are read as one; what shows each stands under it."""

    sentences: tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class Ref:
    """A call, by its id."""

    id: str


@dataclass(frozen=True, slots=True)
class Command:
    text: str


Cell = str | int | None | Ref | Command


@dataclass(frozen=True, slots=True)
class Table:
    caption: str
    titles: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Words:
    """What somebody or something said, word for word, with its line breaks."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Heading:
    """Of a part of a section, about a call."""

    text: str
    call: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A chart. The tables beside it say the same in words."""

    chart: Chart


@dataclass(frozen=True, slots=True)
class Appendix:
    """The calls that other parts lead to, each with its number."""

    table: Table


Part = Said | Paragraph | Table | Words | Heading | Picture | Appendix


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """`numbers` are those of the calls in the appendix, by id. A cell shows at most
    `cell_characters` of what the world wrote."""

    title: str
    sections: tuple[Section, ...]
    numbers: Mapping[str, int] = field(default_factory=dict)
    cell_characters: int = 120


# What a spreadsheet takes for the start of a formula, in some places also the wide forms (OWASP).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
# What takes no room, or looks like a blank, although it counts as printable.
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufe0f\ufe0e")


def visible(text: str, keep: str = "") -> str:
    """Controls, bidi marks and what else cannot be seen stand as escapes, except the characters
    in `keep`."""
    if text.isprintable() and _UNSEEN.isdisjoint(text):
        return text
    return "".join(
        c if c in keep or (c.isprintable() and c not in _UNSEEN) else ascii(c)[1:-1] for c in text
    )


def cut(text: str, characters: int) -> str:
    """At most so many of them; the last says that there was more."""
    return text if len(text) <= characters else f"{text[: max(characters - 1, 0)]}\u2026"


def in_cell(text: str, characters: int) -> str:
    """A text of the world for a table: one line, no formula for whoever pastes it elsewhere."""
    shown = cut(visible(text), characters)
    formula = text.strip(" \u00a0\ufeff").startswith(_FORMULA)
    return f"'{shown}" if formula else shown


def counted(amount: int, word: str) -> str:
    """`1 call`, `2 calls`."""
    return f"1 {word}" if amount == 1 else f"{amount:,} {word}s"
