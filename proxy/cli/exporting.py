"""`ledger export`: calls in the formats of other programs, streamed."""

import sys
from collections.abc import Iterator
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from proxy.cli import filtering
from proxy.cli.places import data_directory, data_option
from proxy.cli.reading import reader
from proxy.cli.terminal import counted, escaped, say, warn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.exports import Traced

FORMATS = ("jsonl", "csv", "har", "flows")
_AT_ONCE = 64  # pieces that are written at once


@click.command(context_settings=filtering.SETTINGS)
@filtering.argument
@click.option("--format", "form", type=click.Choice(FORMATS), required=True, help="Which form.")
@click.option("--output", metavar="FILE", help="A new file, readable by you alone; else stdout.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@data_option
def export(
    filters: tuple[str, ...], form: str, output: str | None, force: bool, data: str | None
) -> None:
    """Write calls, oldest first, for other programs.

    Those that the filters let through, as of query. jsonl is one object a line, as of query --json;
    csv is for spreadsheets; har is HTTP Archive 1.2; flows is a file that mitmproxy opens. Headers
    and bodies of these two are the trace's: secrets are masked in them.
    """
    from ledger.paging import every_call
    from proxy import traces

    if output is None and form == "flows" and sys.stdout.isatty():
        raise click.UsageError("flows are no text for a terminal: --output FILE")
    if output is None and force:
        raise click.UsageError("--force is for --output FILE")
    directory = data_directory(data)
    with reader(directory) as connection, traces.opened(connection, directory) as opened:
        tally = _Tally(every_call(connection, filtering.parsed(filters, opened)))
        if output is None:
            _write(_pieces(form, tally, opened.of), sys.stdout.buffer)
            return
        from ledger.whole_file import new_file

        with (
            new_file(Path(output).absolute(), force=force) as unfinished,
            unfinished.open("wb") as file,
        ):
            _write(_pieces(form, tally, opened.of), file)
    say(f"exported {counted(tally.count, 'call')} to {escaped(output)}", err=True)
    if not tally.count:
        warn("no call passes these filters; pullcord ledger query shows what there is")


class _Tally:
    """Counts what goes by."""

    def __init__(self, rows: "Iterable[dict[str, Any]]") -> None:
        self._rows = rows
        self.count = 0

    def __iter__(self) -> "Iterator[dict[str, Any]]":
        for row in self._rows:
            self.count += 1
            yield row


def _pieces(form: str, rows: "Iterable[dict[str, Any]]", traced: "Traced") -> Iterator[bytes]:
    if form == "flows":
        from proxy.engines.mitm_flows import flows

        return flows(rows, traced)
    from proxy import exports

    texts = {
        "jsonl": lambda: exports.jsonl(rows),
        "csv": lambda: exports.as_csv(rows),
        "har": lambda: exports.har(rows, traced, _version()),
    }[form]()
    return (text.encode("utf-8", "backslashreplace") for text in texts)


def _write(pieces: Iterator[bytes], file: BinaryIO) -> None:
    for some in batched(pieces, _AT_ONCE):
        file.write(b"".join(some))
    file.flush()


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pullcord")
    except PackageNotFoundError:
        return "unknown"
