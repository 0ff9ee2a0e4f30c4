"""The sentence that a refused agent and its user read: what, why, whether to retry, who can help.

Pure. Commands in it are quoted for a shell, and what came from outside is made harmless.
"""

import json
import re
import shlex
from string import ascii_letters, digits
from typing import NamedTuple

from policies.bounds import BUDGET, THROTTLE
from policies.call import Request
from policies.verdict import MEANING, Level, Reason, Scope, Verdict, tool_of

TEXT_CHARACTERS_MAX = 300  # of one quoted name or detail; a run or host name has 256 at most

OPERATOR = "Tell the user; an operator can"
STATUS = "{operator} run: pullcord status"
SET_UP = 'Set them up by: eval "$(pullcord env --run NAME)"'


class Words(NamedTuple):
    """Read as `WORD by pullcord: what. Do not retry. cure`, or with when to retry."""

    what: str
    cure: str = ""
    word: str = "REFUSED"


SENTENCES: dict[Reason, Words] = {
    Reason.CREDENTIALS_REQUIRED: Words("no proxy credentials were sent", SET_UP),
    Reason.CREDENTIALS_INVALID: Words("the proxy credentials are not valid", SET_UP),
    Reason.TOKEN_REVOKED: Words("the token of {own_run} was revoked", "{operator} mint a new one."),
    Reason.TOKEN_EXPIRED: Words("the token of {own_run} has expired", "{operator} mint a new one."),
    Reason.PRINCIPAL_UNKNOWN: Words(
        "this version of pullcord knows no such kind of caller", "{operator} run a newer one."
    ),
    Reason.MALFORMED_REQUEST: Words("the request is malformed or ambiguous{why}", "Tell the user."),
    Reason.AUTHORITY_MISMATCH: Words("the request names two destinations{why}", "Tell the user."),
    Reason.BODY_TOO_LARGE: Words("the request body is too large{why}", "Send a smaller one."),
    Reason.HEAD_TOO_LARGE: Words("the request head is too large{why}", "Send fewer headers."),
    Reason.PROTOCOL_UNSUPPORTED: Words("this protocol cannot be inspected{why}", "Tell the user."),
    Reason.BATCH_OF_WRITES: Words("a batch may hold at most one write{why}", "Send them singly."),
    Reason.HALTED: Words("{stands}{why}", "{operator} {lift}", "HALTED"),
    Reason.FROZEN: Words("{stands}{why}", "Reads still pass. {operator} {lift}", "FROZEN"),
    Reason.DESTINATION_UNLISTED: Words("the policy lists no tool for {target}", "{add}"),
    Reason.DESTINATION_READ_ONLY: Words("{host} is not in the policy, so it is read-only", "{add}"),
    Reason.ADDRESS_REFUSED: Words(
        "the address of {host} is not allowed{why}",
        "{operator} list it in the tool's allow_addresses, if it is meant.",
    ),
    Reason.OWN_LISTENER: Words(
        "{host} is pullcord itself, which is no destination", "Tell the user."
    ),
    Reason.TOOL_NOT_ALLOWED: Words("{holder} may not use this tool{why}", "{operator} {grant}"),
    Reason.ARGUMENT_REFUSED: Words(
        "an argument is outside what {holder} allows{why}",
        "Stay within it, or tell the user; an operator can change the condition in the policy.",
    ),
    Reason.READ_ONLY: Words(
        "{holder} may only read{why}", "Reads and model calls still pass. {operator} {widen}"
    ),
    Reason.KEY_REQUIRED: Words(
        "this tool requires an idempotency key{why}", "Send one, the same for the same effect."
    ),
    Reason.KEY_REUSED: Words(
        "the idempotency key was used with another payload by call {earlier}", "{operator} {show}"
    ),
    Reason.IN_FLIGHT: Words(
        "the same write is still in flight as call {earlier}",
        "Change neither arguments nor key. An operator can {show}",
    ),
    Reason.OUTCOME_UNKNOWN: Words(
        "the write was sent as call {earlier} and may have happened: its outcome is unknown{why}",
        "{operator} {show}, look with: pullcord ledger resolve {earlier} --verify (if the policy "
        "says how), and once it is known, run: pullcord ledger resolve {earlier} "
        '--as done|not_sent --reason "..."',
        "STOPPED",
    ),
    Reason.DONE_BUT_NOT_STORED: Words(
        "the write was done before as call {earlier} and its answer was not kept{why}",
        "Treat it as done. An operator can {show}",
    ),
    Reason.OVER_CEILING: Words("a ceiling is reached{why}", "{reopened}", "LIMITED"),
    Reason.HELD: Words(
        "this call waits for a person's approval{why}", "{operator} run: pullcord hold list", "HELD"
    ),
    Reason.HOLD_REJECTED: Words(
        "a person rejected this call{why}", "Do not try it in another way. Tell the user."
    ),
    Reason.HOLD_EXPIRED: Words(
        "nobody approved this call in time{why}",
        "Tell the user; it can be sent again when somebody is there to approve it.",
    ),
    # The failures of our own show no detail: it may quote what was sent. The log has it.
    Reason.STORE_LOCKED: Words("another program locks the ledger", STATUS, "STOPPED"),
    Reason.STORE_FULL: Words(
        "the ledger's disk is full", "{operator} make room, then run: pullcord status", "STOPPED"
    ),
    Reason.STORE_READ_ONLY: Words(
        "the ledger cannot be written",
        "{operator} check its permissions and its mount, then run: pullcord status",
        "STOPPED",
    ),
    Reason.STORE_CORRUPT: Words(
        "the ledger is damaged",
        "{operator} stop pullcord, keep the file and restore a backup.",
        "STOPPED",
    ),
    Reason.STORE_MISSING: Words(
        "the ledger's file is gone", "{operator} put it back, then run: pullcord status", "STOPPED"
    ),
    Reason.STORE_UNAVAILABLE: Words(
        "the ledger cannot record, so nothing passes", STATUS, "STOPPED"
    ),
    Reason.CLOCK_STEPPED: Words(
        "the system's clock has jumped, so no limit can be judged",
        "{operator} set it right, or restart pullcord.",
        "STOPPED",
    ),
    Reason.DECIDER_UNREACHABLE: Words("the process that judges does not answer", STATUS, "STOPPED"),
    Reason.DETECTOR_FAILURE: Words(
        "what happened before cannot be read back, so no detector knows of it",
        "{operator} run: pullcord ledger verify",
        "STOPPED",
    ),
    Reason.POLICY_FAILURE: Words(
        "the call could not be judged", "{operator} find call {call} in pullcord's log.", "STOPPED"
    ),
    Reason.SHUTTING_DOWN: Words("pullcord is shutting down", word="STOPPED"),
    Reason.NOT_SENT: Words("the upstream could not be reached{why}", word="NOT SENT"),
    Reason.UPSTREAM_UNTRUSTED: Words(
        "the upstream's certificate is not trusted",
        "{operator} start pullcord with its authority as upstream_ca.",
        "NOT SENT",
    ),
    Reason.UPSTREAM_FAILED: Words("the upstream's answer did not arrive{why}", word="ENDED"),
    Reason.CUT: Words("{stands}{why}", "A write may have happened. {operator} {show}", "CUT"),
}
"""What each reason that can refuse is called. The braces are filled in by `sentence`."""

