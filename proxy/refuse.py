"""Verdict -> the refusal that the calling SDK understands, and the sentence that its model reads.

Pure: no I/O, no clock. Whether a call is refused is decided elsewhere; here is only how that is
told. Which answer each client gives up on, and which text it prints: notes/clients.md, section 3.
"""

import html
import json
import re
import shlex
from dataclasses import dataclass
from string import ascii_letters, digits, punctuation
from typing import Any, NamedTuple
from urllib.parse import quote

from policies.call import Dialect, Request
from policies.verdict import MEANING, Action, Level, Limit, Reason, Scope, Verdict

Headers = tuple[tuple[str, str], ...]
Members = dict[str, Any]

TEXT_CHARACTERS_MAX = 300  # of one quoted name or detail; a run or host name has 256 at most


@dataclass(frozen=True, slots=True)
class Refusal:
    """A whole answer of our own; the engine adds the framing."""

    status: int
    headers: Headers
    body: bytes


OPERATOR = "Tell the user; an operator can"
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
    Reason.MALFORMED_REQUEST: Words("the request is malformed or ambiguous{why}"),
    Reason.AUTHORITY_MISMATCH: Words("the request names two destinations{why}"),
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
    Reason.OWN_LISTENER: Words("{host} is pullcord itself, which is no destination"),
    Reason.TOOL_NOT_ALLOWED: Words("{holder} may not use this tool{why}", "{operator} {grant}"),
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
        "{operator} {show}",
        "STOPPED",
    ),
    Reason.DONE_BUT_NOT_STORED: Words(
        "the write was done before as call {earlier} and its answer was not kept{why}",
        "Treat it as done. An operator can {show}",
    ),
    Reason.OVER_CEILING: Words("a ceiling is reached{why}", "{reopened}", "LIMITED"),
    # The failures of our own show no detail: it may quote what was sent. The log has it.
    Reason.STORE_UNAVAILABLE: Words(
        "the ledger cannot record, so nothing passes", "{operator} run: pullcord status", "STOPPED"
    ),
    Reason.POLICY_FAILURE: Words(
        "the call could not be judged", "{operator} find call {call} in pullcord's log.", "STOPPED"
    ),
    Reason.SHUTTING_DOWN: Words("pullcord is shutting down", word="STOPPED"),
    Reason.NOT_SENT: Words("the upstream could not be reached{why}", word="NOT SENT"),
    Reason.UPSTREAM_FAILED: Words("the upstream's answer did not arrive{why}", word="ENDED"),
    Reason.CUT: Words("{stands}{why}", "A write may have happened. {operator} {show}", "CUT"),
}
"""What each reason that can refuse is called. The braces are filled in by `sentence`."""

_WAIT_SECONDS = {Reason.IN_FLIGHT: 1, Reason.STORE_UNAVAILABLE: 5, Reason.SHUTTING_DOWN: 5}

