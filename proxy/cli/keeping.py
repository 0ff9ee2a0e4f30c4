"""`ledger backup|check`: a copy of the ledger while it is in use; whether one is whole."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.cli.places import data_directory, data_option
from proxy.cli.reading import DATABASE, reader
from proxy.cli.terminal import Failure, counted, escaped, loud, say, say_json

if TYPE_CHECKING:
    from ledger.backups import Backup
    from ledger.checks import Finding

FOUND_PROBLEMS, UNUSABLE = 3, 2
TRACE_DATABASE = "trace.db"  # as ledger/trace_schema.py has it, which is slow to import
_MIB = 1024 * 1024


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--trace", metavar="FILE", help="Copy the trace, too, to this file.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@data_option
def backup(file: str, trace: str | None, force: bool, as_json: bool, data: str | None) -> None:
    """Copy the ledger to FILE as it is now, while it is in use. Only you may read the copy.

    The keys beside it are not in it: without them kept answers cannot be opened.
    """
    from ledger.backups import backup as make
    from proxy.operations import timestamp

    directory = data_directory(data)
    with reader(directory) as connection:
        made = make(connection, Path(file), force=force)
    traced = _trace_backup(directory, Path(trace), force=force) if trace is not None else None
    at = None if made.at_us is None else timestamp(made.at_us)
    keys = str(directory / "private")
    if as_json:
        told = {"file": str(made.path), "bytes": made.size_bytes, "events": made.events}
        copied = {"trace": str(traced.path), "trace_bytes": traced.size_bytes} if traced else {}
        say_json({**told, "newest_at": at, "not_in_it": [keys], **copied})
        return
    newest = f", the newest of {at}" if at else ""
    size = f"{made.size_bytes / _MIB:.1f} MiB"
    say(f"{escaped(str(made.path))}: {size}, rows up to number {made.events}{newest}")
    if traced is not None:
        size = f"{traced.size_bytes / _MIB:.1f} MiB, {counted(traced.events, 'message')}"
        say(f"{escaped(str(traced.path))}: the trace, {size}")
    say(f"not in it: the keys in {escaped(keys)}; keep a copy of them apart from this one")
    say(f"prove that it is whole: pullcord ledger check {escaped(file)}")
    say(
        f"to go back to it: no pullcord runs, an empty data directory, the file as {DATABASE}, "
        "the folder private/ beside it"
        + ("" if traced is None else f", {escaped(str(trace))} as {TRACE_DATABASE}")
    )
    say("without that folder new keys are made: kept answers are lost, and verify finds it wrong")
    say("what happened after it is forgotten then: cords, revoked tokens, which writes were made")


def _trace_backup(directory: Path, path: Path, *, force: bool) -> "Backup":
    from contextlib import closing

    from ledger.backups import backup as make
    from ledger.trace_schema import open_trace

    trace = open_trace(directory)
    if trace is None:
        raise Failure(f"nothing is traced in {directory}; leave --trace out", UNUSABLE)
    with closing(trace):
        return make(trace, path, force=force, table="message")


@click.command()
@click.argument("file", metavar="[FILE]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@data_option
def check(file: str | None, as_json: bool, data: str | None) -> None:
    """Look whether the ledger, or a backup FILE, is whole.

    And whether it agrees with itself. It reads everything, while the proxy goes on; exit code 3
    when it finds a problem. Whether somebody has changed rows so that they still fit is for
    `ledger verify` to tell.
    """
    path = data_directory(data) / DATABASE if file is None else Path(file).absolute()
    if not path.exists():
        raise Failure(f"there is no {path}; name a ledger or a backup of one", UNUSABLE)
    from ledger.checks import checked_file

    wrong, skipped = False, ""
    for finding in checked_file(path):
        wrong = wrong or not finding.is_ok
        if as_json:
            told = {"check": finding.check, "ok": None if finding.skipped else finding.is_ok}
            say_json({**told, "found": finding.found, "skipped": finding.skipped or None})
        elif not finding.skipped or finding.skipped != skipped:
            _say(finding)
        skipped = finding.skipped
    if wrong:
        raise Failure(
            f"{path} is not whole; keep it, and go on with a backup of it while no pullcord runs",
            FOUND_PROBLEMS,
        )


def _say(finding: "Finding") -> None:
    if finding.skipped:
        say(f"skipped  all that follows: {finding.skipped}")
    elif finding.is_ok:
        say(f"ok       {finding.check}")
    else:
        say(loud(f"WRONG    {finding.check}: {counted(len(finding.found), 'problem')}"))
        for text in finding.found:
            say(f"         {escaped(text)}")
