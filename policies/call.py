"""What is judged: the request, who sent it, the tool it means, and the facts of the moment.

Plain frozen values. Nothing here parses, decides or waits.
"""

from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from policies.ceilings import Ceiling, Window
from policies.verdict import Pulls, Reason

Argument = str | int | Decimal | bool | None


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
    header names are lower case, in the order sent. `streamed`: its body flows on unread after the
    verdict, and `body` is empty.
    """

    method: str
    scheme: str
    host: str
    port: int
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)
    streamed: bool = False

    @property
    def body_bytes(self) -> int:
        """The length of its body. Of one that is streamed, as its head tells; 0 if it does not."""
        told = self.header("content-length") if self.streamed else None
        return int(told) if told and told.isdecimal() else len(self.body)

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
    `budgets` are micro-dollars for the whole life of this run and of those above it that have any:
    each counts what the run and its descendants spend.
    """

    run: str
    tenant: str
    ancestors: tuple[str, ...] = ()
    agent: str = ""
    release: str = ""
    tools: tuple[str, ...] | None = None
    read_only: bool = False
    budgets: tuple[tuple[str, int], ...] = ()

    @property
    def parent(self) -> str:
        return self.ancestors[0] if self.ancestors else ""

    @property
    def root(self) -> str:
        return self.ancestors[-1] if self.ancestors else self.run


@dataclass(frozen=True, slots=True)
class Worth:
    """What a call may take, estimated before it is made; reserved, and settled when it ended.

    `priced` is False where the list has no price for its model: it is charged the policy's rate.
    """

    tokens: int = 0
    spend_microusd: int = 0
    bytes_up: int = 0
    model: str = ""
    priced: bool = True


NOTHING = Worth()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A request as the policy understands it.

    `fingerprint` is the SHA-256 of method, normalised URL, content type, account and canonical
    body; two calls with one fingerprint ask for the same thing. `key` is the idempotency key that
    was sent.
    `fault` is set when the request can only be refused (a batch of writes, say); `detail` says why.
    `operations` is how many it makes at once: an MCP batch, the root fields of a GraphQL query.
    `arguments` are what the policy's conditions read of the body: each path with all values that
    stand there; `unread` are those that cannot be read for certain, each with why. `own` marks the
    housekeeping of a protocol, which has no arguments to judge. `host` is where it goes, `method`
    how. `streamed`: its fingerprint is of its head alone. `part`: these are more bytes of a call
    that was let through.
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
    host: str = ""
    worth: Worth = NOTHING
    operations: int = 1
    arguments: tuple[tuple[str, tuple[Argument, ...]], ...] = ()
    unread: tuple[tuple[str, str], ...] = ()
    own: bool = False
    method: str = ""
    streamed: bool = False
    part: bool = False


@dataclass(frozen=True, slots=True)
class Traits:
    """What the detectors know a call by before it is answered; digests, empty where there is none.

    `action` is of the tool and its arguments without what changes by itself, `recipient` of whom a
    write is for, `human` of what a person last said to a model. `mark` is the number of the
    progress that the run says it made; 0 if it says nothing.
    """

    action: bytes = b""
    recipient: bytes = b""
    human: bytes = b""
    mark: int = 0


NO_TRAITS = Traits()


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


class Draw(NamedTuple):
    """One ceiling that a call draws on: whose window, what is used of it, how much this would add.

    Calls in flight are a window of one bucket.
    """

    ceiling: Ceiling
    subject: str
    window: Window
    amount: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store knew when the call was judged, read in the admission transaction.

    `refused` is why there is no identity. `pulls` are the stored cords, all of them; `drawn` are
    the ceilings that this call draws on. `approved`: a person let this very call pass.
    """

    now_us: int
    identity: Identity | None
    refused: Reason | None = None
    pulls: Pulls = field(default_factory=dict)
    claim: Claim | None = None
    drawn: tuple[Draw, ...] = ()
    approved: bool = False
