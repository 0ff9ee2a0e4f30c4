"""The tables of states are complete, and outcomes become what the notes say."""

from typing import Literal

import pytest

from ledger.states import CLAIM_NEXT, NEXT, CallState, ClaimAfter, may_be_replayed, outcome_of
from policies.call import ClaimState, Effect

DONE, UNKNOWN, NOT_SENT = CallState.DONE, CallState.UNKNOWN, CallState.NOT_SENT
W, R, M = Effect.WRITE, Effect.READ, Effect.MODEL
LET_GO = ClaimAfter.RELEASED


def test_every_state_has_its_line() -> None:
    assert set(NEXT) == set(CallState)
    assert set(CLAIM_NEXT) == set(ClaimState)


def test_unknown_becomes_nothing_by_itself() -> None:
    assert CallState.PENDING not in NEXT[UNKNOWN]
    assert ClaimState.PENDING not in CLAIM_NEXT[ClaimState.UNKNOWN]


@pytest.mark.parametrize(
    "effect, sent, status, complete, forwarded_key, state, after",
    [
        pytest.param(W, True, 200, True, True, DONE, ClaimAfter.DONE, id="2xx"),
        pytest.param(W, True, 101, True, True, DONE, ClaimAfter.DONE, id="101"),
        pytest.param(W, True, 303, True, True, DONE, ClaimAfter.DONE, id="3xx"),
        pytest.param(W, True, 402, True, True, DONE, ClaimAfter.DONE, id="4xx"),
        pytest.param(W, True, 401, True, True, DONE, ClaimAfter.DONE, id="401"),
        pytest.param(W, True, 421, True, True, DONE, LET_GO, id="421"),
        pytest.param(W, True, 425, True, True, DONE, LET_GO, id="425"),
        pytest.param(W, True, 429, True, False, DONE, LET_GO, id="429"),
        pytest.param(W, True, 409, True, True, UNKNOWN, ClaimAfter.UNKNOWN, id="409 with a key"),
        pytest.param(W, True, 409, True, False, DONE, ClaimAfter.DONE, id="409 without a key"),
        pytest.param(W, True, 500, True, True, UNKNOWN, ClaimAfter.UNKNOWN, id="500"),
        pytest.param(W, True, 503, True, False, UNKNOWN, ClaimAfter.UNKNOWN, id="503"),
        pytest.param(W, False, None, False, True, NOT_SENT, LET_GO, id="write not sent"),
        pytest.param(W, True, None, False, True, UNKNOWN, ClaimAfter.UNKNOWN, id="no answer"),
        pytest.param(W, True, 200, False, True, UNKNOWN, ClaimAfter.UNKNOWN, id="broken off"),
        pytest.param(W, True, 429, False, True, UNKNOWN, ClaimAfter.UNKNOWN, id="429 broken off"),
        pytest.param(R, True, 200, True, False, DONE, ClaimAfter.KEPT, id="read"),
        pytest.param(R, True, 500, True, False, DONE, ClaimAfter.KEPT, id="failed read"),
        pytest.param(R, True, None, False, False, UNKNOWN, ClaimAfter.KEPT, id="read, no answer"),
        pytest.param(R, False, None, False, False, NOT_SENT, ClaimAfter.KEPT, id="read not sent"),
        pytest.param(R, True, 200, False, False, UNKNOWN, ClaimAfter.KEPT, id="read, broken off"),
        pytest.param(M, True, 200, True, False, DONE, ClaimAfter.KEPT, id="model"),
        pytest.param(M, True, 200, False, False, UNKNOWN, ClaimAfter.KEPT, id="model, broken off"),
        pytest.param(M, True, None, False, False, UNKNOWN, ClaimAfter.KEPT, id="model, no answer"),
    ],
)
def test_what_becomes_of_a_call(
    effect: Effect,
    sent: bool,
    status: int | None,
    complete: bool,
    forwarded_key: bool,
    state: CallState,
    after: ClaimAfter,
) -> None:
    got = outcome_of(
        effect, sent=sent, status=status, complete=complete, forwarded_key=forwarded_key
    )
    assert got == (state, after)


@pytest.mark.parametrize("status", [401, 407])
def test_refused_credentials_release_a_write_where_the_policy_says_so(status: int) -> None:
    def ended(word: Literal["store", "release"], status: int, complete: bool = True) -> object:
        return outcome_of(
            W, sent=True, status=status, complete=complete, forwarded_key=True, unauthorized=word
        )

    assert ended("store", status) == (DONE, ClaimAfter.DONE)
    assert ended("release", status) == (DONE, LET_GO)
    assert ended("release", 403) == (DONE, ClaimAfter.DONE)
    assert ended("release", status, complete=False) == (UNKNOWN, ClaimAfter.UNKNOWN)


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("effect", Effect)
def test_every_outcome_can_follow_an_intent(effect: Effect, complete: bool, sent: bool) -> None:
    for status in (None, *range(100, 600)):
        state, after = outcome_of(
            effect, sent=sent, status=status, complete=complete, forwarded_key=True
        )
        assert state in NEXT[CallState.PENDING]
        assert (after is ClaimAfter.KEPT) is (effect is not Effect.WRITE)
        if state is UNKNOWN and effect is Effect.WRITE:
            assert after is ClaimAfter.UNKNOWN


@pytest.mark.parametrize(
    "after, status, kept",
    [
        (ClaimAfter.DONE, 200, True),
        (ClaimAfter.DONE, 402, True),
        (ClaimAfter.UNKNOWN, 500, True),
        (ClaimAfter.UNKNOWN, 409, False),
        (ClaimAfter.UNKNOWN, 200, False),
        (ClaimAfter.RELEASED, 429, False),
        (ClaimAfter.KEPT, 200, False),
    ],
)
def test_which_answers_are_given_again(after: ClaimAfter, status: int, kept: bool) -> None:
    assert may_be_replayed(after, status) is kept
