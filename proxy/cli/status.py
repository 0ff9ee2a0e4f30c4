"""`status`: is the proxy up, what is pulled, what is on its way."""

from pathlib import Path
from typing import Any

import click

from proxy.cli.acting import policy_or_none
from proxy.cli.incidents import in_one_line
from proxy.cli.places import data_directory, data_option
from proxy.cli.reading import told_cord
from proxy.cli.terminal import counted, escaped, loud, say, say_json, say_table, span
from proxy.control_client import OLDER, Unreachable, ask

INCIDENT = 11
PULLED = 10
PROBLEMS = 3
UNREACHABLE = 5
CALLS_SHOWN_MAX = 20
LIMITS_SHOWN_MAX = 5
BESIDE = (
    "an agent of this proxy's own Unix user is not contained: pullcord run --user NAME or --contain"
)


@click.command(short_help="Is the proxy up, what is pulled, what is on its way.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--exit-code",
    is_flag=True,
    help=f"Exit with {INCIDENT} when an incident is open, else with {PULLED} when something is "
    f"pulled, else with {PROBLEMS} when nothing passes.",
)
@data_option
def status(as_json: bool, exit_code: bool, data: str | None) -> None:
    """Is the proxy up, what is pulled, what is on its way. Exits with 5 when no proxy answers."""
    directory = data_directory(data)
    try:
        state: dict[str, Any] = ask(directory, "GET", "/v1/status")
    except Unreachable as dead:
        _say_dead(directory, dead, as_json)
        raise click.exceptions.Exit(UNREACHABLE) from None
    if as_json:
        say_json({"up": True, **state})
    else:
        _say_up(state)
    if exit_code and state.get("incidents", {}).get("open"):
        raise click.exceptions.Exit(INCIDENT)
    if exit_code and state["pulled"]:
        raise click.exceptions.Exit(PULLED)
    if exit_code and _passes_nothing(state):
        raise click.exceptions.Exit(PROBLEMS)


def _passes_nothing(state: dict[str, Any]) -> bool:
    """Whether every call is refused, whatever the policy says."""
    if state["ledger"]["error"] or state["clock"]["stepped_seconds"]:
        return True
    return not state["listening"] or not state["fleet"]["engines"]


def _say_dead(data: Path, dead: Unreachable, as_json: bool) -> None:
    from proxy.clock import SystemClock
    from proxy.screen import status_on_disk

    state = status_on_disk(data, SystemClock().now_us(), policy_or_none())
    if as_json:
        say_json({"up": False, "error": str(dead), **state})
        return
    say(f"proxy   {loud('DOWN')}  {escaped(str(dead))}")
    engines = state["fleet"]["engines"]
    if engines:
        say(f"fleet   {loud(counted(engines, 'engine'))} alive without a decider: nothing passes")
    failure = state["ledger"]["error"]
    if failure:
        say(loud(f"ledger  cannot be read, so what is pulled is not known: {escaped(failure)}"))
    if state["pulled"] or not failure:
        _say_cords(state)
    _say_parts(state)


def _say_up(state: dict[str, Any]) -> None:
    policy, ledger = state["policy"], state["ledger"]
    listening = escaped(state["listening"] or "") or loud("does not listen")
    verdict = f"{loud('INVALID')}, the last good one is in force" if policy["error"] else "OK"
    health = loud("FAILS, nothing passes") if ledger["error"] else "ok"
    say(
        f"proxy   up {span(state['up_seconds'])}  pid {state['proxy_pid']}  {listening}  "
        f"policy {policy['digest'][:12]} ({escaped(policy['source'])}, {verdict})  "
        f"ledger {health}{_prices(state)}"
    )
    _say_fleet(state["fleet"])
    if "signals" in state:
        _say_signals(state["signals"])
    if policy["error"]:
        say(loud(f"policy  {escaped(policy['error'], keep='\n')}"))
    if ledger["error"]:
        say(loud(f"ledger  {escaped(ledger['error'])}"))
    if ledger.get("owed"):
        say(loud(f"ledger  {counted(ledger['owed'], 'outcome')} not recorded yet"))
    for text in _seal_warnings(state.get("seals")):
        say(loud(f"seals   {escaped(text)}"))
    for channel in state.get("notify", ()):
        if channel["error"]:
            say(loud(f"alerts  {escaped(_silent(channel))}"))
    if state["clock"]["stepped_seconds"]:
        moved = f"{state['clock']['stepped_seconds']:+.0f} s"
        say(loud(f"clock   moved by {moved}: nothing passes until it is set right, or a restart"))
    if state["identity"] == "open":
        say(f"{loud('identity open')}: callers name their own run and tenant, unchecked")
    _say_cords(state)
    _say_parts(state)
    if not state.keys() >= _PARTS.keys() | _ASIDE:
        say(loud(f"note    {OLDER}"))
    say(f"note    {BESIDE}")
    _say_calls(state["calls"])


