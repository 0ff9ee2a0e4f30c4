"""What `ledger resolve` prints: the call, what the upstream was asked and says, what was resolved.

What an upstream says stands behind a bar on each line, so that it cannot pass for words of ours.
"""

import shlex
from typing import Any

from proxy.cli.terminal import escaped, loud, say

BAR = "  | "

Answer = dict[str, Any]
"""As proxy/resolutions.py and proxy/verifying.py give it."""


def say_call(answer: Answer) -> None:
    """What it is about, on a few lines."""
    call = answer["call"]
    place = f"{call['method']} {call['host']}{call['path']}"
    release = f"  release {call['release']}" if call["release"] else ""
    say(f"call {call['id']}  {call['at']}  {call['effect']}")
    say(f"  {escaped(f'{call["tool"]}  {place}')}")
    say(f"  {escaped(f'run {call["run"]}  tenant {call["tenant"]}{release}')}")
    if answer["why_unknown"]:
        say(f"  unknown because: {escaped(answer['why_unknown'])}")


def say_done(answer: Answer, dry_run: bool) -> None:
    state, why = answer["state"], escaped(answer["reason"] or "")
    if not answer["changed"]:
        if answer["actor"]:
            who = escaped(answer["actor"])
            say(f"was resolved as {loud(state)} already, by {who} at {answer['at']}: {why}")
        elif dry_run:
            say(f"would be resolved as {loud(state)}; nothing was changed")
        return
    say(f"resolved as {loud(state)}: {why}")
    if answer["claim"] == "done":
        say(f"a repeat is told that it was done, until {answer['protected_until']}")
    elif answer["claim"] == "released":
        say("the same write may be made again")
    if answer["give_back"]:
        say("what it reserved is still counted as spent; if nobody bills it, give it back:")
        for command in answer["give_back"]:
            say(f"  {escaped(command)}")


def say_looked(answer: Answer, dry_run: bool) -> None:
    """The call, what is asked about it, and the answer."""
    say_call(answer)
    plan, heard = answer["plan"], answer["heard"]
    is_planned = dry_run or bool(plan["lacks"])
    asks = "would ask" if is_planned else "asked"
    say(f"{asks} {escaped(plan['tool'])}: {plan['method']} {escaped(plan['url'])}")
    for name, value in plan["headers"]:
        say(f"  {escaped(f'{name}: {value}')}")
    if plan["auth_header"]:
        say(
            f"  as {escaped(plan['auth'])} of credentials.yaml, in the header {plan['auth_header']}"
        )
    elif not plan["auth"]:
        say("  without credentials: the policy names none (`auth`)")
    if heard is not None:
        _say_heard(heard)
    elif answer["why_unheard"]:
        word = loud("CANNOT BE ASKED" if is_planned else "NO ANSWER")
        say(f"{word}: {escaped(answer['why_unheard'])}")
    elif dry_run:
        say("nothing was asked")


def _say_heard(heard: Answer) -> None:
    told = f"{heard['status']}  {heard['media_type']}  {heard['bytes']} bytes"
    say(f"it says {escaped(told)}  sha256 {heard['digest'][:16]}")
    if heard["location"]:
        say(f"  it leads to {escaped(heard['location'])}, which is not followed")
    if heard["why_no_text"]:
        say(f"  its answer is not shown: {escaped(heard['why_no_text'])}")
    for line in heard["text"].splitlines():
        say(f"{BAR}{escaped(line)}")
    if heard["is_cut"]:
        say("  and more, which is not shown")


def say_next(answer: Answer) -> None:
    """What to type when that is enough to know."""
    if answer["heard"] is None:
        return
    call = shlex.quote(answer["call"]["id"])
    say("nothing was resolved; where this shows how it ended, say so:")
    for state, means in (("done", "it was made"), ("not_sent", "it was not")):
        say(f"  pullcord ledger resolve {call} --as {state} --reason TEXT   # {means}")


def untold(answer: Answer, state: str | None) -> str:
    """Why nothing was resolved although somebody asked for it."""
    if answer["heard"] is None:
        why = answer["why_unheard"] or "it gave no answer"
    else:
        why = f"the upstream answered {answer['heard']['status']}, which tells nothing of the write"
    if state is None:
        return f"the upstream could not be asked: {why}"
    return (
        f"nothing was resolved: {why}; look again, or say what you know without --verify: "
        f"pullcord ledger resolve {answer['call']['id']} --as {state} --reason TEXT"
    )
