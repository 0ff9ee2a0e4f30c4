"""How things are shown: text of the world made harmless, words before colours, one object a line.

Nothing here knows what is shown. rich is imported when a table is printed, not before.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

FAR = 10**6  # columns of "as wide as it needs" when nobody watches: nothing is cut for a pipe


class Failure(click.ClickException):
    """A sentence on stderr and an exit code (design, section 6)."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads the instance's

    def show(self, file: Any = None) -> None:
        click.echo(f"pullcord: {escaped(self.message, keep='\n')}", file=file, err=True)


def escaped(text: str, keep: str = "") -> str:
    """One line that shows what it holds: terminal controls, bidi marks, line breaks and all else
    that is not printable stand as escapes, except the characters in `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def say(text: str = "", *, err: bool = False) -> None:
    """A line of our own words. Text of the world in it must be `escaped` before."""
    click.echo(text, err=err)


def warn(text: str) -> None:
    click.echo(click.style(escaped(text), fg="yellow"), err=True)


def loud(text: str) -> str:
    """What must not be missed; the words say it too."""
    return click.style(text, fg="red", bold=True)


def say_json(row: Any) -> None:
    """One object on one line. JSON escapes controls; what is not ASCII stays as it is."""
    click.echo(json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=_plain))


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def say_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns that fit the terminal; cells too long for it end in dots. In a pipe none is cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    watched = sys.stdout.isatty()
    console = Console(file=sys.stdout, highlight=False, width=None if watched else FAR)
    table = Table(box=box.SIMPLE_HEAD if watched else None, pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=True, overflow="ellipsis")
    for row in rows:
        cells = ["" if cell is None else _plain(cell) for cell in row]
        table.add_row(*(Text(escaped(cell)) for cell in cells))
    console.print(table)


def span(seconds: float) -> str:
    """A length of time in its two largest units: `3d 4h`, `2m 5s`."""
    left = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        amount, left = divmod(left, length)
        if amount or (unit == "s" and not parts):
            parts.append(f"{amount}{unit}")
    return " ".join(parts[:2])


def counted(amount: int, word: str) -> str:
    """`1 body`, `2 bodies`, `3 calls`."""
    if amount == 1:
        return f"1 {word}"
    return f"{amount} {word[:-1]}ies" if word.endswith("dy") else f"{amount} {word}s"
