"""The order of judgement: tests/cases/decisions.yaml, and each line of it before all later ones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from policies.call import Claim, ClaimState, Draw, Facts, Identity, ToolCall
from policies.ceilings import Ceiling, Count, Per, Then, Window
from policies.decide import ORDER, decide
from policies.load import load
from policies.verdict import Action, Level, Pull, Pulls, Reason, Scope, Verdict

TABLE: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[1] / "cases" / "decisions.yaml").read_text()
)
POLICIES = {name: load(text, f"{name}.yaml") for name, text in TABLE["policies"].items()}
ROWS: list[dict[str, Any]] = TABLE["rows"]
NOW_US = 1_000_000_000

Build = Callable[..., Any]

# What `decide` answers; the other reasons are other parts' to give.
ANSWERS = {
    Reason.ALLOWED, Reason.REPLAYED, Reason.CREDENTIALS_REQUIRED, Reason.CREDENTIALS_INVALID,
    Reason.TOKEN_REVOKED, Reason.TOKEN_EXPIRED, Reason.MALFORMED_REQUEST, Reason.BATCH_OF_WRITES,
    Reason.PROTOCOL_UNSUPPORTED, Reason.HALTED, Reason.FROZEN, Reason.DESTINATION_UNLISTED,
    Reason.DESTINATION_READ_ONLY, Reason.TOOL_NOT_ALLOWED, Reason.KEY_REQUIRED, Reason.KEY_REUSED,
    Reason.IN_FLIGHT, Reason.OUTCOME_UNKNOWN, Reason.DONE_BUT_NOT_STORED, Reason.OVER_CEILING,
    Reason.READ_ONLY, Reason.ARGUMENT_REFUSED, Reason.HELD,
}  # fmt: skip


def named(row: dict[str, Any]) -> str:
    return str(row["it"])


def pulls_of(rules: list[str], but: list[str]) -> Pulls:
    """Cords from the store; one that ends in `:all` lets no release pass."""
    pulls = {}
    for rule in rules:
        level, scope, subject, *narrowed = rule.split(":")
        passing = () if narrowed else tuple(but)
        pull = Pull(Level(level), Scope(scope), subject, "by hand", "ada", 7, None, passing)
        pulls[pull.level, pull.scope, pull.subject] = pull
    return pulls


def claim_of(state: str, key: str, body: str, answer: str) -> Claim:
    fingerprint = b"f" * 32 if body == "same_body" else b"o" * 32
    return Claim("call-1", ClaimState(state), fingerprint, key == "same_key", answer == "answer")


def drawn_of(ceilings: list[tuple[str, int, int, str]]) -> tuple[Draw, ...]:
    """What is drawn on, one of each; windows of a minute and counted per run."""
    drawn = []
    for place, (count, at_most, used, then) in enumerate(ceilings):
        ceiling = Ceiling(f"c{place}", Per.RUN, Count(count), at_most, 60_000_000, Then(then))
        window = Window(ceiling.bucket(NOW_US), (0,) * 60 + (used,))
        drawn.append(Draw(ceiling, "r1", window, 1))
    return tuple(drawn)


def judged(row: dict[str, Any], a_call: Build, an_identity: Build) -> Verdict:
    call = dict(row.get("call", {}))
    if "fault" in call:
        call["fault"] = Reason(call["fault"])
    if "arguments" in call:
        call["arguments"] = tuple((path, tuple(v)) for path, v in call["arguments"].items())
    who = row.get("who", {})
    if who is not None:
        who = {key: tuple(v) if isinstance(v, list) else v for key, v in who.items()}
    facts = Facts(
        NOW_US,
        identity=None if who is None else an_identity(**who),
        refused=Reason(row["refused"]) if "refused" in row else None,
        pulls=pulls_of(row.get("pulls", []), row.get("but", [])),
        claim=claim_of(*row["claim"]) if "claim" in row else None,
        drawn=drawn_of(row.get("ceilings", [])),
        approved=row.get("approved", False),
    )
    return decide(POLICIES[row.get("policy", "house")], a_call(**call), facts)


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_a_call_is_judged(row: dict[str, Any], a_call: Build, an_identity: Build) -> None:
    verdict = judged(row, a_call, an_identity)
    assert [verdict.action, verdict.reason, verdict.rule] == row["expect"]
    assert row.get("says", verdict.detail) == verdict.detail
    assert row.get("waits", verdict.wait_seconds) == verdict.wait_seconds
    if "pulls_cord" in row:
        assert (verdict.pull and verdict.pull.rule) == row["pulls_cord"]
    if verdict.reason in (Reason.KEY_REUSED, Reason.IN_FLIGHT, Reason.REPLAYED):
        assert verdict.earlier_call == "call-1"


def test_every_answer_has_a_row() -> None:
    assert {Reason(row["expect"][1]) for row in ROWS} == ANSWERS


def test_sentences_name_rows_once() -> None:
    assert len({named(row) for row in ROWS}) == len(ROWS)


# One obstacle for each line of ORDER, in its order: what it changes in a row, and what it answers.
OBSTACLES: list[tuple[dict[str, Any], Reason]] = [
    ({"halt": "halt:run:r1"}, Reason.HALTED),
    ({"fault": "batch_of_writes"}, Reason.BATCH_OF_WRITES),
    ({"tool": "unlisted"}, Reason.DESTINATION_UNLISTED),
    ({"tenant": "none"}, Reason.TOOL_NOT_ALLOWED),
    ({"agent": "reader"}, Reason.READ_ONLY),
    ({"arguments": {"amount": []}}, Reason.ARGUMENT_REFUSED),
    ({"freeze": "freeze:global:"}, Reason.FROZEN),
    ({"claim": ["pending", "same_key", "same_body", "none"]}, Reason.IN_FLIGHT),
    ({"ceilings": [["calls", 1, 1, "halt"]]}, Reason.OVER_CEILING),
    ({"tool": "refunds", "arguments": {"amount": [5]}}, Reason.HELD),
]


@pytest.mark.parametrize("first", range(len(OBSTACLES)))
def test_each_line_wins_over_all_later_ones(first: int, a_call: Build, an_identity: Build) -> None:
    """With every obstacle from one on in the way, that one is named."""
    assert len(OBSTACLES) == len(ORDER)
    standing: dict[str, Any] = {}
    for obstacle, _ in reversed(OBSTACLES[first:]):
        standing |= obstacle
    row: dict[str, Any] = {
        "call": {key: standing[key] for key in ("fault", "tool", "arguments") if key in standing},
        "who": {"tenant": standing.get("tenant", "acme"), "agent": standing.get("agent", "")},
        "pulls": [standing[key] for key in ("halt", "freeze") if key in standing],
        **{key: standing[key] for key in ("claim", "ceilings") if key in standing},
    }
    assert judged(row, a_call, an_identity).reason is OBSTACLES[first][1]


def test_a_ceiling_says_when_to_come_back(a_call: Build, an_identity: Build) -> None:
    verdict = judged({"ceilings": [["calls", 3, 3, "freeze"]]}, a_call, an_identity)
    assert verdict.retry_after_seconds == 61
    assert verdict.limit is not None
    assert (verdict.limit.at_most, verdict.limit.remaining) == (3, 0)
    assert (verdict.limit.window_seconds, verdict.limit.reset_seconds) == (60, 61)
    assert verdict.pull is not None
    assert (verdict.pull.actor, verdict.pull.at_us) == ("ceiling:c0", NOW_US)


def test_a_stored_cord_and_a_line_of_the_policy_hold_alike(
    a_call: Build, an_identity: Build
) -> None:
    row = {"policy": "frozen", "pulls": ["freeze:tool:payments.create"]}
    assert judged(row, a_call, an_identity).detail == "by hand"
    verdict = judged({"policy": "frozen"}, a_call, an_identity)
    assert verdict.detail == "frozen.yaml:2"


@pytest.mark.parametrize("until_us", [0, NOW_US - 1, NOW_US, NOW_US + 1])
def test_a_halt_that_will_end_by_itself_is_a_halt_like_any_other(
    until_us: int, a_call: Build, an_identity: Build
) -> None:
    """The store ends it; until then the agent is told the same, and not to wait for the end."""
    latched = Pull(Level.HALT, Scope.RUN, "r1", "by hand", "ada", 7)
    ending = replace(latched, until_us=until_us)
    told = [
        decide(
            POLICIES["house"],
            a_call(),
            Facts(NOW_US, an_identity(), pulls={(Level.HALT, Scope.RUN, "r1"): pull}),
        )
        for pull in (latched, ending)
    ]
    assert told[0] == told[1]
    assert told[0].reason is Reason.HALTED
    assert told[0].retry_after_seconds is None


def test_judging_is_the_same_each_time(a_call: Build, an_identity: Build) -> None:
    for row in ROWS:
        assert judged(row, a_call, an_identity) == judged(row, a_call, an_identity)


def test_nothing_is_allowed_by_a_policy_of_nothing(an_identity: Build) -> None:
    identity: Identity = an_identity()
    policy = load("version: 1")
    for effect in ("read", "write", "model"):
        call = ToolCall("unlisted", effect, "", b"")  # type: ignore[arg-type]
        assert decide(policy, call, Facts(0, identity)).action is Action.REFUSE