_WORD = frozenset(ascii_letters + digits + "._~-")
_POLICY_LINE = re.compile(r".+\.ya?ml:\d+(:\d+)?")
_PLAIN_YAML = re.compile(r"[A-Za-z/][A-Za-z0-9._/~-]{0,127}")
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def _shown(text: str) -> str:
    """Text of the world on one line: what is not printable (controls, bidi) as an escape."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return shown if len(shown) <= TEXT_CHARACTERS_MAX else shown[:TEXT_CHARACTERS_MAX] + "..."


def _word(text: str) -> str:
    """An id as it may stand in a header and on a command line."""
    return "".join(c for c in text if c in _WORD)[:TEXT_CHARACTERS_MAX]


def may_retry(verdict: Verdict) -> bool:
    """Whether the same call can pass later without a person doing anything."""
    if verdict.reason is Reason.OVER_CEILING:
        return verdict.retry_after_seconds is not None and verdict.pull is None
    return MEANING[verdict.reason].retry


def _wait_seconds(verdict: Verdict) -> int | None:
    seconds = verdict.retry_after_seconds or _WAIT_SECONDS.get(verdict.reason)
    return seconds if may_retry(verdict) else None


def _retry(verdict: Verdict) -> str:
    if seconds := _wait_seconds(verdict):
        return f"Retry in {seconds} s."
    return "A retry is safe." if may_retry(verdict) else "Do not retry."


def _cord(rule: str, detail: str = "") -> tuple[str, str]:
    """What a cord (`halt:run:r1`) stops, and what an operator can do about it."""
    level, _, place = rule.partition(":")
    scope, _, subject = place.partition(":")
    if level not in set(Level) or scope not in set(Scope):
        return "this call was stopped", "run: pullcord status"
    name = f"{scope} {_shown(subject)}"
    if level == Level.HALT:
        verb, stands = "resume", f"{name} is halted" if subject else "everything is halted"
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
        return f"{OPERATOR} raise it in the policy."
    stands, lift = _cord(verdict.pull.rule)
    return f"Now {stands}. {OPERATOR} {lift}"


def _holder(rule: str) -> tuple[str, str]:
    """Who lacks a tool (`tenant:T` or `token:RUN`), and where an operator grants it."""
    kind, _, name = rule.partition(":")
    if kind == "token":
        return f"the token of run {_shown(name)}", "mint one that allows it."
    return f"{kind} {_shown(name)}", "add it to the tenant's list in the policy."


def sentence(verdict: Verdict, call_id: str, run: str, request: Request | None = None) -> str:
    """One line for the model and the person: what, why, whether to retry, who can do what.

    Raises KeyError for a reason that refuses nothing.
    """
    what, cure, word = SENTENCES[verdict.reason]
    stands, lift = _cord(verdict.rule, verdict.detail)
    holder, grant = _holder(verdict.rule)
    detail, call = _shown(_without_folder(verdict.detail)), _word(call_id)
    earlier = _word(verdict.earlier_call) or call
    host = _shown(request.host) if request and request.host else "the destination"
    return f"{word} by pullcord: {what}. {_retry(verdict)} {cure}".format(
        operator=OPERATOR,
        why=f" ({detail})" if detail else "",
        stands=stands,
        lift=lift,
        reopened=_reopened(verdict),
        holder=holder,
        grant=grant,
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


def _detail(message: str, reason: Reason, request: Request | None) -> str:
    """The sentence; for an unlisted destination also three lines of policy, ready to paste.

    A long path, or one that could read as a template, is left out.
    """
    if request is None or "{add}" not in SENTENCES[reason].cure:
        return message
    name, match = _entry(request, request.path if _PLAIN_YAML.fullmatch(request.path) else "")
    return f"{message}\ntools:\n  {name}:\n    {match}"


def decision_header(action: Action, reason: Reason, call_id: str) -> str:
    """The value of `Pullcord-Decision`."""
    return f"{action}; reason={reason}; call={_word(call_id)}"


def _rate_limit(limit: Limit) -> Headers:
    """draft-ietf-httpapi-ratelimit-headers-11, sections 3 and 4. A limit for life has no window."""
    plain = "".join(c if " " <= c <= "~" else "_" for c in limit.name)
    name = '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
    window = f";w={limit.window_seconds}" if limit.window_seconds else ""
    reset = f";t={limit.reset_seconds}" if limit.reset_seconds else ""
    return (
        ("ratelimit-policy", f"{name};q={limit.at_most}{window}"),
        ("ratelimit", f"{name};r={limit.remaining}{reset}"),
    )


def _headers(verdict: Verdict, call_id: str) -> Headers:
    """What every refusal carries, in whatever dialect."""
    headers: Headers = (
        ("pullcord-decision", decision_header(verdict.action, verdict.reason, call_id)),
        ("x-should-retry", "true" if may_retry(verdict) else "false"),
        ("cache-control", "no-store"),
    )
    if seconds := _wait_seconds(verdict):
        headers += (("retry-after", str(seconds)),)
    if verdict.limit:
        headers += _rate_limit(verdict.limit)
    if MEANING[verdict.reason].status == 407:
        headers += (("proxy-authenticate", 'Basic realm="pullcord", charset="UTF-8"'),)
    return headers


KINDS: dict[tuple[int, bool], tuple[str, str, int]] = {
    (400, False): ("invalid_request_error", "INVALID_ARGUMENT", 3),
    (403, False): ("permission_error", "PERMISSION_DENIED", 7),
    (407, False): ("authentication_error", "UNAUTHENTICATED", 16),
    (409, True): ("invalid_request_error", "ABORTED", 10),
    (409, False): ("invalid_request_error", "ALREADY_EXISTS", 6),
    (413, False): ("request_too_large", "INVALID_ARGUMENT", 3),
    (422, False): ("invalid_request_error", "FAILED_PRECONDITION", 9),
    (429, True): ("rate_limit_error", "RESOURCE_EXHAUSTED", 8),
    (429, False): ("rate_limit_error", "RESOURCE_EXHAUSTED", 8),
    (431, False): ("invalid_request_error", "INVALID_ARGUMENT", 3),
    (501, False): ("invalid_request_error", "UNIMPLEMENTED", 12),
    (502, True): ("api_error", "UNAVAILABLE", 14),
    (503, True): ("api_error", "UNAVAILABLE", 14),
    (503, False): ("api_error", "INTERNAL", 13),
    (504, False): ("timeout_error", "DEADLINE_EXCEEDED", 4),
}
"""Status and retry -> the error type that providers print, and the gRPC code with its number."""

BEFORE_THE_CALL = {Reason.TOKEN_REVOKED, Reason.TOKEN_EXPIRED} | {
    reason
    for reason, meaning in MEANING.items()
    if meaning.status in (400, 407, 413, 431, 501) and reason is not Reason.KEY_REQUIRED
}
"""These refuse the message, not a call in it: MCP and GraphQL get a plain HTTP answer."""

IN_A_RESULT = {Dialect.MCP, Dialect.GRAPHQL}
"""A refused call is a result of theirs, with status 200."""

_GRPC_PLAIN = " " + punctuation.replace("%", "")  # and letters and digits
_AWS_SIGNED = re.compile(r"/([a-z0-9-]+)/aws4_request|^Bearer ")
_AWS_XML = ("s3", "s3express", "s3-outposts", "s3-object-lambda", "cloudfront", "route53")


def _aws(members: Members, request: Request | None) -> tuple[Headers, bytes]:
    """XML for Query, EC2, S3 and two more, JSON for the rest: what botocore's parsers read.

    REST-JSON has no content type of its own, so the service is read from the signature's scope
    (SigV4); what is not signed is taken for S3.
    """
    content_type = (request and request.header("content-type")) or ""
    signed = _AWS_SIGNED.search((request and request.header("authorization")) or "")
    service = signed[1] if signed else "s3"
    is_form = content_type.startswith("application/x-www-form-urlencoded")
    is_json = content_type.startswith("application/x-amz-json-")
    code = "Pullcord" + members["reason"].title().replace("_", "")
    headers = (("x-amzn-errortype", code), ("x-amzn-requestid", members["call"]))
    if is_json or not (is_form or service in _AWS_XML):
        body = json.dumps({"__type": code, **members})
        return (("content-type", "application/x-amz-json-1.1"), *headers), body.encode()
    error = f"<Code>{code}</Code><Message>{html.escape(members['message'])}</Message>"
    end = f"<RequestId>{members['call']}</RequestId>"
    if is_form or not service.startswith("s3"):
        body = f"<ErrorResponse><Error>{error}</Error>{end}</ErrorResponse>"
    else:
        body = f"<Error>{error}{end}</Error>"
    return (("content-type", "application/xml"), *headers), body.encode()


def _in_dialect(dialect: Dialect, members: Members, rpc_id: str | int | None) -> Members:
    """The members as JSON of a dialect. Anthropic's `type` and Google's `status` win."""
    message, (_, code, _) = members["message"], KINDS[members["status"], members["retry"]]
    ours = {name: members[name] for name in ("reason", "call", "retry")}
    match dialect:
        case Dialect.ANTHROPIC:
            return {**members, "type": "error", "problem": members["type"]}
        case Dialect.GOOGLE:
            error = {"code": members["status"], "message": message, "status": code}
            return {**members, "status": code, "error": error}
        case Dialect.MCP:
            content = [{"type": "text", "text": message}]
            result = {"content": content, "isError": True, "_meta": {"pullcord": ours}}
            return {"jsonrpc": "2.0", "id": rpc_id, "result": result}
        case Dialect.GRAPHQL:
            error = {"message": message, "extensions": {"code": code, **ours}}
            return {"errors": [error], "data": None}
        case _:
            return members


def _members(verdict: Verdict, call_id: str, status: int, message: str, detail: str) -> Members:
    """The one body that serves all: RFC 9457, and `message` and `error` for provider SDKs."""
    retry, reason = may_retry(verdict), str(verdict.reason)
    error = {"message": message, "type": KINDS[status, retry][0], "code": reason, "param": None}
    return {
        "type": f"urn:pullcord:{reason}",
        "title": MEANING[verdict.reason].title,
        "status": status,
        "detail": detail,
        "reason": reason,
        "call": _word(call_id),
        "retry": retry,
        "message": message,
        "error": error,
    }


def refuse(
    verdict: Verdict,
    call_id: str,
    dialect: Dialect = Dialect.HTTP,
    rpc_id: str | int | None = None,
    *,
    run: str = "",
    user_agent: str = "",
    request: Request | None = None,
) -> Refusal:
    """The whole answer. `user_agent` is for when there is no `request` to read it from.

    Raises KeyError for a reason that refuses nothing.
    """
    message, headers = sentence(verdict, call_id, run, request), _headers(verdict, call_id)
    status = MEANING[verdict.reason].status
    if dialect is Dialect.GRPC:
        number = KINDS[status, may_retry(verdict)][2]
        headers += (("content-type", "application/grpc"), ("grpc-status", str(number)))
        headers += (("grpc-message", quote(message, safe=_GRPC_PLAIN)),)
        return Refusal(407 if status == 407 else 200, headers, b"")
    if verdict.reason in BEFORE_THE_CALL or (dialect is Dialect.MCP and rpc_id is None):
        dialect = Dialect.HTTP if dialect in IN_A_RESULT else dialect
    agent = (request and request.header("user-agent")) or user_agent
    if status == 403 and dialect not in IN_A_RESULT and agent.lower().startswith("claude-cli"):
        status = 400  # it reads a 403 as a failed login (notes/clients.md, section 3)
    members = _members(verdict, call_id, status, message, _detail(message, verdict.reason, request))
    if dialect is Dialect.AWS:
        content_headers, body = _aws(members, request)
    else:
        body = json.dumps(_in_dialect(dialect, members, rpc_id)).encode()
        kind = "problem+json" if dialect is Dialect.HTTP else "json"
        content_headers = (("content-type", f"application/{kind}"),)
    if request and request.method == "HEAD":
        body = b""
    return Refusal(200 if dialect in IN_A_RESULT else status, headers + content_headers, body)
