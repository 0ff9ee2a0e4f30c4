"""The life of a call and of a claim, as tables. Nothing here writes."""

from enum import StrEnum
from typing import Literal

from policies.call import ClaimState, Effect


class CallState(StrEnum):
    PENDING = "pending"
    DONE = "done"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"
    REFUSED = "refused"
    REPLAYED = "replayed"
    HELD = "held"


class ClaimAfter(StrEnum):
    """What becomes of a call's claim when the call is settled. `KEPT`: the call had none."""

    DONE = "done"
    UNKNOWN = "unknown"
    RELEASED = "released"
    KEPT = "kept"


class EventType(StrEnum):
    """What a row of the record tells."""

    INTENT = "call.intent"
    REFUSED = "call.refused"
    REPLAYED = "call.replayed"
    HELD = "call.held"
    OUTCOME = "call.outcome"
    RESOLVED = "call.resolved"
    VERIFIED = "call.verified"
    PULLED = "cord.pulled"
    PULLED_AGAIN = "cord.pulled_again"  # as it stood, which changes nothing
    RELEASED = "cord.released"
    NARROWED = "cord.narrowed"
    MINTED = "token.minted"
    REVOKED = "token.revoked"
    POLICY = "policy.accepted"
    RECOVERED = "store.recovered"
    JOINED = "worker.joined"
    LOST = "worker.lost"
    ENROLLED = "operator.enrolled"
    DISMISSED = "operator.dismissed"
    DRILLED = "drill.run"
    ALERTED = "alert.received"
    REFUSED_ACT = "control.refused"
    CLOCK = "clock.stepped"
    HOLD_OPENED = "hold.opened"
    HOLD_APPROVED = "hold.approved"
    HOLD_REJECTED = "hold.rejected"
    HOLD_EXPIRED = "hold.expired"
    HOLD_USED = "hold.used"
    HOLD_KEPT = "hold.kept"
    CROSSED = "ceiling.crossed"
    UNPRICED = "model.unpriced"
    ADJUSTED = "budget.adjusted"
    PRUNED = "ledger.pruned"
    BEHIND_SEAL = "ledger.behind_seal"
    TRACE_BEHIND = "trace.behind_seal"
    TRACE_LOST = "trace.lost"
    SPAWNED = "run.spawned"
    PROGRESSED = "run.progressed"
    ENDED = "run.ended"
    DETECTOR_OBSERVED = "detector.observed"
    DETECTOR_ALERTED = "detector.alerted"
    DETECTOR_TRIPPED = "detector.tripped"
    INCIDENT_OPENED = "incident.opened"
    INCIDENT_ACKED = "incident.acked"
    INCIDENT_NOTED = "incident.noted"
    INCIDENT_STEP = "incident.step"  # of the runbook, done
    INCIDENT_PROVEN = "incident.proven"  # its regression test
    INCIDENT_NOTIFIED = "incident.notified"  # a tenant was told of it
    INCIDENT_CLOSED = "incident.closed"


# What a call may become. `unknown` ends only by a person's word, never by time.
NEXT: dict[CallState, frozenset[CallState]] = {
    CallState.PENDING: frozenset({CallState.DONE, CallState.NOT_SENT, CallState.UNKNOWN}),
    CallState.HELD: frozenset(
        {CallState.PENDING, CallState.REFUSED, CallState.REPLAYED, CallState.NOT_SENT}
    ),
    CallState.UNKNOWN: frozenset({CallState.DONE, CallState.NOT_SENT}),
    CallState.DONE: frozenset(),
    CallState.NOT_SENT: frozenset(),
    CallState.REFUSED: frozenset(),
    CallState.REPLAYED: frozenset(),
}

# What a claim may become; None means that its row goes and the write may be made again. A claim
# that is done goes by time, one that is unknown only by a person's word.
CLAIM_NEXT: dict[ClaimState, frozenset[ClaimState | None]] = {
    ClaimState.PENDING: frozenset({ClaimState.DONE, ClaimState.UNKNOWN, None}),
    ClaimState.UNKNOWN: frozenset({ClaimState.DONE, None}),
    ClaimState.DONE: frozenset({None}),
}


class HoldState(StrEnum):
    """Of a ticket: a call that waits for a person, and what that person said."""

    WAITING = "waiting"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    USED = "used"


# What a ticket may become. An approval is used once; it stands again when nothing was sent by it.
HOLD_NEXT: dict[HoldState, frozenset[HoldState]] = {
    HoldState.WAITING: frozenset({HoldState.APPROVED, HoldState.REJECTED, HoldState.EXPIRED}),
    HoldState.APPROVED: frozenset({HoldState.USED, HoldState.REJECTED, HoldState.EXPIRED}),
    HoldState.USED: frozenset({HoldState.APPROVED}),
    HoldState.REJECTED: frozenset(),
    HoldState.EXPIRED: frozenset(),
}

# Statuses by which an upstream says that it did nothing, so that the write may be tried again:
# Misdirected Request, Too Early, Too Many Requests (RFC 9110 15.5.20, RFC 8470 5.2, RFC 6585 4).
NOTHING_DONE = frozenset({421, 425, 429})
# Credentials were refused (RFC 9110 15.5.2, 15.5.8): an answer like any other, unless the policy
# says that the tool did nothing then.
UNAUTHORIZED = frozenset({401, 407})
CONFLICT = 409


def outcome_of(
    effect: Effect,
    *,
    sent: bool,
    status: int | None,
    complete: bool,
    forwarded_key: bool,
    unauthorized: Literal["store", "release"] = "store",
) -> tuple[CallState, ClaimAfter]:
    """What a call has become, and its claim: rows 6 to 12 of notes/store.md, section 2.

    `sent` is True from the moment that a byte may have gone upstream, `complete` when the whole
    answer came. `status` is None when no answer came. `forwarded_key` is True when the upstream
    was given an idempotency key: then a 409 may speak about an earlier attempt. `unauthorized` is
    what the tool's policy says of 401 and 407.
    """
    if effect is not Effect.WRITE:
        if not sent:
            return CallState.NOT_SENT, ClaimAfter.KEPT
        # An answer that began and broke off is not one that was given.
        known = status is not None and complete
        return CallState.DONE if known else CallState.UNKNOWN, ClaimAfter.KEPT
    if not sent:
        return CallState.NOT_SENT, ClaimAfter.RELEASED
    if status is None or not complete or status >= 500:
        return CallState.UNKNOWN, ClaimAfter.UNKNOWN
    if status in NOTHING_DONE or (status in UNAUTHORIZED and unauthorized == "release"):
        return CallState.DONE, ClaimAfter.RELEASED
    if status == CONFLICT and forwarded_key:
        return CallState.UNKNOWN, ClaimAfter.UNKNOWN
    return CallState.DONE, ClaimAfter.DONE


def may_be_replayed(after: ClaimAfter, status: int) -> bool:
    """Whether an answer is kept for the next caller: what is done, and a server's error (row 10).

    A conflict over a key that the upstream knew (row 9) tells of that moment only.
    """
    return after is ClaimAfter.DONE or (after is ClaimAfter.UNKNOWN and status >= 500)
