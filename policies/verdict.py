"""The words of a judgement: actions, reason codes, and what each reason means to a caller.

Sentences for people are built elsewhere from this table; nothing here knows a call or a clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Action(StrEnum):
    ALLOW = "allow"
    REPLAY = "replay"
    HOLD = "hold"
    REFUSE = "refuse"


class Level(StrEnum):
    """How hard a cord is pulled: a throttle lets few calls pass, a freeze no write, a halt none."""

    THROTTLE = "throttle"
    FREEZE = "freeze"
    HALT = "halt"


class Scope(StrEnum):
    GLOBAL = "global"
    TENANT = "tenant"
    RUN = "run"
    RELEASE = "release"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class Trial:
    """The runs of one release that go first past a cord, with their descendants, before all of that
    release may: those of `runs`, and the next `places` runs that come, which are then named here.

    All cords of one `incident` hold the same one. `after_seq` is the row of the record behind which
    it began, `cords` are the rules of those on which it was opened, `roots` those of the runs that
    took a place. `shut` is what a detector found, since when nobody goes first.
    """

    incident: str
    release: str
    runs: tuple[str, ...]
    places: int
    after_seq: int
    cords: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    shut: str = ""


@dataclass(frozen=True, slots=True)
class Pull:
    """One pulled cord: latched until a named person (or the policy line that made it) lifts it.

    `subject` is empty for the global scope, and may be `RUN/TOOL` for a tool (`tool_of`). `at_us`
    and `until_us` are UTC microseconds: the store ends a cord that has an `until_us`, judging never
    looks at it. Calls of `but_releases` pass, and those of the runs of a `trial`, for as long as
    the policy knows those releases as good.
    """

    level: Level
    scope: Scope
    subject: str
    reason: str
    actor: str
    at_us: int
    until_us: int | None = None
    but_releases: tuple[str, ...] = ()
    trial: Trial | None = None

    @property
    def lets_some_pass(self) -> bool:
        return bool(self.but_releases) or self.trial is not None

    @property
    def rule(self) -> str:
        name = f":{self.subject}" if self.subject else ""
        return f"{self.level}:{self.scope}{name}"

    @property
    def names(self) -> "Mapping[Scope, str]":
        """What it stands over, by kind: of `RUN/TOOL` both; nothing of the global scope."""
        if self.scope is not Scope.TOOL:
            return {self.scope: self.subject} if self.subject else {}
        run, tool = tool_of(self.subject)
        return {Scope.TOOL: tool, **({Scope.RUN: run} if run else {})}


Pulls = Mapping[tuple[Level, Scope, str], Pull]
"""Pulled cords by level, scope and subject."""


def tool_of(subject: str) -> tuple[str, str]:
    """Of a cord on a tool: the run whose calls of it are meant, with its descendants', empty for
    everybody's; and the tool. It is written `RUN/TOOL`: neither name holds a slash."""
    run, _, tool = subject.rpartition("/")
    return run, tool