def _prices(state: dict[str, Any]) -> str:
    return f"  prices of {escaped(state['prices']['date'])}" if "prices" in state else ""


def _seal_warnings(seals: dict[str, Any] | None) -> list[str]:
    if seals is None:
        return []
    found = [f"the record is not sealed: {seals['error']}"] if seals["error"] else []
    if seals["behind"]:
        found.append(f"at the start the ledger was behind its newest seal: {seals['behind']}")
    return found + [
        f"{counted(copies['waiting'], 'seal')} not copied to {copies['to']}: {copies['error']}"
        for copies in seals["copies"]
        if copies["error"]
    ]


def _silent(channel: dict[str, Any]) -> str:
    waits = f", {channel['waiting']} wait" if channel["waiting"] else ""
    since = f"since {channel['since']}{waits}"
    return f"do not arrive at {channel['channel']} {since}: {channel['error']}"


def _say_fleet(fleet: dict[str, Any]) -> None:
    engines = f"engines {fleet['engines']}" if fleet["engines"] else loud("no engine")
    if fleet["runs"] is None:
        say(f"fleet   {engines}  what they do cannot be read from the ledger now")
        return
    say(
        f"fleet   runs {fleet['runs']}  calls {fleet['calls_per_minute']}/min  "
        f"refused {fleet['refused_per_minute']}/min  {engines}"
    )


def _say_signals(told: dict[str, Any]) -> None:
    """How much calls that ended did: per minute of the last one, the rest of the last five."""
    gained = told["progress_per_usd"]
    progress = f"{told['progress']:.1f}, nothing spent" if gained is None else f"{gained:.1f} per $"
    say(
        f"signals tool calls {told['tool_calls_per_minute']}/min  "
        f"writes {told['writes_per_minute']}/min  ${told['usd_per_hour']:.2f}/h  "
        f"progress {progress}"
    )


def _say_bounds(bounds: dict[str, Any] | None) -> None:
    """What the policy left open."""
    if bounds and bounds["unbounded"]:
        said = ", ".join(map(escaped, bounds["unbounded"]))
        say(f"bounds  {loud(f'UNBOUNDED: {said}')}, by the policy's own word")


def _say_limits(limits: dict[str, Any]) -> None:
    """Which ceilings bind now, and what only tells. Nothing where nothing does."""
    refusing = limits["refused_per_minute"] or []  # None where it cannot be told in time
    for each in refusing[:LIMITS_SHOWN_MAX]:
        rule, run = escaped(each["rule"]), escaped(each["run"])
        whose = f"run {run}" if each["runs"] == 1 else counted(each["runs"], "run")
        what = f"{each['calls']} refused by {rule} {escaped(each['ceiling'])} ({whose})"
        say(f"limits  {loud(what)} in the last minute: pullcord ledger query rule:{rule}")
    if len(refusing) > LIMITS_SHOWN_MAX:
        more = counted(len(refusing) - LIMITS_SHOWN_MAX, "more ceiling")
        say(f"limits  {more}: pullcord ledger query 'rule:ceiling:*' since:1m")
    if limits["waiting"]:
        say(f"limits  {counted(limits['waiting'], 'call')} waiting for room under a ceiling")
    for key, kind, what in _TOLD:
        if limits[key]:
            say(f"limits  {counted(limits[key], what)} in the last hour: {_LOOK.format(kind)}")


