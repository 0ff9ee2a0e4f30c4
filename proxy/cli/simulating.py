"""`policy simulate`: the record, judged by a policy."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.places import config_directory, config_option, data_directory, data_option
from proxy.cli.reading import reader
from proxy.cli.terminal import Failure, counted, escaped, say, say_json, say_table, span

if TYPE_CHECKING:
    from ledger.replaying import Period
    from policies.comparing import Comparison, Counted, Tally
    from policies.policy import Policy
    from policies.simulated import Judged

WOULD_CHANGE = 3
TELL_EVERY_SECONDS = 2.0  # how far it is, on a terminal


@click.command()
@click.option(
    "--since", default="24h", show_default=True, metavar="WHEN", help="From when: 2h, 3d."
)
@click.option("--until", metavar="WHEN", help="To when; now if left out.")
@click.option(
    "--policy",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Another policy than the one in force.",
)
@click.option("--run", metavar="R", help="Tell only of this run and those below it.")
@click.option("--tenant", metavar="T", help="Tell only of this tenant.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object a line, each flip too."
)
@config_option
@data_option
def simulate(
    since: str,
    until: str | None,
    file: Path | None,
    run: str | None,
    tenant: str | None,
    as_json: bool,
    config: str | None,
    data: str | None,
) -> None:
    """What the policy would have said to the calls of the record.

    Told by detector and ceiling: what it would have stopped, and what that would have saved; then
    the flips: calls that passed and would not have, and the other way round. Calls go on as they
    were recorded, whatever is said to them; those that it stops hold and cost nothing. What the
    record cannot tell is counted, never guessed. Nothing is changed. Exits with 3 when anything
    would have been otherwise.
    """
    from ledger.filters import moment
    from policies.load import PolicyError, load_file
    from proxy.clock import SystemClock

    now_us = SystemClock().now_us()
    since_us, until_us = moment(since, now_us), moment(until, now_us) if until else None
    if until_us is not None and until_us <= since_us:
        raise click.UsageError("--until is not after --since")
    try:
        policy = load_file(file or config_directory(config) / "policy.yaml")
    except PolicyError as error:
        raise Failure(str(error), 2) from None
    chosen, found = _simulated(
        data_directory(data, config), policy, since_us, until_us,
        _wanted(run, tenant), _say_flip if as_json else None,
    )  # fmt: skip
    if as_json:
        _say_json(policy, chosen, found)
    else:
        _say(policy, chosen, found)
    if found.changes:
        raise click.exceptions.Exit(WOULD_CHANGE)


def _wanted(run: str | None, tenant: str | None) -> Callable[[tuple[str, ...], str], bool]:
    return lambda runs, of: (run is None or run in runs) and tenant in (None, of)


def _simulated(
    data: Path,
    policy: "Policy",
    since_us: int,
    until_us: int | None,
    wanted: Callable[[tuple[str, ...], str], bool],
    flipped: "Callable[[Judged], None] | None",
) -> "tuple[Period, Comparison]":
    from ledger.replaying import Replay, period, policies_of, scratch
    from policies.comparing import Comparison
    from policies.decide import decide
    from policies.load import PolicyError, load
    from policies.recognizing import Recognizing
    from policies.simulating import Simulation

    with reader(data) as connection, scratch() as windows:
        text = policies_of(connection)
        known: dict[str, Policy | None] = {policy.digest: policy}

        def before(digest: str) -> "Policy | None":
            if digest not in known:
                known[digest] = None
                with contextlib.suppress(PolicyError):
                    known[digest] = load(text(digest) or "")
            return known[digest]

        chosen = period(connection, since_us, until_us, policy)
        simulation = Simulation(policy, windows, Recognizing(policy, before), decide)
        found = Comparison(simulation.is_told, wanted, flipped)
        for _ in _told(
            Replay(connection, chosen, simulation, windows, found).pieces(), chosen.rows
        ):
            pass
        return chosen, found


def _told(pieces: Iterator[int], rows: int) -> Iterator[int]:
    """Now and then a person is told how far it is."""
    watched = sys.stderr.isatty()
    next_seconds = time.monotonic() + TELL_EVERY_SECONDS
    was_told = False
    for done in pieces:
        if watched and time.monotonic() > next_seconds:
            next_seconds = time.monotonic() + TELL_EVERY_SECONDS
            click.echo(f"\r{done:,} of {rows:,} rows ", err=True, nl=False)
            was_told = True
        yield done
    if was_told:
        click.echo("\r\x1b[K", err=True, nl=False)


# ---------------------------------------------------------------------------------- for people


def _say(policy: "Policy", chosen: "Period", found: "Comparison") -> None:
    say(
        f"{escaped(policy.source)} ({policy.digest[:12]}): {counted(found.calls, 'decision')} of "
        f"{chosen.end - chosen.first:,} rows"
    )
    rows = [_row(rule, tally) for rule, tally in _sorted(found)]
    if rows:
        say_table(_TITLES, rows)
        for rule, tally in _sorted(found):
            if tally.examples:
                say(f"{escaped(_name(policy, rule))}: {' '.join(map(escaped, tally.examples))}")
        say()
    flips = sorted(found.flips.items(), key=lambda one: -one[1].calls)
    for flip, calls in flips:
        was, would = (f"{action} ({reason})" for action, reason in (flip.was, flip.would))
        say(f"flip   {calls.calls:,} times {was} -> {would}: {_ids(calls)}")
    if not flips:
        say("flips  none: each call would have been let through or stopped as it was")
    if found.otherwise:
        say(f"and {found.otherwise:,} would have been stopped for another reason")
    if found.not_begun:
        say(f"and {counted(found.not_begun, 'run')} would not have been started")
    unjudged = sum(calls.calls for calls in found.unjudged.values())
    say(f"not judgeable: {unjudged:,}")
    for why, calls in found.unjudged.items():
        say(f"  {calls.calls:,}: {why}: {_ids(calls)}")
    for line in _assumed(policy, chosen):
        say(f"assumed: {line}")


_TITLES = ("rule", "alerts", "trips", "cords", "stops", "made", "runs", "saved")


def _sorted(found: "Comparison") -> "list[tuple[str, Tally]]":
    """Detectors and ceilings first, of these what changes most."""

    def key(one: "tuple[str, Tally]") -> tuple[bool, int, int]:
        rule, tally = one
        ours = rule.startswith(("detector:", "ceiling:"))
        return not ours, -tally.spared.calls, -tally.stopped.calls

    return sorted(found.rules.items(), key=key)


def _row(rule: str, tally: "Tally") -> tuple[object, ...]:
    from policies.detectors.step import Severity

    alerts = len(tally.found.get(Severity.ALERT, ())) or tally.crossed
    counts = (
        *(alerts, len(tally.found.get(Severity.TRIP, ())), tally.cords),
        *(tally.stopped.calls, tally.spared.calls, len(tally.runs)),
    )
    return rule, *(f"{count:,}" if count else "" for count in counts), _saved(tally)


def _saved(tally: "Tally") -> str:
    from policies.ceilings import usd

    if not tally.spared.calls:
        return ""
    seconds = f"{span(tally.saved_us / 1e6)}, " if tally.saved_us else ""
    return f"{seconds}{usd(tally.saved_microusd)} USD"


def _name(policy: "Policy", rule: str) -> str:
    """With what it says, where it is a ceiling."""
    for ceiling in policy.ceilings:
        if rule == f"ceiling:{ceiling.id}":
            return f"{rule}, {ceiling}"
    return rule


def _ids(calls: "Counted") -> str:
    return " ".join(map(escaped, calls.examples))


def _assumed(policy: "Policy", chosen: "Period") -> list[str]:
    warm = chosen.first - chosen.warm
    lines = [
        f"windows and detectors were warmed by {warm:,} rows ({span(chosen.warm_us / 1e6)}) before "
        "the period",
        "what was requested after a stop would have been requested all the same, and what a "
        "person is asked would have been approved",
        "spend is as recorded; what a stream draws counts at its end; messages inside WebSockets, "
        "what runs ask of pullcord itself and budgets adjusted by hand are not counted",
    ]
    if any(ceiling.within_us is None for ceiling in policy.ceilings):
        lines.insert(1, "limits for life and budgets had nothing used before these rows")
    return lines


# ---------------------------------------------------------------------------------- for programs


def _say_flip(judged: "Judged") -> None:
    from proxy.operations import timestamp

    asked, verdict = judged.asked, judged.verdict
    if verdict is not None:
        say_json(
            {
                "kind": "flip",
                "id": asked.call_id,
                "at": timestamp(asked.at_us),
                "tenant": asked.identity.tenant,
                "run": asked.identity.run,
                "tool": asked.call.tool,
                "was": {"decision": asked.action, "reason": asked.reason, "rule": asked.rule},
                "would": {
                    "decision": verdict.action,
                    "reason": verdict.reason,
                    "rule": verdict.rule,
                    "cause": judged.cause,
                },
            }
        )


def _say_json(policy: "Policy", chosen: "Period", found: "Comparison") -> None:
    from policies.ceilings import usd
    from policies.detectors.step import Severity

    for rule, tally in _sorted(found):
        say_json(
            {
                "kind": "rule",
                "rule": rule,
                "alerts": len(tally.found.get(Severity.ALERT, ())) or tally.crossed,
                "trips": len(tally.found.get(Severity.TRIP, ())),
                "cords": tally.cords,
                "stops": tally.stopped.calls,
                "made": tally.spared.calls,
                "runs": len(tally.runs),
                "saved_seconds": tally.saved_us / 1e6,
                "saved_usd": usd(tally.saved_microusd),
                "examples": tally.examples,
            }
        )
    for why, calls in found.unjudged.items():
        say_json(
            {"kind": "not_judgeable", "why": why, "calls": calls.calls, "examples": calls.examples}
        )
    say_json(_summary(policy, chosen, found))


def _summary(policy: "Policy", chosen: "Period", found: "Comparison") -> dict[str, Any]:
    return {
        "kind": "summary",
        "policy": policy.digest,
        "rows": chosen.end - chosen.first,
        "rows_before": chosen.first - chosen.warm,
        "decisions": found.calls,
        "flips": sum(calls.calls for calls in found.flips.values()),
        "stopped_otherwise": found.otherwise,
        "not_started": found.not_begun,
        "not_judgeable": sum(calls.calls for calls in found.unjudged.values()),
        "would_change": found.changes,
        "assumed": _assumed(policy, chosen),
    }
