"""What the trace is made of: a message as it was caught, and as it is kept. Plain values.

What was caught is never stored so: trace.py redacts it first. It lives in memory and on a socket of
our own user.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from policies.policy import Redaction


class Side(StrEnum):
    """Which way it went. A WebSocket's messages follow its request and response, in order."""

    REQUEST = "request"
    RESPONSE = "response"
    UP = "message_up"
    DOWN = "message_down"


@dataclass(frozen=True, slots=True)
class Caught:
    """One message of a call as it was on the wire. `body` holds its first bytes, `body_bytes` is
    how many there were in all. `start` is method and URL of a request, the status of a response.
    With level `digest` its body is given up after its digest was taken."""

    call_id: str
    side: Side
    at_us: int
    run: str
    tenant: str
    tool: str
    release: str
    level: Literal["full", "digest"]
    start: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)
    body_bytes: int = 0
    redaction: Redaction = field(default_factory=Redaction)


@dataclass(frozen=True, slots=True)
class Kept:
    """One message as the trace shows it: redacted, decoded, a stream of events put together.

    `text` is None where only the digest was kept: by the policy, because it is no text, or because
    it was pruned; `why` says which. `digest` is the SHA-256 of the redacted text, or, where none
    was kept, a keyed hash of the body. `is_cut`: what is kept is only its beginning.
    """

    seq: int
    call_id: str
    side: Side
    at_us: int
    start: str
    headers: tuple[tuple[str, str], ...]
    media_type: str
    body_bytes: int
    is_cut: bool
    digest: str
    text: str | None
    why: str = ""
