"""Undoing the writes of an incident, one by one, in the process that decides.

Each call that undoes one is admitted as an intent with a claim of its own, which is on the disk
before it leaves, and settled as every write is. So it is made once, whoever asks and however often;
where it is not known whether it was made, it is not made again before a person has said.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import structlog

from ledger.compensation import Undoing
from ledger.connection import open_reader
from ledger.decoding import decoded
from ledger.errors import LedgerError
from ledger.open_incidents import Incident
from ledger.records import Ask, Decision, Outcome
from ledger.states import CallState, ClaimAfter, outcome_of
from ledger.store import Store
from policies.call import Dialect, Effect, Identity
from policies.decide import decide_undo
from policies.detectors import answers
from policies.policy import UNDO_RUN, Policy
from policies.verdict import MEANING, Action, Level, Pulls, Reason, Verdict
from proxy import compensations, incidents, operations, operator_calls, verifying
from proxy.authority import UPSTREAM_FILE
from proxy.catching import Catch
from proxy.clock import Clock, new_id
from proxy.compensations import State, Step
from proxy.compensations_shown import step_as_json
from proxy.decider import Decider
from proxy.operations import OperationError
from proxy.operator_calls import Heard, Plan, Unheard
from proxy.operator_plans import request_of
from proxy.settings import Settings
from proxy.tracing import Tracing

log = structlog.get_logger()

Answer = dict[str, Any]


class Service(Protocol):
    """The running proxy as it is needed here."""

    @property
    def decider(self) -> Decider: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def listening(self) -> str | None: ...
    @property
    def tracing(self) -> Tracing | None: ...


@dataclass(frozen=True, slots=True)
class Wish:
    """`incident` is an id or the start of one, `call` an id; `given` are values of places that the
    person knows, such as `response.id`."""

    incident: str
    call: str
    actor: str
    reason: str = ""
    given: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Looked:
    incident: Incident
    step: Step
    pulls: Pulls  # by which it was contained


async def compensated(service: Service, wish: Wish) -> Answer:
    """Undo one write, unless it was undone or may have been. Raises OperationError, NotFound,
    CredentialsError and LedgerError."""
    operations.check_text("the reason", wish.reason)
    if len(wish.given) > verifying.GIVEN_MAX:
        raise OperationError(f"more than {verifying.GIVEN_MAX} values are given")
    policy = service.decider.policy
    looked = await asyncio.to_thread(_looked, service, policy, wish)
    one = looked.step
    if one.state is not State.READY or one.plan is None or one.taken is None:
        return await asyncio.to_thread(_told, service, policy, wish, "")
    now_us = service.clock.now_us()
    call_id = new_id(now_us)
    identity = Identity(UNDO_RUN, one.call["tenant"] or "")
    ask = Ask(call_id, now_us, identity, request_of(one.plan), one.taken)
    said = "; ".join(filter(None, (wish.reason, *_given(wish))))
    undoing = Undoing(one.call["id"], looked.incident.id, wish.actor, said)
    admit = partial(_admitted, service.decider, policy, looked, ask, undoing)
    verdict = (await service.decider.act(admit)).verdict
    log.info(
        "incident.compensating",
        incident=looked.incident.id,
        call=call_id,
        undoes=one.call["id"],
        tool=one.plan.tool,
        actor=wish.actor,
        decision=verdict.action.value,
        decided_by=verdict.reason.value,
    )
    if verdict.action is Action.ALLOW:
        catch = None
        if service.tracing is not None:
            catch = service.tracing.asked(ask, identity, policy, is_let_through=True)
        state = await _made(service, policy, one.plan, one.taken.dialect, call_id, catch)
        log.info("incident.compensated", incident=looked.incident.id, call=call_id, state=state)
    refused = "" if verdict.action is Action.ALLOW else _sentence(verdict)
    return await asyncio.to_thread(_told, service, policy, wish, refused)


def _admitted(
    decider: Decider, policy: Policy, looked: _Looked, ask: Ask, undoing: Undoing, store: Store
) -> Decision:
    if decider.policy is not policy:
        raise LedgerError("the policy was changed meanwhile; look at the plan, and type it again")
    if decider.pulls != looked.pulls:  # one may have been released
        compensations.check_contained(looked.incident, policy, decider.pulls)
    return store.compensate(ask, undoing, policy, decide_undo)


def _given(wish: Wish) -> list[str]:
    return [f"{place} was given as {value}" for place, value in wish.given.items()]


def _sentence(verdict: Verdict) -> str:
    """Why the gate does not let it pass."""
    meaning = MEANING[verdict.reason]
    if verdict.earlier_call:
        return f"{meaning.title}: pullcord ledger show {verdict.earlier_call}"
    return ": ".join(filter(None, (meaning.title, verdict.rule, verdict.detail)))


# ---------------------------------------------------------------------------------- looking


def _read[Found](
    service: Service, policy: Policy, what: Callable[[compensations.Ground], Found]
) -> Found:
    data = service.settings.data
    with (
        contextlib.closing(open_reader(data)) as reader,
        compensations.on(data, reader, policy) as ground,
    ):
        return what(ground)


def _looked(service: Service, policy: Policy, wish: Wish) -> _Looked:
    def look(ground: compensations.Ground) -> _Looked:
        incident = incidents.named(ground.reader, wish.incident)
        pulls = dict(service.decider.pulls)
        compensations.check_contained(incident, policy, pulls)
        return _Looked(incident, _named(ground, incident, wish), pulls)

    return _read(service, policy, look)


def _named(ground: compensations.Ground, incident: Incident, wish: Wish) -> Step:
    one = compensations.named_step(ground, incident, wish.call, wish.given)
    if one.call["id"] != wish.call:  # what moves money is named in full
        raise OperationError(f"{wish.call!r} is only the start of a call's id; write all of it")
    return one


def _told(service: Service, policy: Policy, wish: Wish, refused: str) -> Answer:
    """How it stands with the write now, as the record has it."""

    def look(ground: compensations.Ground) -> Answer:
        incident = incidents.named(ground.reader, wish.incident)
        one = _named(ground, incident, wish)
        return {**step_as_json(ground, one), "refused": refused or None}

    return _read(service, policy, look)


# ---------------------------------------------------------------------------------- making it


@dataclass(slots=True)
class _Wire:
    """Whether a byte of it may have left."""

    sent: bool = False

    def sending(self) -> None:
        self.sent = True


async def _made(
    service: Service,
    policy: Policy,
    plan: Plan,
    dialect: Dialect,
    call_id: str,
    catch: Catch | None,
) -> CallState:
    """Make an admitted call, and settle it; how it ended. `catch` takes its answer for the
    trace."""
    decider, clock, wire = service.decider, service.clock, _Wire()

    def stops(tool: str) -> str:
        # A freeze stops what has not left; a halt cuts what has.
        levels = (Level.HALT,) if wire.sent else (Level.HALT, Level.FREEZE)
        return operator_calls.stopped(decider.policy, decider.pulls, tool, levels)

    ground = verifying.ground(service.settings, service.listening, policy, stops)
    trust, began = ground.data / UPSTREAM_FILE, clock.monotonic_seconds()
    heard, error = None, ""
    try:
        heard = await operator_calls.made(
            plan, ground.dialer, trust, partial(stops, plan.tool), wire.sending
        )
    except Unheard as unheard:
        error = str(unheard)
    except Exception as failure:  # of ours: whatever it is, it is settled
        log.exception("incident.compensation_failed", call=call_id)
        error = type(failure).__name__
    latency_us = round((clock.monotonic_seconds() - began) * 1e6)
    if catch is not None:
        _caught(catch, plan, heard)
    if heard is not None:
        error = _uncertain(heard, dialect)
    outcome = outcome_after(call_id, clock.now_us(), wire.sent, heard, error, latency_us)
    try:
        await decider.settle(outcome, durable=True)
    except LedgerError as failure:  # it is owed, and its claim holds
        log.error("outcome.owed", call=call_id, error=str(failure))
    return outcome.state


def _caught(catch: Catch, plan: Plan, heard: Heard | None) -> None:
    """The answer, without the credential should the upstream send it back: it is no agent's, so
    nothing in it tells the trace what to mask."""
    if heard is not None:
        found = decoded(heard.body, heard.coding)
        body = b"" if found is None else found.body
        for secret in plan.credential.secrets if plan.credential else ():
            for spelling in sorted(verifying.spelled(secret), key=len, reverse=True):
                body = body.replace(spelling.encode(), b"[redacted]")
        catch.headed(heard.status, (("content-type", heard.media_type),))
        catch.add(body)
    catch.settled(None, (), is_first=True, is_over=True)


def _uncertain(heard: Heard, dialect: Dialect) -> str:
    """Why an answer does not tell whether it was done; empty where it does."""
    if 300 <= heard.status < 400:
        return "it was answered with a redirect, which is not followed"
    if heard.status < 300 and answers.read(heard.body, dialect)[1]:
        return "under a status of success the tool answered with an error"
    return ""


def outcome_after(
    call_id: str, at_us: int, sent: bool, heard: Heard | None, error: str, latency_us: int
) -> Outcome:
    """What a call that undoes a write has become. One that the tool declined did nothing and may
    be tried again; what was heard with an `error` tells nothing."""
    status = None if heard is None else heard.status
    state, after = outcome_of(
        Effect.WRITE, sent=sent, status=status, complete=heard is not None, forwarded_key=True
    )
    if heard is not None and error:
        state, after = CallState.UNKNOWN, ClaimAfter.UNKNOWN
    elif state is CallState.DONE and status is not None and status >= 400:
        after = ClaimAfter.RELEASED
    reason = ""
    if state is CallState.UNKNOWN:
        reason = Reason.OUTCOME_UNKNOWN.value
    elif state is CallState.NOT_SENT:
        reason = Reason.NOT_SENT.value
    return Outcome(
        call_id,
        at_us,
        state,
        after,
        status,
        latency_us,
        bytes.fromhex(heard.digest) if heard is not None and heard.body else None,
        len(heard.body) if heard is not None else 0,
        error=error,
        reason=reason,
    )