class Reason(StrEnum):
    """Every verdict carries exactly one of these codes; tests and callers compare codes."""

    ALLOWED = "allowed"
    REPLAYED = "replayed"
    # Who is calling
    CREDENTIALS_REQUIRED = "credentials_required"
    CREDENTIALS_INVALID = "credentials_invalid"
    TOKEN_REVOKED = "token_revoked"  # noqa: S105 - a reason code, not a secret
    TOKEN_EXPIRED = "token_expired"  # noqa: S105 - a reason code, not a secret
    PRINCIPAL_UNKNOWN = "principal_unknown"
    # What was sent
    MALFORMED_REQUEST = "malformed_request"
    AUTHORITY_MISMATCH = "authority_mismatch"
    BODY_TOO_LARGE = "body_too_large"
    HEAD_TOO_LARGE = "head_too_large"
    PROTOCOL_UNSUPPORTED = "protocol_unsupported"
    BATCH_OF_WRITES = "batch_of_writes"
    # Pulled cords
    HALTED = "halted"
    FROZEN = "frozen"
    # Where it goes and whether it may
    DESTINATION_UNLISTED = "destination_unlisted"
    DESTINATION_READ_ONLY = "destination_read_only"
    ADDRESS_REFUSED = "address_refused"
    OWN_LISTENER = "own_listener"
    TOOL_NOT_ALLOWED = "tool_not_allowed"
    ARGUMENT_REFUSED = "argument_refused"
    READ_ONLY = "read_only"
    # Writes happen once
    KEY_REQUIRED = "key_required"
    KEY_REUSED = "key_reused"
    IN_FLIGHT = "in_flight"
    OUTCOME_UNKNOWN = "outcome_unknown"
    DONE_BUT_NOT_STORED = "done_but_not_stored"
    # Bounds
    OVER_CEILING = "over_ceiling"
    # A person must agree
    HELD = "held"
    HOLD_REJECTED = "hold_rejected"
    HOLD_EXPIRED = "hold_expired"
    # Failures, ours and the upstream's
    STORE_LOCKED = "store_locked"
    STORE_FULL = "store_full"
    STORE_READ_ONLY = "store_read_only"
    STORE_CORRUPT = "store_corrupt"
    STORE_MISSING = "store_missing"
    STORE_UNAVAILABLE = "store_unavailable"  # for any other cause
    CLOCK_STEPPED = "clock_stepped"
    DECIDER_UNREACHABLE = "decider_unreachable"
    DETECTOR_FAILURE = "detector_failure"
    POLICY_FAILURE = "policy_failure"
    SHUTTING_DOWN = "shutting_down"
    NOT_SENT = "not_sent"
    UPSTREAM_UNTRUSTED = "upstream_untrusted"
    UPSTREAM_FAILED = "upstream_failed"
    CUT = "cut"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a reason tells the caller: the HTTP status, a short title, whether a retry can work."""

    status: int
    title: str
    retry: bool


MEANING: dict[Reason, Meaning] = {
    Reason.ALLOWED: Meaning(200, "allowed", False),
    Reason.REPLAYED: Meaning(200, "answered from the record", False),
    Reason.CREDENTIALS_REQUIRED: Meaning(407, "proxy credentials are required", False),
    Reason.CREDENTIALS_INVALID: Meaning(407, "the proxy credentials are not valid", False),
    Reason.TOKEN_REVOKED: Meaning(403, "the run's token was revoked", False),
    Reason.TOKEN_EXPIRED: Meaning(403, "the run's token has expired", False),
    Reason.PRINCIPAL_UNKNOWN: Meaning(403, "this version knows no such kind of caller", False),
    Reason.MALFORMED_REQUEST: Meaning(400, "the request is malformed or ambiguous", False),
    Reason.AUTHORITY_MISMATCH: Meaning(400, "the request names two destinations", False),
    Reason.BODY_TOO_LARGE: Meaning(413, "the request body is too large", False),
    Reason.HEAD_TOO_LARGE: Meaning(431, "the request head is too large", False),
    Reason.PROTOCOL_UNSUPPORTED: Meaning(501, "this protocol cannot be inspected", False),
    Reason.BATCH_OF_WRITES: Meaning(400, "a batch may hold at most one write", False),
    Reason.HALTED: Meaning(403, "halted by an operator or a bound", False),
    Reason.FROZEN: Meaning(403, "writes are frozen", False),
    Reason.DESTINATION_UNLISTED: Meaning(403, "the policy lists no such destination", False),
    Reason.DESTINATION_READ_ONLY: Meaning(403, "unlisted destinations are read-only", False),
    Reason.ADDRESS_REFUSED: Meaning(403, "the destination's address is not allowed", False),
    Reason.OWN_LISTENER: Meaning(403, "pullcord itself is not a destination", False),
    Reason.TOOL_NOT_ALLOWED: Meaning(403, "this tenant or run may not use the tool", False),
    Reason.ARGUMENT_REFUSED: Meaning(403, "an argument is outside what is allowed", False),
    Reason.READ_ONLY: Meaning(403, "this run may only read", False),
    Reason.KEY_REQUIRED: Meaning(400, "this tool requires an idempotency key", False),
    Reason.KEY_REUSED: Meaning(422, "the idempotency key was used with another payload", False),
    Reason.IN_FLIGHT: Meaning(409, "the same write is still in flight", True),
    Reason.OUTCOME_UNKNOWN: Meaning(504, "the write was sent and its outcome is unknown", False),
    Reason.DONE_BUT_NOT_STORED: Meaning(409, "done before; the answer was not kept", False),
    Reason.OVER_CEILING: Meaning(429, "a ceiling is reached", True),
    Reason.HELD: Meaning(403, "it waits for a person's approval", False),
    Reason.HOLD_REJECTED: Meaning(403, "a person rejected it", False),
    Reason.HOLD_EXPIRED: Meaning(403, "nobody approved it in time", False),
    Reason.STORE_LOCKED: Meaning(503, "another program locks the ledger", True),
    Reason.STORE_FULL: Meaning(503, "the ledger's disk is full", False),
    Reason.STORE_READ_ONLY: Meaning(503, "the ledger cannot be written", False),
    Reason.STORE_CORRUPT: Meaning(503, "the ledger is damaged", False),
    Reason.STORE_MISSING: Meaning(503, "the ledger's file is gone", False),
    Reason.STORE_UNAVAILABLE: Meaning(503, "the ledger cannot record, so nothing passes", True),
    Reason.CLOCK_STEPPED: Meaning(503, "the system's clock has jumped", False),
    Reason.DECIDER_UNREACHABLE: Meaning(503, "the process that judges does not answer", True),
    Reason.DETECTOR_FAILURE: Meaning(503, "the detectors do not know what was before", False),
    Reason.POLICY_FAILURE: Meaning(503, "the call could not be judged, so it does not pass", False),
    Reason.SHUTTING_DOWN: Meaning(503, "pullcord is shutting down", True),
    Reason.NOT_SENT: Meaning(
        502, "nothing was done: the upstream was not reached, or took nothing", True
    ),
    Reason.UPSTREAM_UNTRUSTED: Meaning(
        502, "nothing was sent: the upstream's certificate is not trusted", False
    ),
    Reason.UPSTREAM_FAILED: Meaning(502, "the upstream's answer did not arrive", True),
    Reason.CUT: Meaning(403, "cut while in flight", False),
}


@dataclass(frozen=True, slots=True)
class Limit:
    """The ceiling that refused a call, for `RateLimit` headers. Counts and whole seconds.

    `unit` is the quota unit where the draft has a word for it, else what is counted; money is
    `micro-usd`, which no caller may take for requests.
    """

    name: str
    at_most: int
    remaining: int
    reset_seconds: int
    window_seconds: int
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to one call and why.

    `rule` names the line that decided (`halt:run:r1`, `tool:NAME`, `ceiling:ID`).
    `earlier_call` is the id of the call that holds the claim this one met.
    `pull` is the cord that a ceiling asks to be pulled in the same transaction.
    `wait_seconds` is how long the call may wait: for its turn under a ceiling, or for a person.
    `alerts` are the ceilings that it crossed and that only tell.
    """

    action: Action
    reason: Reason
    rule: str
    detail: str = ""
    retry_after_seconds: int | None = None
    limit: Limit | None = None
    earlier_call: str = ""
    pull: Pull | None = None
    wait_seconds: int = 0
    alerts: tuple[str, ...] = ()
