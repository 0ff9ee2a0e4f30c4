"""What an operator's call would be: a tool of the policy, with what is known of a call filled in.

A plan is made only of what the policy itself takes for a read of that tool. Nothing here asks
anybody; operator_calls.py does.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from policies.call import Effect, Request
from policies.load_records import PLACE, PLACES
from policies.match import identify
from policies.policy import OperatorCall, Policy, Tool
from proxy.credentials import FRAMING, Credential
from proxy.operations import OperationError
from proxy.operator_calls import TLS_PORT, Plan

VALUE_CHARACTERS_MAX = 1_024  # of what is filled in for one place

_IN_HEADER = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_STRUCTURE = frozenset("/\\?#%;")

Request_ = Callable[[str], str]
"""The value at a dotted path of the request that is asked about; raises OperationError."""


class Known(NamedTuple):
    """What is known of the call that is asked about. `given` are words of the person who asks."""

    call: Mapping[str, object]
    given: Mapping[str, str]
    request: Request_


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
    tool = policy.tools[asked.tool]
    used: set[str] = set()
    host, port = _host(tool, known), tool.port or TLS_PORT
    method = asked.method or _method(tool)
    path = _filled(asked.path or _path(tool), known, _in_path, used)
    if "?" in path or "#" in path:
        raise OperationError("the path of a `verify` holds no query; it has a `query` beside it")
    pairs = [
        f"{quote(name, safe='')}={_filled(value, known, _in_query, used)}"
        for name, value in asked.query
    ]
    headers = tuple((name, _filled(text, known, _in_header, used)) for name, text in asked.headers)
    _check_headers(headers)
    if unused := sorted(known.given.keys() - used):
        raise OperationError(f"nothing of this call is {{{unused[0]}}}; leave it out of --set")
    credential, lacks = _credential(asked.auth, host, credentials, entries)
    if credential and any(name == credential.header for name, _ in headers):
        raise OperationError(
            f"both the policy and {asked.auth} name the header {credential.header}"
        )
    target = path + (f"?{'&'.join(pairs)}" if pairs else "")
    plan = Plan(
        asked.tool, method, host, port, target, headers, asked.auth or "", credential, lacks,
        tool.allow_addresses,
    )  # fmt: skip
    _check_reads(policy, plan)
    return plan


def _host(tool: Tool, known: Known) -> str:
    """The host of the call that is asked about where the tool covers it, else the tool's one."""
    host = str(known.call.get("host") or "")
    if host in tool.hosts or any(
        one.startswith("*.") and host.endswith(one[1:]) for one in tool.hosts
    ):
        return host
    if len(tool.hosts) == 1 and not tool.hosts[0].startswith("*."):
        return tool.hosts[0]
    raise OperationError(
        f"{tool.name} has several hosts, and none is {host}; give it one in `verify`"
    )


def _method(tool: Tool) -> str:
    methods = tool.methods or {"GET"}
    return next((looking for looking in ("GET", "HEAD") if looking in methods), min(methods))


def _path(tool: Tool) -> str:
    """The tool's own path, where its template is a plain text."""
    pattern = tool.path.pattern if tool.path is not None else "[^/]+"
    plain = re.sub(r"\\(.)", r"\1", pattern)
    if re.escape(plain) != pattern:
        raise OperationError(f"say which path of {tool.name} to ask: `path` in the policy's verify")
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
    request = Request(plan.method, "https", plan.host, plan.port, plan.target, plan.headers)
    call = identify(policy, request)
    where = f"{plan.method} {plan.host}{request.path}"
    if call.fault is not None:
        raise OperationError(f"{where} is no request that this proxy would let pass: {call.detail}")
    if call.tool != plan.tool:
        raise OperationError(f"the policy takes {where} for {call.tool}, not for {plan.tool}")
    if call.effect is not Effect.READ:
        raise OperationError(f"by the policy {where} is no read but a {call.effect}")


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
        if not value or len(value) > VALUE_CHARACTERS_MAX or not value.isprintable():
            raise OperationError(f"what {{{part}}} stands for is empty, long, or cannot be printed")
        filled.append(coded(part, value))
    return "".join(filled)


def _value(place: str, known: Known) -> str:
    if place in known.given:
        return known.given[place]
    if place in ("call", "run", "tenant"):
        return str(known.call["id" if place == "call" else place] or "")
    if place in ("at", "at_seconds"):
        at = str(known.call["at"])
        return at if place == "at" else str(int(datetime.fromisoformat(at).timestamp()))
    if place.startswith("request."):
        return known.request(place.removeprefix("request."))
    if place == "key":
        raise OperationError(
            "{key} is not known: only a hash is kept of an idempotency key; type --set key=KEY"
        )
    raise OperationError(f"{{{place}}} is unknown; there are {', '.join(PLACES)} and request.PATH")


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
