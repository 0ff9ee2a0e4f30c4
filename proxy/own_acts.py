"""What a run may do for itself, done in the decider's transaction: mint narrower tokens for runs
that it starts, declare steps, mark progress, say that it has ended. How it is asked for and told
over HTTP is own.py.
"""

import json
from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from ledger.errors import LedgerError, LedgerUnavailable, NotGranted, OverCeiling
from ledger.records import Ask, Bearer
from ledger.store import Store
from ledger.tokens import TOOLS_MAX, Grant
from policies.call import Identity
from policies.policy import Policy
from policies.standing import standing
from policies.verdict import Action, Level, Pulls, Reason, Verdict
from proxy import operations
from proxy.judging import OwnTold
from proxy.money import Usd
from proxy.own import END, PROGRESS, STEPS, TOKENS

STEPS_MAX = 1_000  # at once; whoever has made more says so again
MARK_MAX = 2**53 - 1  # the largest whole number that every JSON reader has exactly
NOTE_CHARS_MAX = 200


class _Wish(BaseModel):
    """A body of a run's: what it does not know is a mistake."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _Child(_Wish):
    run: str
    agent: str = ""
    tools: Annotated[list[str], Field(max_length=TOOLS_MAX)] | None = None
    budget_usd: Usd | None = None
    expires_in: Annotated[int, Field(ge=1)] | None = None
    """Seconds; left out, as long as the parent's token."""
    read_only: bool = False


class _Steps(_Wish):
    steps: Annotated[int, Field(ge=1, le=STEPS_MAX)] = 1


class _Mark(_Wish):
    mark: Annotated[int, Field(ge=1, le=MARK_MAX)]
    note: Annotated[str, Field(max_length=NOTE_CHARS_MAX)] = ""


class _End(_Wish):
    """Nothing more to say."""


def done(store: Store, ask: Ask, body: bytes, policy: Policy) -> OwnTold:
    """Act on a body for this path. A mistake of the caller's is told as 400, tools that it may not
    grant as 403, what else the record does not allow as 409. Raises LedgerUnavailable."""
    wish, act = _ACTS[ask.request.path]
    try:
        return act(store, ask, body, policy)
    except ValidationError as error:
        return _mistake(400, f"your request is wrong: {_told(error, wish)}")
    except operations.OperationError as error:
        return _mistake(400, f"your request is wrong: {error}")
    except OverCeiling as over:
        return over.verdict
    except LedgerUnavailable:
        raise
    except NotGranted as error:
        return _mistake(403, str(error))
    except LedgerError as error:
        return _mistake(409, str(error))


def _stopped(policy: Policy, identity: Identity, pulls: Pulls) -> Verdict | None:
    """Whom a halt stops does nothing, and starts nothing that would be stopped with it."""
    halt = standing(policy, "", identity, pulls, Level.HALT)
    return Verdict(Action.REFUSE, Reason.HALTED, halt.rule, halt.reason) if halt else None


def _minted(store: Store, ask: Ask, body: bytes, policy: Policy) -> OwnTold:
    parent = store.acting(ask, policy, _stopped)
    if not isinstance(parent, Identity):
        return parent
    by = ask.claimant
    if not isinstance(by, Bearer):
        return _mistake(
            409,
            "this proxy runs with `identity: open`, where runs name themselves and no token is "
            "looked at; start it with --identity token to mint any",
        )
    wish = _Child.model_validate_json(body)
    grant = Grant(
        run=wish.run,
        agent=wish.agent,
        tools=None if wish.tools is None else tuple(wish.tools),
        expires_us=None if wish.expires_in is None else ask.at_us + wish.expires_in * 1_000_000,
        budget_microusd=wish.budget_usd,
        read_only=wish.read_only,
    )
    new = operations.mint(store, grant, f"run:{parent.run}", ask.at_us, policy, by=by)
    told = operations.token_as_json(new.token)
    shown = ("run", "tenant", "parent", "agent", "release", "tools", "read_only", "budget_usd")
    answer = {name: told[name] for name in (*shown, "expires")}
    # What goes into the child's proxy address in place of the parent's: http://RUN:TOKEN@HOST:PORT
    answer |= {"token": new.secret, "proxy": {"username": wish.run, "password": new.secret}}
    return 201, json.dumps(answer)


def _stepped(store: Store, ask: Ask, body: bytes, policy: Policy) -> OwnTold:
    who = store.acting(ask, policy, _stopped)
    if not isinstance(who, Identity):
        return who
    wish = _Steps.model_validate_json(body.strip() or b"{}")
    refused = store.step(who, wish.steps, policy, ask.at_us)
    return refused or (200, json.dumps({"run": who.run, "steps": wish.steps}))


def _marked(store: Store, ask: Ask, body: bytes, policy: Policy) -> OwnTold:
    who = store.acting(ask, policy, _stopped)
    if not isinstance(who, Identity):
        return who
    wish = _Mark.model_validate_json(body)
    refused = store.progress(who, wish.mark, wish.note, policy, ask.at_us)
    return refused or (200, json.dumps({"run": who.run, "mark": wish.mark}))


def _ended(store: Store, ask: Ask, body: bytes, policy: Policy) -> OwnTold:
    who = store.acting(ask, policy, _stopped)
    if not isinstance(who, Identity):
        return who
    _End.model_validate_json(body.strip() or b"{}")
    refused = store.end(who, policy, ask.at_us)
    return refused or (200, json.dumps({"run": who.run, "ended": True}))


_Act = Callable[[Store, Ask, bytes, Policy], OwnTold]
_ACTS: Mapping[str, tuple[type[_Wish], _Act]] = {
    TOKENS: (_Child, _minted),
    STEPS: (_Steps, _stepped),
    PROGRESS: (_Mark, _marked),
    END: (_End, _ended),
}


def _mistake(status: int, message: str) -> tuple[int, str]:
    return status, json.dumps({"error": {"message": message}})


def _told(error: ValidationError, wish: type[_Wish]) -> str:
    if error.error_count() > len(wish.model_fields) + 2:  # thousands would take long to tell
        known = ", ".join(wish.model_fields) or "none"
        return f"{error.error_count()} mistakes; there are {known}"
    return "; ".join(_of_one(detail, wish) for detail in error.errors())


def _of_one(detail: ErrorDetails, wish: type[_Wish]) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = ", ".join(wish.model_fields) or "none"
        return f"unknown key {place[:40]!r}; there are {known}"
    if detail["type"] == "missing":
        return f"{place!r} is missing"
    return f"{place or 'the body'}: {detail['msg']}"