THROTTLED = Words("{stands}{why}", "{operator} {lift}", "LIMITED")
"""Where a throttle stands as a ceiling."""

_WAIT_SECONDS = {
    Reason.IN_FLIGHT: 1,
    Reason.STORE_LOCKED: 5,
    Reason.STORE_UNAVAILABLE: 5,
    Reason.DECIDER_UNREACHABLE: 3,  # it is back and has recovered within that
    Reason.SHUTTING_DOWN: 5,
}

_WORD = frozenset(ascii_letters + digits + "._~-")
_POLICY_LINE = re.compile(r".+\.ya?ml:\d+(:\d+)?")
_PLAIN_YAML = re.compile(r"[A-Za-z/][A-Za-z0-9._/~-]{0,127}")
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def _shown(text: str) -> str:
    """Text of the world on one line: what is not printable (controls, bidi) as an escape."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return shown if len(shown) <= TEXT_CHARACTERS_MAX else shown[:TEXT_CHARACTERS_MAX] + "..."


def plain_word(text: str) -> str:
    """An id as it may stand in a header and on a command line."""
    return "".join(c for c in text if c in _WORD)[:TEXT_CHARACTERS_MAX]


def may_retry(verdict: Verdict) -> bool:
    """Whether the same call can pass later without a person doing anything."""
    if verdict.reason is Reason.OVER_CEILING:
        return verdict.retry_after_seconds is not None and verdict.pull is None
    return MEANING[verdict.reason].retry


def wait_seconds(verdict: Verdict) -> int | None:
    seconds = verdict.retry_after_seconds or _WAIT_SECONDS.get(verdict.reason)
    return seconds if may_retry(verdict) else None


def _retry(verdict: Verdict) -> str:
    if seconds := wait_seconds(verdict):
        return f"Retry in {seconds} s."
    return "A retry is safe." if may_retry(verdict) else "Do not retry."


def _cord(rule: str, detail: str = "") -> tuple[str, str]:
    """What a cord (`halt:run:r1`) stops, and what an operator can do about it."""
    level, _, place = rule.partition(":")
    scope, _, subject = place.partition(":")
    if level not in set(Level) or scope not in set(Scope):
        return "this call was stopped", "run: pullcord status"
    run, tool = tool_of(subject) if scope == Scope.TOOL else ("", "")
    name = f"tool {_shown(tool)} of run {_shown(run)}" if run else f"{scope} {_shown(subject)}"
    if level == Level.HALT:
        verb, stands = "resume", f"{name} is halted" if subject else "everything is halted"
    elif level == Level.THROTTLE:
        verb, stands = "thaw", f"{name} is throttled" if subject else "everything is throttled"
    else:
        verb, stands = "thaw", f"writes of {name} are frozen" if subject else "writes are frozen"
    if _POLICY_LINE.fullmatch(detail):
        return stands, "remove that line of the policy."
    words = f"{scope} {shlex.quote(_shown(subject))}" if subject else scope
    return stands, f'run: pullcord {verb} {words} --reason "..."'


def _without_folder(detail: str) -> str:
    """An agent need not know where the policy lies on the operator's disk."""
    return detail.rpartition("/")[2] if _POLICY_LINE.fullmatch(detail) else detail


