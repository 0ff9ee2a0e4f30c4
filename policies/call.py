"""What is judged: the request, who sent it, the tool it means, and the facts of the moment.

Plain frozen values. Nothing here parses, decides or waits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from policies.ceilings import Ceiling, Window
from policies.verdict import Pulls, Reason


class Effect(StrEnum):
    """What a call does to the world. A model call is never deduplicated and passes a freeze."""

    READ = "read"
    WRITE = "write"
    MODEL = "model"


class Dialect(StrEnum):
    """The grammar in which the caller understands a refusal."""

    HTTP = "http"
    MCP = "mcp"
    GRAPHQL = "graphql"
    GRPC = "grpc"
    AWS = "aws"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GOOGLE = "google"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as read from the wire, after the consistency checks.

    `host` is lower case, without brackets or a trailing dot; `target` is path and query as sent;
    header names are lower case, in the order sent.
    """

    method: str
    scheme: str
    host: str
    port: int
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)

    def header(self, name: str) -> str | None:
        """The first value of a header, by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is calling. `ancestors` runs from the parent to the root and is empty for a root.

    `tools` are the globs that the token is bound to; None means all that the tenant may use.
    """

    run: str
    tenant: str
    ancestors: tuple[str, ...] = ()
    agent: str = ""
    release: str = ""
    tools: tuple[str, ...] | None = None

    @property
    def parent(self) -> str:
        return self.ancestors[0] if self.ancestors else ""

    @property
    def root(self) -> str:
        return self.ancestors[-1] if self.ancestors else self.run


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A request as the policy understands it.

    `fingerprint` is the SHA-256 of method, normalised URL, content type, account and canonical
    body; two calls with one fingerprint ask for the same thing. `key` is the idempotency key that
    was sent.
    `fault` is set when the request can only be refused (a batch of writes, say); `detail` says why.
    """

    tool: str
    effect: Effect
    operation: str
    fingerprint: bytes
    key: str | None = None
    dialect: Dialect = Dialect.HTTP
    rpc_id: str | int | None = None
    fault: Reason | None = None
    detail: str = ""


class ClaimState(StrEnum):
    PENDING = "pending"
    DONE = "done"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Claim:
    """The claim that a write meets. `same_key` is False when it was met by its body alone."""

    call_id: str
    state: ClaimState
    fingerprint: bytes
    same_key: bool
    has_answer: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store knew when the call was judged, read in the admission transaction.

    `refused` is why there is no identity. `pulls` are the stored cords, all of them; `windows` are
    the ceilings that this call draws on, by id, with their subject and what is used of each.
    """

    now_us: int
    identity: Identity | None
    refused: Reason | None = None
    pulls: Pulls = field(default_factory=dict)
    claim: Claim | None = None
    windows: Mapping[str, tuple[Ceiling, str, Window]] = field(default_factory=dict)
