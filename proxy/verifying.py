"""`verify`: what an upstream says of a write, before a person says how it ended.

The policy names the read (`verify:` of a tool). It is planned, shown, noted in the record, made,
shown and noted again; nothing is resolved here. The running proxy does it for its control socket,
the command line for itself when no proxy runs.
"""

import asyncio
import codecs
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from ledger.queries import CALL_COLUMNS, Row
from ledger.redact import mark, mask, redact_key
from ledger.states import CallState, EventType
from ledger.store import Store
from policies.policy import OperatorCall, Policy
from policies.verdict import Pull
from proxy import authority, credentials, operator_calls
from proxy.authority import UPSTREAM_FILE
from proxy.clock import Clock
from proxy.dial import Dialer
from proxy.letterbox import Letterbox
from proxy.operations import (
    CordName,
    NotFound,
    OperationError,
    cord_name,
    opened,
    timestamp,
)
from proxy.operator_calls import Heard, Plan, Unheard
from proxy.operator_plans import Known, planned
from proxy.resolutions import why_unknown
from proxy.secret_keys import vault_key
from proxy.settings import Settings, host_and_port

SHOWN_CHARACTERS_MAX = 8_192  # of what an upstream says: some screens, and the rest is cut
# Of an answer are looked at: laid out and masked in milliseconds, whatever it holds.
READ_BYTES_MAX = 1 << 16
# Where an answer was cut, the beginning of a secret may stand that nothing knows any more.
_TAIL_CHARACTERS = 512
GIVEN_MAX = 32
TELLING = frozenset({404, 410})
_TRUTHS = frozenset({"true", "false"})

Answer = dict[str, Any]


class Acting(Protocol):
    """In a transaction of whoever owns the store."""

    def __call__[Result](self, act: Callable[[Store], Result], /) -> Awaitable[Result]: ...


@dataclass(frozen=True, slots=True)
class Ground:
    """Where it is done. `stops` tells why no operator may call a tool now."""

    data: Path
    policy: Policy
    dialer: Dialer
    stops: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Question:
    """`call` is an id or the start of one; `given` are values of places that the person knows."""

    call: str
    given: Mapping[str, str]
    actor: str
    dry_run: bool


async def verified(ask: Question, ground: Ground, act: Acting, now_us: Callable[[], int]) -> Answer:
    """Raises OperationError, NotFound, CredentialsError, and LedgerError for a call that is not
    unknown, or when it cannot be recorded that somebody asked."""
    row = await act(partial(_unknown, name=ask.call, now_us=now_us()))
    asked = ground.policy.tool(row["tool"]).verify
    if asked is None:
        raise OperationError(
            f"the policy names no read by which {row['tool']} is verified: give the tool a "
            "`verify: {tool: ..., path: ...}`; or look at the service, and resolve without --verify"
        )
    if len(ask.given) > GIVEN_MAX:
        raise OperationError(f"more than {GIVEN_MAX} values are given")
    plan, key = await asyncio.to_thread(_planned, ask, ground, row, asked)
    answer: Answer = {
        "call": {name: row[name] for name in CALL_COLUMNS},
        "why_unknown": why_unknown(row),
        "plan": _plan_as_json(plan, key),
        "heard": None,
        "why_unheard": plan.lacks or (ask.dry_run and ground.stops(plan.tool)) or None,
        "tells": False,
        "at": timestamp(now_us()),
    }
    if ask.dry_run or plan.lacks:
        return answer
    place = f"{plan.tool}: {plan.method} {plan.host}{plan.target.partition('?')[0]}"
    note = partial(_noted, ask, row, act, now_us)
    # A credential leaves with it: who asked is on the disk before, whatever happens after.
    await note(f"asks {place}")
    try:
        trust, stops = ground.data / UPSTREAM_FILE, partial(ground.stops, plan.tool)
        heard = await operator_calls.made(plan, ground.dialer, trust, stops)
    except Unheard as unheard:
        answer["why_unheard"] = str(unheard)
        said = f"no answer: {unheard}"
    else:
        answer["heard"] = await asyncio.to_thread(_heard_as_json, heard, plan, key)
        answer["tells"] = 200 <= heard.status < 300 or heard.status in TELLING
        said = f"{heard.status}, {len(heard.body)} bytes, sha256 {heard.digest[:16]}"
    await note(f"{place}: {said}")
    return answer


async def _noted(
    ask: Question, row: Row, act: Acting, now_us: Callable[[], int], detail: str
) -> None:
    """On the disk when this returns. Raises LedgerError."""
    who = {"run": row["run"] or "", "tenant": row["tenant"] or "", "tool": row["tool"]}
    await act(
        lambda store: store.note(
            EventType.VERIFIED,
            actor=ask.actor,
            at_us=now_us(),
            detail=detail,
            call_id=row["id"],
            **who,
        )
    )


def _planned(ask: Question, ground: Ground, row: Row, asked: OperatorCall) -> tuple[Plan, bytes]:
    """The plan, and the key by which secrets are masked. It reads three files."""
    known = Known(row, ask.given, partial(_traced, ground.data, row["id"]))
    entries = ground.data / credentials.FILE
    plan = planned(ground.policy, asked, known, credentials.load(ground.data), entries)
    return plan, redact_key(vault_key(ground.data))


def ground(
    settings: Settings, listening: str | None, policy: Policy, stops: Callable[[str], str]
) -> Ground:
    """`listening` is where the proxy listens, if it runs: a port of its own, whatever was set."""
    ports = settings.own_ports | ({host_and_port(listening)[1]} if listening else set())
    dialer = Dialer(ports, min(settings.connect_seconds, operator_calls.ANSWER_SECONDS))
    return Ground(settings.data, policy, dialer, stops)


