"""What is left to do after an incident, as far as the record tells: each with the command that does
it, the most urgent first. Pure.
"""

import shlex
from collections.abc import Iterator
from typing import Any

from ledger.compensation import undid
from ledger.open_incidents import OPEN
from ledger.states import CallState
from policies.policy import Policy
from policies.verdict import Level
from proxy import operations
from proxy.report_parts import counted

Facts = dict[str, Any]
Action = dict[str, Any]


def actions(facts: Facts, policy: Policy | None) -> list[Action]:
    """Each with `what`, and the `command` to type."""
    found = (*_contained(facts), *_settled(facts), *_mended(facts, policy), *_over(facts))
    return [{"what": what, "command": command} for what, command in found]


_CHECK = "pullcord policy check"
_STOPS = {"run": "halt", "tenant": "halt", "release": "halt", "tool": "freeze"}


def _contained(facts: Facts) -> Iterator[tuple[str, str]]:
    incident, after = facts["incident"], facts["scope"]["after_cord"]
    whole, is_open = facts["scope"]["after_all"], incident["state"] == OPEN
    if is_open and not facts["standing"] and not facts["times"]["first_cord"]:
        about = f"{incident['kind']} {incident['name']}"
        command = "pullcord status"
        if incident["kind"] in _STOPS:
            command = _typed(_STOPS[incident["kind"]], incident["kind"], incident["name"])
        yield f"Nothing was ever stopped: stop the {about}, or say why not.", command
    if after is not None and after["admitted"] and not after["cord"].startswith(Level.THROTTLE):
        yield (
            f"Find out why {counted(after['admitted'], 'write')} passed after {after['cord']} was "
            "pulled: the promise is none.",
            after["command"],
        )
    if whole is not None and not whole["contained"]:
        yield (
            f"Stop the rest of it, or say why not: {counted(whole['admitted'], 'write')} passed "
            f"after its last cord, {whole['cord']}.",
            whole["command"],
        )
    if is_open and not incident["owner"]:
        command = f"pullcord incident ack {incident['id']}"
        yield "Nobody takes care of it by name: acknowledge it.", command


def _settled(facts: Facts) -> Iterator[tuple[str, str]]:
    states = {one["state"]: one for one in facts["scope"]["writes"]["by_state"]}
    unknown, pending = states.get(CallState.UNKNOWN), states.get(CallState.PENDING)
    if unknown and unknown["count"]:
        yield (
            f"Find out what became of {counted(unknown['count'], 'write')} of unknown outcome, "
            "and say it: pullcord ledger resolve CALL --verify.",
            unknown["command"],
        )
    if pending and pending["count"]:
        count = counted(pending["count"], "write")
        yield f"Wait for {count} on the way, or halt what makes them.", pending["command"]
    done = states.get(CallState.DONE)
    undone = {row["undoes"] for row in facts["undo"] if row["undoes"] and undid(row)}
    left = facts["scope"]["undo"]["left"]
    if left:
        yield (
            f"Undo {counted(left, 'write')} that the policy says how to undo, or say why not.",
            f"pullcord incident compensate {facts['incident']['id']} --plan",
        )
    if (
        done
        and done["count"]
        and any(
            one["reversibility"] == "unknown" and one["left"]
            for one in facts["scope"]["writes"]["by_reversibility"]
        )
    ):
        yield "Say in the policy how the writes of its tools are undone (undo).", _CHECK
    failed = [row for row in facts["undo"] if row["undoes"] not in undone]
    if failed:
        yield (
            f"Look after {counted(len(failed), 'call')} that should have undone a write and did "
            "not end well.",
            f"pullcord ledger show {failed[0]['id']}",
        )


def _mended(facts: Facts, policy: Policy | None) -> Iterator[tuple[str, str]]:
    incident = facts["incident"]
    if not incident["proof"]:
        instead = f" It was waived: {incident['waived']}" if incident["waived"] else ""
        yield (
            f"Make a regression test of it, and prove that it fails without the mend.{instead}",
            f"pullcord incident export-test {incident['id']} "
            f"--out tests/incidents/{incident['id']} --prove",
        )
    if policy is not None and not policy.known_good:
        yield (
            "Name the releases that are known to be good (releases.known_good in the policy): "
            "nothing can be resumed onto one before.",
            _CHECK,
        )


def _over(facts: Facts) -> Iterator[tuple[str, str]]:
    for cord in facts["standing"]:
        told = operations.described(operations.pull_from_json(cord))
        undo = operations.undo_command(operations.pull_from_json(cord))
        yield f"Decide when {told} is released; it stands.", undo
    incident = facts["incident"]
    if incident["state"] == OPEN:
        yield (
            "Close it when it is over.",
            f'pullcord incident close {incident["id"]} --reason "..."',
        )


def _typed(*words: str) -> str:
    return f"pullcord {shlex.join(words)}"
