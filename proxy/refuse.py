"""Verdict -> the refusal that the calling SDK understands, and the sentence that its model reads.

Pure: no I/O, no clock. Whether a call is refused is decided elsewhere; here is only how that is
told. Which answer each client gives up on, and which text it prints: notes/clients.md, section 3.
"""

import html
import json
import re
from dataclasses import dataclass
from string import punctuation
from typing import Any
from urllib.parse import quote

from ledger.answer_files import AnswerReader
from policies.call import Dialect, Request
from policies.verdict import MEANING, Action, Limit, Reason, Verdict
from proxy.sentences import detail_of, may_retry, plain_word, sentence, wait_seconds

Headers = tuple[tuple[str, str], ...]
Members = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A whole answer of our own; the engine adds the framing. A long body is read from `file`."""

    status: int
    headers: Headers
    body: bytes
    file: AnswerReader | None = None


def decision_header(action: Action, reason: Reason, call_id: str) -> str:
    """The value of `Pullcord-Decision`."""
    return f"{action}; reason={reason}; call={plain_word(call_id)}"


def replay_headers(stored: Headers, verdict: Verdict, call_id: str) -> Headers:
    """What a stored answer is given again with: its own headers, but for those of one exchange."""
    return (
        *((name, value) for name, value in stored if name.lower() not in _PER_ANSWER),
        ("Idempotent-Replayed", "true"),
        ("Pullcord-Decision", decision_header(verdict.action, verdict.reason, call_id)),
    )


_PER_ANSWER = frozenset(("pullcord-decision", "content-length", "transfer-encoding", "connection"))


QUOTA_UNITS = frozenset(("requests", "content-bytes", "concurrent-requests"))
"""The words of the draft (section 3.1.2); another unit goes into a parameter of ours, as
section 3.1 allows: a client that does not know it must not take it for requests."""

_LARGEST = 999_999_999_999_999  # RFC 9651, section 3.3.1: an Integer has 15 digits


def _rate_limit(limit: Limit) -> Headers:
    """draft-ietf-httpapi-ratelimit-headers-11, sections 3 and 4. A limit for life has no window.

    Money is in micro-dollars: `pullcord-unit="micro-usd"`.
    """
    plain = "".join(c if " " <= c <= "~" else "_" for c in limit.name)
    name = '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
    parameter = "qu" if limit.unit in QUOTA_UNITS else "pullcord-unit"
    unit = f';{parameter}="{limit.unit}"' if limit.unit else ""
    window = f";w={limit.window_seconds}" if limit.window_seconds else ""
    reset = f";t={limit.reset_seconds}" if limit.reset_seconds else ""
    at_most, remaining = min(limit.at_most, _LARGEST), min(limit.remaining, _LARGEST)
    return (
        ("ratelimit-policy", f"{name};q={at_most}{unit}{window}"),
        ("ratelimit", f"{name};r={remaining}{reset}"),
    )


def _headers(verdict: Verdict, call_id: str) -> Headers:
    """What every refusal carries, in whatever dialect."""
    headers: Headers = (
        ("pullcord-decision", decision_header(verdict.action, verdict.reason, call_id)),
        ("x-should-retry", "true" if may_retry(verdict) else "false"),
        ("cache-control", "no-store"),
    )
    if seconds := wait_seconds(verdict):
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
    (502, False): ("api_error", "FAILED_PRECONDITION", 9),
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
        "call": plain_word(call_id),
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

    A gRPC request is answered as one even where it was refused before anything else was read.
    Raises KeyError for a reason that refuses nothing.
    """
    message, headers = sentence(verdict, call_id, run, request), _headers(verdict, call_id)
    status = MEANING[verdict.reason].status
    content_type = (request and request.header("content-type")) or ""
    if dialect is Dialect.GRPC or content_type.lower().startswith("application/grpc"):
        number = KINDS[status, may_retry(verdict)][2]
        headers += (("content-type", "application/grpc"), ("grpc-status", str(number)))
        headers += (("grpc-message", quote(message, safe=_GRPC_PLAIN)),)
        return Refusal(407 if status == 407 else 200, headers, b"")
    if verdict.reason in BEFORE_THE_CALL or (dialect is Dialect.MCP and rpc_id is None):
        dialect = Dialect.HTTP if dialect in IN_A_RESULT else dialect
    agent = (request and request.header("user-agent")) or user_agent
    if status == 403 and dialect not in IN_A_RESULT and agent.lower().startswith("claude-cli"):
        status = 400  # it reads a 403 as a failed login (notes/clients.md, section 3)
    members = _members(
        verdict, call_id, status, message, detail_of(message, verdict.reason, request)
    )
    if dialect is Dialect.AWS:
        content_headers, body = _aws(members, request)
    else:
        body = json.dumps(_in_dialect(dialect, members, rpc_id)).encode()
        kind = "problem+json" if dialect is Dialect.HTTP else "json"
        content_headers = (("content-type", f"application/{kind}"),)
    if request and request.method == "HEAD":
        body = b""
    return Refusal(200 if dialect in IN_A_RESULT else status, headers + content_headers, body)
