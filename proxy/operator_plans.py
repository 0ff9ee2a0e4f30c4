"""What an operator's call would be: a tool of the policy, with what is known of a call filled in.

A plan is made only of what the policy itself takes for a read of that tool; of a call that undoes a
write, for a write. Nothing here asks anybody; operator_calls.py does.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import orjson

from policies.call import Effect, Request, ToolCall
from policies.content import FORM
from policies.load_records import LOOKING, PLACE, PLACES
from policies.match import identify
from policies.policy import OperatorCall, Policy, Tool, Undo
from proxy.credentials import FRAMING, Credential
from proxy.operations import OperationError
from proxy.operator_calls import TLS_PORT, Plan
from proxy.recorded import Bare

VALUE_CHARACTERS_MAX = 1_024  # of what is filled in for one place
BODY_BYTES_MAX = 64 * 1024  # of a call that undoes a write: a form or an object, no upload

_IN_HEADER = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_STRUCTURE = frozenset("/\\?#%;")

At = Callable[[str], str]
"""The value at a dotted path of the request that is asked about, or of its response; raises
OperationError."""


def _no_response(path: str) -> str:
    raise OperationError("only what undoes a write knows its response")


class Known(NamedTuple):
    """What is known of the call that is asked about. `given` are words of the person who asks."""

    call: Mapping[str, object]
    given: Mapping[str, str]
    request: At
    response: At = _no_response


def planned(
    policy: Policy,
    asked: OperatorCall,
    known: Known,
    credentials: Mapping[str, Credential],
    entries: Path,
) -> Plan:
    """The call with all its places filled in. `entries` is the file of the credentials, to be
    named. Raises OperationError where it would not be a read of that tool, as the policy itself
    takes it."""
    used: set[str] = set()
    plan = _filled_in(policy, asked, known, credentials, entries, used)
    _check_used(known, used)
    _check_reads(policy, plan)
    return plan


def planned_undo(
    policy: Policy,
    asked: Undo,
    known: Known,
    credentials: Mapping[str, Credential],
    entries: Path,
    key: str,
) -> tuple[Plan, ToolCall]:
    """The call that undoes a write, and what the policy takes it for. `key` is its idempotency
    key. Raises OperationError where it would be no write of that tool, as the policy takes it."""
    used: set[str] = set()
    plan = _filled_in(policy, asked, known, credentials, entries, used)
    headers, body = plan.headers, b""
    if asked.form is not None:
        pairs = [(name, _filled(text, known, _as_is, used)) for name, text in asked.form]
        headers, body = (*headers, ("content-type", FORM)), urlencode(pairs).encode()
    elif asked.json is not None:
        filled = _json(json.loads(asked.json, parse_float=Bare, parse_int=Bare), known, used)
        headers, body = (*headers, ("content-type", "application/json")), orjson.dumps(filled)
    _check_used(known, used)
    if len(body) > BODY_BYTES_MAX:
        raise OperationError(f"its body would be longer than {BODY_BYTES_MAX} bytes")
    named = policy.tools[asked.tool].key.header
    if named and all(name != named for name, _ in headers):
        headers = (*headers, (named, key))
    plan = replace(plan, headers=headers, body=body)
    return plan, _checked_write(policy, plan)


def _filled_in(
    policy: Policy,
    asked: OperatorCall,
    known: Known,
    credentials: Mapping[str, Credential],
    entries: Path,
    used: set[str],
) -> Plan:
    """All but the body; the places that were filled in are `used`."""
    tool, word = policy.tool(asked.tool), "undo" if isinstance(asked, Undo) else "verify"
    if tool.name not in policy.tools:
        raise OperationError(f"the policy has no tool {asked.tool} any more")
    host, port = _host(tool, known, word), tool.port or TLS_PORT
    method = asked.method or _method(tool, word)
    path = _filled(asked.path or _path(tool, word), known, _in_path, used)
    if "?" in path or "#" in path:
        raise OperationError(f"the path of `{word}` holds no query; it has a `query` beside it")
    pairs = [
        f"{quote(name, safe='')}={_filled(value, known, _in_query, used)}"
        for name, value in asked.query
    ]
    headers = tuple((name, _filled(text, known, _in_header, used)) for name, text in asked.headers)
    _check_headers(headers)
    credential, lacks = _credential(asked.auth, host, credentials, entries)
    if credential and any(name == credential.header for name, _ in headers):
        raise OperationError(
            f"both the policy and {asked.auth} name the header {credential.header}"
        )
    target = path + (f"?{'&'.join(pairs)}" if pairs else "")
    return Plan(
        asked.tool, method, host, port, target, headers, asked.auth or "", credential, lacks,
        tool.allow_addresses,
    )  # fmt: skip


def _check_used(known: Known, used: set[str]) -> None:
    if unused := sorted(known.given.keys() - used):
        raise OperationError(f"nothing of this call is {{{unused[0]}}}; leave it out of --set")


def _host(tool: Tool, known: Known, word: str) -> str:
    """The host of the call that is asked about where the tool covers it, else the tool's one."""
    host = str(known.call.get("host") or "")
    if host in tool.hosts or any(
        one.startswith("*.") and host.endswith(one[1:]) for one in tool.hosts
    ):
        return host
    if len(tool.hosts) == 1 and not tool.hosts[0].startswith("*."):
        return tool.hosts[0]
    raise OperationError(
        f"{tool.name} has several hosts, and none is {host}; name a tool of one in `{word}`"
    )


