"""`ledger verify|prune`: is the record as it was written; take old rows out of it, provably."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.acting import act_alone, check_place
from proxy.cli.places import config_option, data_directory, data_option
from proxy.cli.pulled import done
from proxy.cli.reading import DATABASE, LOCK
from proxy.cli.terminal import Failure, counted, escaped, loud, say, say_json

if TYPE_CHECKING:
    from ledger.seals import PublicKeys
    from ledger.sqlite import sqlite3
    from ledger.verification import Verified
    from proxy.clock import Clock

FOUND_PROBLEMS, UNUSABLE = 3, 2
PRUNE_SECONDS = 3_600.0  # ten million rows take about a quarter of it

Answer = dict[str, Any]


@click.command()
@click.argument("file", metavar="[FILE]", required=False)
@click.option("--seals", metavar="FILE", help="Copies of the seals that were kept elsewhere.")
@click.option("--public-key", metavar="FILE", help="In place of DATA/private/seal.pub.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@data_option
def verify(
    file: str | None, seals: str | None, public_key: str | None, as_json: bool, data: str | None
) -> None:
    """Look whether the ledger, or a backup FILE, is as it was written.

    Every row is chained to the one before it, and the chain is signed once a minute. It names the
    first row that was changed, taken out, put in or moved; exit code 3 then. The end of the ledger
    in use is compared with the newest seal, DATA/private/seal.last; that of a copy only with the
    copies of the seals that you give. The proxy goes on meanwhile. Who can write DATA/private can
    write all of it anew: against that, keep copies of the seals elsewhere (setting seals) and give
    them as --seals.
    """
    directory = data_directory(data)
    path = directory / DATABASE if file is None else Path(file).absolute()
    if not path.exists():
        raise Failure(f"there is no {path}; name a ledger or a backup of one", UNUSABLE)
    from ledger.connection import open_file
    from ledger.errors import Kind, LedgerUnavailable
    from ledger.verification import verify as look

    keys, pem = _keys(directory, public_key)
    newest = _newest(path)  # before the ledger, which must have it
    try:
        connection = open_file(path)
    except LedgerUnavailable as error:
        code = FOUND_PROBLEMS if error.kind is Kind.CORRUPT else UNUSABLE
        raise Failure(str(error), code) from error
    with contextlib.closing(connection), _copies(seals) as copies, _trace(path) as trace:
        found = look(
            connection,
            keys,
            copies=copies,
            newest=newest,
            trace=trace,
            in_place=_in_place(path),
        )
    if as_json:
        say_json(_as_json(path, found, keys, pem))
    else:
        _say(found, keys, pem, seals)
    if found.problems:
        raise Failure(f"{path} is not as it was written: {found.problems[0].what}", FOUND_PROBLEMS)


def _keys(directory: Path, named: str | None) -> "tuple[PublicKeys, str]":
    from ledger.seals import PublicKeys
    from proxy.sealing import PUBLIC_FILE, public_keys

    path = directory / PUBLIC_FILE if named is None else Path(named)
    if named is None and not path.exists():
        return PublicKeys(), ""
    return public_keys(path), path.read_text("ascii")


_UNCOMPARED = (
    "not compared with the newest seal (private/seal.last of a ledger in use): whether rows and "
    "seals were cut off at the end is only seen by --seals"
)


@contextlib.contextmanager
def _copies(name: str | None) -> "Iterator[Iterator[bytes] | None]":
    if name is None:
        yield None
        return
    try:
        with Path(name).open("rb") as lines:
            yield lines
    except OSError as error:
        raise Failure(f"cannot read {name}: {error.strerror}", UNUSABLE) from None


@contextlib.contextmanager
def _trace(ledger: Path) -> "Iterator[sqlite3.Connection | None]":
    """The trace beside a ledger in use; a backup has none."""
    from ledger.trace import open_trace

    opened = open_trace(ledger.parent) if _in_place(ledger) else None
    if opened is None:
        yield None
        return
    with contextlib.closing(opened):
        yield opened


def _newest(ledger: Path) -> bytes | None:
    """The newest seal, kept beside the keys of a ledger in use; a backup has none."""
    from ledger.errors import LedgerError
    from proxy.last_seal import read_last

    try:
        return read_last(ledger.parent) if _in_place(ledger) else None
    except LedgerError as error:
        raise Failure(str(error), UNUSABLE) from error


def _in_place(ledger: Path) -> bool:
    """Whether it is in a data directory, not a copy."""
    return ledger.name == DATABASE and (ledger.parent / LOCK).exists()


def _as_json(path: Path, found: "Verified", keys: "PublicKeys", pem: str) -> Answer:
    seal = found.last_seal
    return {
        "file": str(path),
        "ok": not found.problems,
        "rows": found.rows,
        "first_at": _moment(found.first_us),
        "last_at": _moment(found.last_us),
        "last_seq": found.last.seq,
        "gaps": found.gaps,
        "pruned": found.pruned,
        "seals": found.seals,
        "sealed_to": seal and seal.seq,
        "sealed_at": seal and _moment(seal.at_us),
        "unsealed": found.unsealed,
        "policies": found.policies,
        "copies": found.copies,
        "newest_compared": found.is_newest_compared,
        "behind": found.behind,
        "trace": found.trace,
        "bodies": found.bodies,
        "trace_losses": found.trace_losses,
        "keys": keys.ids,
        "public_key": pem,
        "problems": [
            {"what": each.what, "seq": each.seq, "call": each.call_id} for each in found.problems
        ],
    }


def _moment(at_us: int | None) -> str | None:
    from ledger.seal_checks import moment

    return None if at_us is None else moment(at_us)


def _say(found: "Verified", keys: "PublicKeys", pem: str, seals: str | None) -> None:
    when = f", {_moment(found.first_us)} to {_moment(found.last_us)}" if found.rows else ""
    gone = f"; {found.pruned} pruned, in {counted(found.gaps, 'signed gap')}" if found.gaps else ""
    say(f"record   {counted(found.rows, 'row')} up to number {found.last.seq}{when}{gone}")
    seal = found.last_seal
    if seal is None:
        say("seals    none yet: the running proxy makes one within a minute, and one at its end")
    else:
        over = f"the last over row {seal.seq} at {_moment(seal.at_us)}"
        say(f"seals    {found.seals}, {over}; {counted(found.unsealed, 'row')} behind it")
    say(f"policies {counted(found.policies, 'text')}")
    if found.copies is not None:
        say(f"copies   {counted(found.copies, 'seal')} as in {escaped(seals or '')}")
    if found.trace is not None:
        bodies = "body" if found.bodies == 1 else "bodies"
        say(f"trace    {counted(found.trace, 'message')}, {found.bodies or 0} {bodies}")
    if found.trace_losses:
        times = counted(found.trace_losses, "time")
        say(loud(f"BEHIND   the trace ended before what was sealed of it, {times}"))
    for told in found.behind:
        say(loud(f"BEHIND   the ledger was without its newest seal at a start; {escaped(told)}"))
    if not found.is_newest_compared:
        say(f"note     {_UNCOMPARED}")
    for key in keys.ids:
        say(f"key      {key}")
    for problem in found.problems:
        call = f" (call {escaped(problem.call_id)})" if problem.call_id else ""
        say(loud(f"WRONG    {escaped(problem.what)}{call}"))
    if not found.problems:
        say("ok       all of it is as it was written")
    if pem:
        say(escaped(pem.strip(), keep="\n"))


@click.command()
@click.option("--older-than", required=True, metavar="90d", help="Which rows go; a time, too.")
@click.option("--trace-older-than", metavar="30d", help="What of the trace goes with them.")
@click.option("--trace-max", metavar="SIZE", help="Its oldest messages go, down to SIZE (2GB).")
@click.option("--dry-run", is_flag=True, help="Only count, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@data_option
@config_option
def prune(
    older_than: str,
    trace_older_than: str | None,
    trace_max: str | None,
    dry_run: bool,
    as_json: bool,
    data: str | None,
    config: str | None,
) -> None:
    """Take rows out of the ledger that are older than that.

    Whole calls only. What still counts stays: calls that are open, held, or of unknown outcome that
    nobody resolved, claims that protect, cords that stand, tokens that live, policies. A signed gap
    is left in their place, by which `ledger verify` knows that it was you. The file keeps its size,
    and new rows take the room.
    """
    directory = data_directory(data, config)

    def alone(clock: "Clock", actor: str) -> Answer:
        from proxy.pruning import pruned_alone, wanted

        check_place(directory)
        asked = wanted(older_than, trace_older_than, trace_max, dry_run, clock.now_us())
        return pruned_alone(directory, asked, clock, actor)

    body = {"older_than": older_than, "dry_run": dry_run}
    body |= {"trace_older_than": trace_older_than, "trace_max": trace_max}
    answer = act_alone(directory, "/v1/prune", body, alone, PRUNE_SECONDS, counts_later=False)
    with done("pruned"):
        if as_json:
            say_json(answer)
        else:
            _say_pruned(answer)


def _say_pruned(answer: Answer) -> None:
    went = "would go" if answer["dry_run"] else "pruned"
    rows, calls = counted(answer["rows"], "row"), counted(answer["calls"], "call")
    say(f"{went}: {rows}, {calls}, older than {answer['before']}")
    told = answer["trace"]
    if told is None:
        return
    if answer["dry_run"]:
        say(f"trace: holds {counted(told['messages'], 'message')} now, {told['bytes']} bytes")
        return
    left = f"{told['left']['messages']} left, {told['left']['bytes']} bytes"
    gone = counted(told["messages"], "message")
    say(f"trace: {gone} pruned, {told['bytes']} bytes; {left}")
