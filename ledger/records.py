"""What the gate and the store hand each other: plain frozen values, no SQL, no behaviour."""

from dataclasses import dataclass, field

from ledger.states import CallState, ClaimAfter, HoldState
from policies.call import NO_TRAITS, Identity, Request, ToolCall, Traits
from policies.ceilings import Ceiling
from policies.verdict import Limit, Pull, Verdict


@dataclass(frozen=True, slots=True)
class Bearer:
    """Credentials of `token` mode; resolved inside the transaction, so a revocation is at once."""

    run: str
    token_hash: bytes = field(repr=False)


Claimant = Identity | Bearer | None
"""Who says that they call: an identity as told (`open` mode), a token, or nobody."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One call to judge. `call_id` is a UUIDv7, `at_us` UTC microseconds.

    Of the request only method, host and redacted path are recorded. With `may_wait` a write that
    meets its twin in flight leaves no trace, nor does a call that may wait for room under a
    ceiling: the gate waits and asks again. `worker` is the registered engine process that holds the
    call; empty for the process of the store itself.
    `bound_to` is set once the call was held: the digest of the exact request, credentials too, to
    which an approval is bound; `approval` is the ticket that it waited on. `traits` are for the
    detectors.
    """

    call_id: str
    at_us: int
    claimant: Claimant
    request: Request
    call: ToolCall
    may_wait: bool = False
    worker: str = ""
    approval: str = ""
    bound_to: bytes = field(default=b"", repr=False)
    traits: Traits = NO_TRAITS


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """The body of a long answer: a file in DATA/answers, sealed with this key (answer_files.py).
    `size_bytes` is the body's length."""

    name: str
    key: bytes = field(repr=False)
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a write, kept to be given again byte for byte. A long body is in a `file`, and
    `body` is empty."""

    status: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)
    file: AnswerFile | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """`identity` is None when nobody valid asked; `answer` is set for a replay only; `approval` is
    the ticket by which a person let this call through."""

    verdict: Verdict
    identity: Identity | None
    answer: Answer | None = None
    approval: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an admitted call ended. `answer` is kept while its claim lives; `error` is for people.
    `request_digest` is of a body that was not read before the verdict: the SHA-256 of its bytes.

    `reason` is the code of what stopped it, as its caller was told; empty where nothing did.
    Tokens and cost are those of a model call, None where its answer told none.
    What the call reserved becomes what it `used`, also where that was only seen and not told; None
    keeps the reservation.
    `result` is the digest of the answer without what changes by itself, for the detectors; `failed`
    says that the answer itself tells of a failure, whatever its status.
    """

    call_id: str
    at_us: int
    state: CallState
    claim_after: ClaimAfter
    status: int | None = None
    latency_us: int = 0
    response_digest: bytes | None = None
    response_bytes: int = 0
    answer: Answer | None = None
    error: str = ""
    reason: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_microusd: int | None = None
    used_tokens: int | None = None
    used_microusd: int | None = None
    request_digest: bytes | None = None
    result: bytes = b""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a running call may use more, at most as much as it asked for.

    `verdict` is why it gets nothing, and then it is to be cut.
    """

    tokens: int
    microusd: int
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a person must see of a call before letting it through: all of it. `ledger.shown` masks
    the credentials before they are kept."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Hold:
    """A ticket: a call that waits for a person, and what that person said. It is named by the call
    that opened it; `summary` is redacted. An approval that nobody uses ends at `until_us`.
    """

    ticket: str
    run: str
    tenant: str
    agent: str
    tool: str
    rule: str
    summary: str
    state: HoldState
    at_us: int
    until_us: int
    decided_us: int | None = None
    actor: str = ""
    reason: str = ""
    used_by: str = ""
    bound_to: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class OwnState:
    """What a run may know about itself: the cords over it, and what is left under each ceiling.

    `windows` are the ceiling of each of the `limits` and whose window it is.
    """

    identity: Identity
    pulls: tuple[Pull, ...]
    limits: tuple[Limit, ...]
    windows: tuple[tuple[Ceiling, str], ...]


@dataclass(frozen=True, slots=True)
class Worker:
    """An engine process that holds calls. `started` is the kernel's start time of the process as
    text, since a pid alone may be another's by now; `seen_us` its last heartbeat."""

    id: str
    pid: int
    started: str
    seen_us: int


@dataclass(frozen=True, slots=True)
class Operator:
    """Who may act through the control API. `id` is the start of the hash of the token."""

    id: str
    name: str
    role: str
    actor: str
    created_us: int
    revoked_us: int | None


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was found open when the ledger was opened, and is `unknown` since."""

    calls: int = 0
    claims: int = 0