def verified_alone(
    ask: Question, settings: Settings, policy: Policy | None, clock: Clock
) -> Answer:
    """While no proxy runs. Raises as `verified` does, LedgerBusy while one owns the store, and
    AuthorityError."""
    if policy is None:
        raise OperationError(
            "no policy can be read, and only that says how to verify; go to where "
            "config/policy.yaml is, or name its directory: --config DIR"
        )
    box, pulls = Letterbox(settings.data), dict[CordName, Pull]()

    async def act[Result](do: Callable[[Store], Result]) -> Result:
        with opened(settings.data, clock.now_us) as store:
            pulls.update(store.pulls)
            return do(store)

    def stops(tool: str) -> str:
        posted = {cord_name(cord): cord for cord in box.waiting(clock.now_us())}
        return operator_calls.stopped(policy, {**pulls, **posted}, tool)

    now = datetime.fromtimestamp(clock.now_us() / 1e6, UTC)
    authority.prepare(settings.data, settings.upstream_ca, os.environ, now)
    return asyncio.run(verified(ask, ground(settings, None, policy, stops), act, clock.now_us))


def _unknown(store: Store, name: str, now_us: int) -> Row:
    """The call, if a person may say how it ended."""
    looked = store.resolve(name, CallState.DONE, reason="", actor="", at_us=now_us, dry_run=True)
    if looked is None:
        raise NotFound(
            f"the ledger has no call {name!r}; pullcord ledger query state:unknown lists the "
            "calls of unknown outcome"
        )
    return looked.call


# ---------------------------------------------------------------------------------- the trace


def _traced(data: Path, call_id: str, path: str) -> str:
    """The value at a dotted path of the request, as the trace has kept it."""
    from ledger.trace import open_trace
    from ledger.traced import Side
    from proxy import recorded

    try:
        reader = open_trace(data)
        with contextlib.closing(reader) if reader else contextlib.nullcontext():
            document = recorded.in_trace(reader, call_id, Side.REQUEST)
        found = recorded.value(document, path, "the request, as the trace has it,")
        if found in _TRUTHS and isinstance(found, recorded.Bare):
            raise recorded.Untold("no single value stands there")
    except recorded.Untold as untold:
        raise OperationError(
            f"{{request.{path}}}: {untold}; type --set request.{path}=VALUE"
        ) from None
    return str(found)


# ---------------------------------------------------------------------------------- as JSON


def _plan_as_json(plan: Plan, key: bytes) -> Answer:
    return {
        "tool": plan.tool,
        "method": plan.method,
        "url": mask(plan.url, key),
        "headers": [[name, mask(value, key)] for name, value in plan.headers],
        "auth": plan.auth or None,
        "auth_header": plan.credential.header if plan.credential else None,
        "lacks": plan.lacks or None,
    }


def _heard_as_json(heard: Heard, plan: Plan, key: bytes) -> Answer:
    text, why, is_cut = _text(heard)
    text = _masked(text, plan, key)
    if is_cut:
        text = text[: -_tail_characters(plan)]
    return {
        "status": heard.status,
        "media_type": _masked(heard.media_type, plan, key)[:100],
        "location": _masked(heard.location, plan, key)[:SHOWN_CHARACTERS_MAX] or None,
        "bytes": len(heard.body),
        "digest": heard.digest,
        "is_cut": is_cut or len(text) > SHOWN_CHARACTERS_MAX,
        "text": text[:SHOWN_CHARACTERS_MAX],
        "why_no_text": why or None,
    }


def _text(heard: Heard) -> tuple[str, str, bool]:
    """The beginning of the body as a person reads it, or why not; and whether more followed."""
    is_cut = heard.is_cut or len(heard.body) > READ_BYTES_MAX
    if heard.coding not in ("", "identity"):
        return "", f"it is coded as {heard.coding[:20]!r}", is_cut
    try:
        utf8 = codecs.getincrementaldecoder("utf-8")()
        text = utf8.decode(heard.body[:READ_BYTES_MAX], final=not is_cut)
    except UnicodeDecodeError:
        return "", "it is no text", is_cut
    if "\0" in text:
        return "", "it is no text", is_cut
    return (text, "", True) if is_cut else _laid_out(text)


def _laid_out(text: str) -> tuple[str, str, bool]:
    """JSON with a line for each value, up to a bound: deep nesting makes kilobytes of each byte."""
    pieces: list[str] = []
    size = 0
    try:
        for piece in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(json.loads(text)):
            pieces.append(piece)
            size += len(piece)
            if size > READ_BYTES_MAX:
                return "".join(pieces)[:READ_BYTES_MAX], "", True
    except (ValueError, RecursionError):
        return text, "", False
    return "".join(pieces), "", False


def _tail_characters(plan: Plan) -> int:
    """How long the beginning of a secret may be that stands where a text was cut."""
    secrets = plan.credential.secrets if plan.credential else ()
    return max([_TAIL_CHARACTERS, *(len(each) for it in secrets for each in spelled(it))])


def spelled(secret: str) -> set[str]:
    """As it is, and as JSON and URLs would spell it."""
    return {secret, json.dumps(secret, ensure_ascii=False)[1:-1], quote(secret, safe="")}


def _masked(text: str, plan: Plan, key: bytes) -> str:
    """Without what looks like a secret, and without the credential that the call carried, also as
    JSON and URLs would spell it."""
    for secret in plan.credential.secrets if plan.credential else ():
        for spelling in sorted(spelled(secret), key=len, reverse=True):
            text = text.replace(spelling, mark(secret, key))
    return mask(text, key)
