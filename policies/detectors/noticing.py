"""What the detectors know a call by: digests of what is asked, of whom it is for, of what came.

Two calls have one digest where they differ only in what changes by itself (volatile.py). The work
is bounded: of long texts a part counts (volatile.HASHED_BYTES_MAX). The record keys these digests
before it keeps them (ledger/steps.py).
"""

import hashlib
from collections.abc import Collection
from typing import NamedTuple

from policies.call import Dialect, Effect, Request, ToolCall, Traits
from policies.detectors import answers, recipients, sent, spoken, volatile
from policies.head import Head, read_head

MARK_HEADER = "x-pullcord-progress"
MARK_MAX = 2**53  # what every client writes exactly


def traits(request: Request, call: ToolCall, at_us: int) -> Traits:
    """`at_us` is when it was asked. The housekeeping of a protocol has no action: nobody repeats
    it on purpose. What is asked in a socket or an upload goes by later: such a call is known by its
    head, so that a second one with the same head is no new write; what went by tells in its result
    (`with_body`). Raises nothing that an agent could bring about."""
    number = mark(request.header(MARK_HEADER))
    if call.fault is not None or call.own:
        return Traits(mark=number)
    if call.effect is Effect.MODEL:
        return Traits(human=spoken.human(request.body, at_us), mark=number)
    unseen = _unseen(request)
    path, _, query = request.target.partition("?")
    asked = sent.query(query, call.dialect, at_us)
    body = sent.Sent() if unseen else sent.body(request, call.dialect, at_us)
    action = _digest(
        *unseen,
        _text(call.tool),
        _text(request.method),
        _text(request.host),
        _text(path),
        sent.selectors(request),
        volatile.of_arguments(asked.text, at_us) if asked.text else b"",
        volatile.of_arguments(body.text, at_us) if body.text else b"",
    )
    if call.effect is not Effect.WRITE:
        return Traits(action, mark=number)
    found = recipients.in_fields(body.fields) + recipients.in_message(body.message)
    if body.is_long:
        found = recipients.in_text(body.text)
    found = found or recipients.in_fields(asked.fields)
    return Traits(action, recipients.digest(found, request.host, call.tool), mark=number)


def _unseen(request: Request) -> tuple[bytes, ...]:
    """What of a request is asked after its head, and all that its head tells of that."""
    if request.streamed:
        return b"upload", b"%d" % request.body_bytes
    if request.method == "CONNECT" or request.header("upgrade") is not None:
        head = read_head(request)
        if isinstance(head, Head) and head.upgrades:
            return (b"socket",)
    return ()


def unread(request: Request, call: ToolCall) -> bytes:
    """The action of a call that could not be looked at: its head, as it was sent."""
    told = (call.tool, request.method, request.host, request.target)
    return _digest(b"unread", *[_text(text) for text in told])


def unknown(call_id: str) -> bytes:
    """The result of a call that nobody has seen yet: it is like no other."""
    return _digest(b"unknown", call_id.encode())


def with_body(digest: bytes, body_digest: bytes | None) -> bytes:
    """The result of an upload, of which the body is known only now."""
    return _digest(digest, body_digest or b"")


def mark(value: str | None) -> int:
    """The number of the progress that a run says it made; 0 if it says none, or no plain one."""
    if value is None or len(value) > 16 or not (value.isascii() and value.isdigit()):
        return 0
    number = int(value)
    return number if number <= MARK_MAX else 0


class Told(NamedTuple):
    """`digest` is of an answer; `failed`: it tells itself of a failure, whatever its status."""

    digest: bytes = b""
    failed: bool = False


def result(
    status: int,
    beginning: bytes,
    dialect: Dialect,
    *,
    longer_bytes: int | None = None,
    left_out: Collection[answers.Path] = (),
) -> Told:
    """Of an answer. `beginning` is its decoded body, or as much as was kept; if there is more,
    `longer_bytes` is the length of all. `left_out` are members that were learned to change by
    themselves (learning.py)."""
    text, failed = answers.read(beginning, dialect, left_out)
    length = b"" if longer_bytes is None else b"%d" % longer_bytes
    return Told(_digest(b"%d" % (status // 100), length, volatile.of_result(text)), failed)


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _digest(*parts: bytes) -> bytes:
    """Of parts framed so that no two lists of parts give the same bytes."""
    return hashlib.sha256(b"".join([b"%d:%s" % (len(part), part) for part in parts])).digest()