_LOOK = """pullcord ledger query --sql "SELECT run, tool, detail FROM event WHERE type = '{}'\""""
_TOLD = (
    ("crossed_per_hour", "ceiling.crossed", "ceiling alert"),
    ("unpriced_per_hour", "model.unpriced", "unpriced model"),
)


def _say_cords(state: dict[str, Any]) -> None:
    if not state["pulled"]:
        say("pulled  nothing")
    for cord in state["pulled"]:
        blocked = f"  blocked {cord['blocked']}" if cord["blocked"] is not None else ""
        waits = "" if cord["latched"] else loud("  not in the ledger yet")
        lost = loud("  stops nothing: the policy has no such tool")
        idle = "" if cord.get("effective", True) else lost
        say(f"pulled  {told_cord(cord)}{blocked}{waits}{idle}")
    if state["halt_file"]:
        say(f"file    {escaped(state['halt_file'])} is there; what it pulled, a release takes out")


def _say_incidents(incidents: dict[str, Any]) -> None:
    """Those that are open; nothing where the ledger cannot be read, which is told elsewhere."""
    for one in incidents["newest"]:
        say(f"incident {in_one_line(one)}: pullcord incident show {one['id']}")
    more = (incidents["open"] or 0) - len(incidents["newest"])
    if more > 0:
        say(f"incident and {more} more: pullcord incident list")
    following = incidents.get("next")
    if following:
        what = f"of incident {following['incident']}: {escaped(following['what'])}"
        say(f"next    {what}: {escaped(following['command'])}")


def _say_holds(holds: dict[str, Any]) -> None:
    if holds["waiting"]:
        wait = "1 call waits" if holds["waiting"] == 1 else f"{holds['waiting']} calls wait"
        say(f"holds   {loud(f'{wait} for a person')}: pullcord hold list")


def _say_trace(trace: dict[str, Any]) -> None:
    """How much is kept, and what is missing from it."""
    known = trace["messages"] is not None
    words = [trace["level"]]
    if known:
        words += [counted(trace["messages"], "message"), f"{trace['bytes'] / _MIB:.1f} MiB"]
    if trace["behind"]:
        words.append(f"behind {trace['behind']}")
    if trace["lost_per_hour"]:
        lost = counted(trace["lost_per_hour"], "message")
        words.append(loud(f"LOST {lost} in the last hour: {_LOOK.format('trace.lost')}"))
    if trace["error"]:
        words.append(loud(f"FAILS: {escaped(trace['error'])}"))
    say(f"trace   {'  '.join(filter(None, words))}")


_MIB = 1024 * 1024


def _say_drill(drill: dict[str, Any] | None) -> None:
    if drill is None:
        return
    ended = "passed" if drill["passed"] else loud("FAILED")
    why = f": {escaped(drill['why'])}" if drill["why"] else ""
    say(f"drill   {ended}{why}  by {escaped(drill['actor'])} {span(drill['age_seconds'])} ago")


_PARTS = {
    "incidents": _say_incidents,
    "holds": _say_holds,
    "limits": _say_limits,
    "trace": _say_trace,
    "drill": _say_drill,
    "bounds": _say_bounds,
}
_ASIDE = {
    "signals",
    "seals",
    "notify",
    "prices",
}  # told elsewhere; a proxy of an older version tells none of them


def _say_parts(state: dict[str, Any]) -> None:
    """What the proxy tells of them: an older one leaves some out."""
    for name, say_part in _PARTS.items():
        if name in state:
            say_part(state[name])


def _say_calls(calls: list[dict[str, Any]]) -> None:
    say(f"calls   {len(calls)} in flight")
    if calls:
        say_table(
            ("run", "tenant", "tool", "effect", "method", "host", "for"),
            [_call_row(call) for call in calls[:CALLS_SHOWN_MAX]],
        )
    if len(calls) > CALLS_SHOWN_MAX:
        say(f"        and {len(calls) - CALLS_SHOWN_MAX} more: pullcord status --json")


def _call_row(call: dict[str, Any]) -> tuple[str, ...]:
    return (
        call["run"],
        call["tenant"],
        call["tool"],
        call["effect"],
        call["method"],
        call["host"],
        span(call["seconds"]),
    )