def _reopened(verdict: Verdict) -> str:
    """Who reopens a ceiling that no wait reopens."""
    if may_retry(verdict):
        return ""
    if verdict.pull is None:
        return f"{_why_no_wait(verdict)}{OPERATOR} {_raised(verdict.rule)}"
    stands, lift = _cord(verdict.pull.rule)
    return f"Now {stands}. {OPERATOR} {lift}"


def _why_no_wait(verdict: Verdict) -> str:
    """Why no wait brings room: the ceiling is for life, or the call alone is more than it holds."""
    limit = verdict.limit
    if limit is None or not limit.at_most:
        return ""
    if limit.window_seconds:
        return "This one call asks for more than all of it; ask for less. "
    return "It is for life, so waiting brings nothing. "


def _raised(rule: str) -> str:
    """What an operator can do about a ceiling. A run's own budget does not stand in the policy."""
    _, _, name = rule.partition(":")
    kind, _, run = name.partition(":")
    if kind != BUDGET or not run:
        return "raise it in the policy."
    return f"run: pullcord budget show run {shlex.quote(_shown(run))}"


def _widen(rule: str) -> str:
    """How an operator lets somebody write who may only read."""
    if rule.startswith("token:"):
        return "mint a token that may write."
    return "take its read_only out of the policy."


def _holder(rule: str) -> tuple[str, str]:
    """Who lacks a tool (`tenant:T`, `agent:A`, `token:RUN`), and where an operator grants it."""
    kind, _, name = rule.partition(":")
    if kind == "token":
        return f"the token of run {_shown(name)}", "mint one that allows it."
    owner = "agent" if kind == "agent" else "tenant"
    return f"{kind} {_shown(name)}", f"add it to the {owner}'s list in the policy."


def sentence(verdict: Verdict, call_id: str, run: str, request: Request | None = None) -> str:
    """One line for the model and the person: what, why, whether to retry, who can do what.

    Raises KeyError for a reason that refuses nothing.
    """
    is_throttle = verdict.rule.startswith(f"{THROTTLE}:")
    what, cure, word = THROTTLED if is_throttle else SENTENCES[verdict.reason]
    stands, lift = _cord(verdict.rule, verdict.detail)
    holder, grant = _holder(verdict.rule)
    detail, call = _shown(_without_folder(verdict.detail)), plain_word(call_id)
    earlier = plain_word(verdict.earlier_call) or call
    host = _shown(request.host) if request and request.host else "the destination"
    return f"{word} by pullcord: {what}. {_retry(verdict)} {cure}".format(
        operator=OPERATOR,
        why=f" ({detail})" if detail else "",
        stands=stands,
        lift=lift,
        reopened=_reopened(verdict),
        holder=holder,
        grant=grant,
        widen=_widen(verdict.rule),
        call=call,
        earlier=earlier,
        show=f"run: pullcord ledger show {earlier}",
        own_run=f"run {_shown(run)}" if run else "the run",
        host=host,
        target=f"{_shown(request.method)} {host}" if request else "this destination",
        add=_add(request),
    ).rstrip()


def _yaml(text: str) -> str:
    is_plain = _PLAIN_YAML.fullmatch(text) and text.lower() not in _YAML_WORDS
    return text if is_plain else json.dumps(text)


def _entry(request: Request, path: str = "") -> tuple[str, str]:
    """A tool that would cover the request: its name and its `match`, each as YAML on one line."""
    match = f"host: {_yaml(request.host)}, method: {_yaml(request.method)}"
    if request.port != {"https": 443, "http": 80}.get(request.scheme):
        match += f", port: {request.port}"
    if path:
        match += f", path: {_yaml(path)}"
    name = _yaml(request.host) if _PLAIN_YAML.fullmatch(request.host) else "new-tool"
    return name, f"match: {{{match}}}"


def _add(request: Request | None) -> str:
    entry = "{}: {{{}}}".format(*_entry(request)) if request else "a tool for it."
    return f"{OPERATOR} add under `tools:` {entry}"


def detail_of(message: str, reason: Reason, request: Request | None) -> str:
    """The sentence; for an unlisted destination also three lines of policy, ready to paste.

    A long path, or one that could read as a template, is left out.
    """
    lines = entry_for(reason, request) if request else ""
    return f"{message}\n{lines}" if lines else message


def entry_for(reason: Reason, request: Request) -> str:
    """Three lines of policy that would list the destination; empty where that is not the cure."""
    if reason not in SENTENCES or "{add}" not in SENTENCES[reason].cure:
        return ""
    name, match = _entry(request, request.path if _PLAIN_YAML.fullmatch(request.path) else "")
    return f"tools:\n  {name}:\n    {match}"