def _method(tool: Tool, word: str) -> str:
    usual = ("POST", "DELETE", "PUT", "PATCH") if word == "undo" else ("GET", "HEAD")
    methods = tool.methods or {usual[0]}
    if word == "undo":
        methods = methods - LOOKING or methods
    return next((one for one in usual if one in methods), min(methods))


def _path(tool: Tool, word: str) -> str:
    """The tool's own path, where its template is a plain text."""
    pattern = tool.path.pattern if tool.path is not None else "[^/]+"
    plain = re.sub(r"\\(.)", r"\1", pattern)
    if re.escape(plain) != pattern:
        raise OperationError(f"say which path of {tool.name}: `path` in the policy's {word}")
    return plain


def _check_headers(headers: tuple[tuple[str, str], ...]) -> None:
    framing = [name for name, _ in headers if name in FRAMING]
    if framing:
        raise OperationError(f"the header {framing[0]} is not the policy's to set")


def _credential(
    auth: str | None, host: str, credentials: Mapping[str, Credential], entries: Path
) -> tuple[Credential | None, str]:
    if auth is None:
        return None, ""
    found = credentials.get(auth)
    if found is None:
        lacks = f"{entries} has no entry {auth!r}" if entries.exists() else f"there is no {entries}"
        entry = f"{json.dumps(auth)}: {{hosts: [{json.dumps(host)}], bearer: SECRET}}"
        return None, f"{lacks}; write there, for you alone (chmod 600): {entry}"
    if host not in found.hosts:
        return None, f"the entry {auth!r} of {entries} is not for {host}: its `hosts` lack it"
    return found, ""


def _check_reads(policy: Policy, plan: Plan) -> None:
    if plan.method not in ("GET", "HEAD"):
        line = policy.tools[plan.tool].line
        raise OperationError(
            f"only GET and HEAD look without changing anything, not {plan.method}: {plan.tool} "
            f"({policy.source}:{line}) is what `verify` names; give it a read there, and see "
            "pullcord policy check"
        )
    call, where = _taken(policy, plan)
    if call.effect is not Effect.READ:
        raise OperationError(f"by the policy {where} is no read but a {call.effect}")


def _checked_write(policy: Policy, plan: Plan) -> ToolCall:
    call, where = _taken(policy, plan)
    if call.effect is not Effect.WRITE:
        raise OperationError(f"by the policy {where} is no write but a {call.effect}")
    return call


def _taken(policy: Policy, plan: Plan) -> tuple[ToolCall, str]:
    """What the policy takes it for, and how it is named to people."""
    request = request_of(plan)
    call = identify(policy, request)
    where = f"{plan.method} {plan.host}{request.path}"
    if call.fault is not None:
        raise OperationError(f"{where} is no request that this proxy would let pass: {call.detail}")
    if call.tool != plan.tool:
        raise OperationError(f"the policy takes {where} for {call.tool}, not for {plan.tool}")
    return call, where


def request_of(plan: Plan) -> Request:
    """Without its credential."""
    return Request(plan.method, "https", plan.host, plan.port, plan.target, plan.headers, plan.body)


# ---------------------------------------------------------------------------------- its places


def _filled(text: str, known: Known, coded: Callable[[str, str], str], used: set[str]) -> str:
    """The text with its places filled in, all of it as `coded` writes it where it goes."""
    parts = PLACE.split(text)
    filled = []
    for number, part in enumerate(parts):
        if number % 2 == 0:
            filled.append(coded("", part))
            continue
        used.add(part)
        value = _value(part, known)
        _check_value(part, value)
        filled.append(coded(part, value))
    return "".join(filled)


def _check_value(place: str, value: str) -> None:
    if not value or len(value) > VALUE_CHARACTERS_MAX or not value.isprintable():
        raise OperationError(f"what {{{place}}} stands for is empty, long, or cannot be printed")


def _json(value: Any, known: Known, used: set[str]) -> Any:
    """With its places filled in. A text that is one place alone becomes the value as it is."""
    if isinstance(value, dict):
        return {name: _json(below, known, used) for name, below in value.items()}
    if isinstance(value, list):
        return [_json(below, known, used) for below in value]
    if isinstance(value, Bare):
        return orjson.Fragment(str(value))
    if not isinstance(value, str):
        return value
    alone = PLACE.fullmatch(value)
    if alone is None:
        return _filled(value, known, _as_is, used)
    used.add(alone[1])
    found = _value(alone[1], known)
    _check_value(alone[1], found)
    return orjson.Fragment(str(found)) if isinstance(found, Bare) else found


def _value(place: str, known: Known) -> str:
    """What is known counts: a person's word only fills in what is not."""
    given = known.given.get(place)
    try:
        found = _known(place, known)
    except OperationError:
        if given is None:
            raise
        return given
    if given is not None and given != found:
        raise OperationError(f"{{{place}}} is known, and is {found!r}; leave it out of --set")
    return found


def _known(place: str, known: Known) -> str:
    if place in ("call", "run", "tenant"):
        return str(known.call["id" if place == "call" else place] or "")
    if place in ("at", "at_seconds"):
        at = str(known.call["at"])
        return at if place == "at" else str(int(datetime.fromisoformat(at).timestamp()))
    if place.startswith("request."):
        return known.request(place.removeprefix("request."))
    if place.startswith("response."):
        return known.response(place.removeprefix("response."))
    if place == "key":
        raise OperationError(
            "{key} is not known: only a hash is kept of an idempotency key; type --set key=KEY"
        )
    raise OperationError(f"{{{place}}} is unknown; there are {', '.join(PLACES)} and request.PATH")


def _as_is(place: str, text: str) -> str:
    return text


def _in_path(place: str, text: str) -> str:
    if not place:
        return quote(text, safe="/%!$&'()*+,;=:@?#")
    if not _STRUCTURE.isdisjoint(text) or text in (".", ".."):
        raise OperationError(f"what {{{place}}} stands for would lead to another path: {text!r}")
    return quote(text, safe="")


def _in_query(place: str, text: str) -> str:
    return quote(text, safe="")


def _in_header(place: str, text: str) -> str:
    if place and not _IN_HEADER.fullmatch(text):
        raise OperationError(f"what {{{place}}} stands for is nothing that a header can hold")
    return text
