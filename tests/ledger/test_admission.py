"""One call in the admission transaction: what is judged, written, and never let through."""

import dataclasses
from typing import Any, cast

import pytest

from ledger.errors import Kind, LedgerUnavailable
from policies.call import Facts, Identity, ToolCall
from policies.policy import Policy
from policies.verdict import Action, Reason, Verdict
from tests.ledger.world import R1, World, a_ceiling, a_policy, a_worker

ALLOW = Verdict(Action.ALLOW, Reason.ALLOWED, "tool:pay")
REPLAY = Verdict(Action.REPLAY, Reason.REPLAYED, "tool:pay")


def saying(verdict: Verdict) -> Any:
    return lambda policy, call, facts: verdict


def test_the_row_of_an_allowed_write(world: World) -> None:
    world.decided(world.ask("a", key="k1", target="/v1/charges?card=4242"))
    world.settle("a", status=201)
    row = world.shown("a")
    digest, key = row.pop("request_digest"), row.pop("key")
    assert digest == world.asks["a"].call.fingerprint.hex()
    assert len(key) == 16
    assert "k1" not in key
    assert row == {
        "id": "a",
        "at": "2026-11-18T11:06:40.000Z",
        "tenant": "acme",
        "run": "r1",
        "parent": None,
        "root": "r1",
        "agent": "biller",
        "release": "2026-11-20.3",
        "tool": "pay",
        "method": "POST",
        "host": "api.example",
        "path": "/v1/charges",
        "effect": "write",
        "decision": "allow",
        "reason": "allowed",
        "rule": "tool:pay",
        "state": "done",
        "status": 201,
        "replay_of": None,
        "response_digest": "72" * 32,
        "latency_ms": 1.5,
        "input_tokens": None,
        "output_tokens": None,
        "cost_usd": None,
        "policy": "d1",
    }


def test_a_row_before_and_without_its_outcome(world: World) -> None:
    world.decided(world.ask("a"))
    row = world.shown("a")
    assert (row["state"], row["status"], row["response_digest"]) == ("pending", None, None)


def test_the_row_of_a_replay_names_the_first_call(world: World) -> None:
    world.decided(world.ask("a", key="k1"))
    world.settle("a", status=201)
    world.decided(world.ask("b", key="k1"))
    row = world.shown("b")
    assert (row["state"], row["status"], row["replay_of"]) == ("replayed", 201, "a")
    assert row["key"] == world.shown("a")["key"]


def test_a_replay_by_body_shows_the_key_that_it_met(world: World) -> None:
    world.decided(world.ask("a", key="k1"))
    world.settle("a")
    world.decided(world.ask("b", key="k2"))
    assert world.shown("b")["key"] == world.shown("a")["key"]


def test_the_row_of_a_refusal_says_what_the_agent_was_told(world: World) -> None:
    world.policy = a_policy(a_ceiling(0))
    world.decided(world.ask("a"))
    row = world.shown("a")
    assert (row["state"], row["status"], row["rule"]) == ("refused", 429, "ceiling:run-calls-0")


def test_the_rows_of_a_child_name_its_tree(world: World) -> None:
    world.decided(world.ask("a", claimant=Identity("c", "acme", ("b", "a"))))
    row = world.shown("a")
    assert (row["run"], row["parent"], row["root"]) == ("c", "b", "a")


def test_nobody_is_refused_and_recorded(world: World) -> None:
    decision = world.decided(world.ask("a", claimant=None))
    assert (decision.verdict.reason, decision.identity) == ("credentials_required", None)
    row = world.shown("a")
    assert (row["run"], row["tenant"], row["status"]) == (None, None, 407)


def test_a_fault_is_refused_without_looking_at_claims_and_ceilings(world: World) -> None:
    world.policy = a_policy(a_ceiling(0))
    ask = world.ask("a")
    call = dataclasses.replace(ask.call, fault=Reason.BATCH_OF_WRITES)
    assert world.decided(dataclasses.replace(ask, call=call)).verdict.reason == "batch_of_writes"


def test_who_may_wait_leaves_no_trace_of_a_write_in_flight(world: World) -> None:
    world.policy = a_policy(a_ceiling(2))
    world.decided(world.ask("a"))
    before = world.rows("SELECT count(*) FROM event")
    for _ in range(5):
        verdict = world.decided(world.ask("b", may_wait=True)).verdict
        assert (verdict.reason, verdict.earlier_call) == ("in_flight", "a")
    assert world.rows("SELECT count(*) FROM event") == before
    world.settle("a")
    assert world.decided(world.ask("b", may_wait=True)).verdict.action is Action.REPLAY
    assert world.shown("b")["state"] == "replayed"


def test_who_may_not_wait_is_refused_in_the_record(world: World) -> None:
    world.decided(world.ask("a"))
    world.decided(world.ask("b"))
    row = world.shown("b")
    assert (row["state"], row["reason"], row["status"]) == ("refused", "in_flight", 409)


class JudgeFailed(Exception):
    pass


def test_a_judge_that_fails_refuses_that_call_alone(world: World) -> None:
    def judge(policy: Policy, call: ToolCall, facts: Facts) -> Verdict:
        if call.tool == "mail":
            raise JudgeFailed("secret words")
        return ALLOW

    world.judge = judge
    decisions = world.admit(
        world.ask("a", body="x"), world.ask("b", tool="mail"), world.ask("c", body="y")
    )
    assert [decision.verdict.reason for decision in decisions] == [
        "allowed",
        "policy_failure",
        "allowed",
    ]
    assert decisions[1].verdict.detail == "JudgeFailed"
    row = world.shown("b")
    assert (row["state"], row["status"], row["run"]) == ("refused", 503, "r1")
    assert world.rows("SELECT call_id FROM claim ORDER BY id") == [("a",), ("c",)]


def test_a_store_that_fails_while_facts_are_read_fails_the_batch(world: World) -> None:
    world.policy = a_policy(a_ceiling(5))
    world.conn.execute("ALTER TABLE window RENAME TO elsewhere")
    with pytest.raises(LedgerUnavailable) as told:
        world.decided(world.ask("a"))
    assert told.value.kind is Kind.OTHER
    assert world.calls() == []
    world.conn.execute("ALTER TABLE elsewhere RENAME TO window")
    assert world.decided(world.ask("a")).verdict.action is Action.ALLOW


def test_a_policy_that_fails_before_the_judge_refuses_that_call(world: World) -> None:
    world.policy = dataclasses.replace(world.policy, tools=cast("Any", None))
    assert world.decided(world.ask("a")).verdict.reason == "policy_failure"


def test_a_judge_cannot_let_a_claimed_write_through(world: World) -> None:
    world.judge = saying(ALLOW)
    world.decided(world.ask("a", key="k1"))
    for key in ("k1", "k2", None):
        verdict = world.decided(world.ask(f"b{key}", key=key)).verdict
        assert (verdict.reason, verdict.detail) == ("policy_failure", "allowed over a live claim")
    assert world.rows("SELECT call_id FROM claim") == [("a",)]


def test_a_judge_cannot_let_nobody_through(world: World) -> None:
    world.judge = saying(ALLOW)
    assert world.decided(world.ask("a", claimant=None)).verdict.reason == "policy_failure"


def test_a_judge_cannot_replay_nothing(world: World) -> None:
    world.judge = saying(REPLAY)
    assert world.decided(world.ask("a")).verdict.reason == "policy_failure"


def test_one_call_id_is_let_through_once(world: World) -> None:
    first, second = world.admit(world.ask("a", body="x"), world.ask("a", body="y"))
    assert first.verdict.action is Action.ALLOW
    assert second.verdict.reason == "policy_failure"
    assert world.decided(world.ask("a", body="z")).verdict.reason == "policy_failure"


def test_a_held_call_is_recorded_and_claims_nothing(world: World) -> None:
    world.judge = saying(Verdict(Action.HOLD, Reason.ALLOWED, "hold:pay"))
    world.decided(world.ask("a"))
    assert world.shown("a")["state"] == "held"
    assert world.rows("SELECT count(*) FROM claim") == [(0,)]
    assert world.rows("SELECT count(*) FROM open_call") == [(0,)]


@pytest.mark.parametrize("secret", ["s3cret-key-of-the-agent", "card=4242424242424242"])
def test_no_key_and_no_query_stands_on_the_disk(world: World, secret: str) -> None:
    world.decided(world.ask("a", key=secret, target=f"/v1/charges?{secret}", body=secret))
    world.settle("a")
    world.decided(world.ask("b", key=secret, target=f"/v1/charges?{secret}", claimant=None))
    assert not any(secret.encode() in path.read_bytes() for path in world.data.iterdir())


def test_a_secret_in_a_path_is_masked(world: World) -> None:
    token = "123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw0"
    world.decided(world.read("a", target=f"/bot{token}/getMe?x=1"))
    assert world.shown("a")["path"].startswith("/[redacted:")
    assert not any(token.encode() in path.read_bytes() for path in world.data.iterdir())


def test_text_that_is_no_unicode_fails_no_batch(world: World) -> None:
    ask = world.ask("a", key="\udcff", target="/caf\udce9")
    request = dataclasses.replace(ask.request, method="P\udceaST", host="h\udce9st")
    call = dataclasses.replace(ask.call, operation="\udce9")
    decision = world.decided(dataclasses.replace(ask, request=request, call=call))
    assert decision.verdict.action is Action.ALLOW
    assert world.shown("a")["path"] == "/caf\\udce9"


def test_the_facts_are_those_of_the_transaction(world: World) -> None:
    seen: list[Facts] = []

    def judge(policy: Policy, call: ToolCall, facts: Facts) -> Verdict:
        seen.append(facts)
        return ALLOW

    world.policy = a_policy(a_ceiling(5))
    world.judge = judge
    world.admit(world.read("a"), world.read("b"))
    assert [facts.identity for facts in seen] == [R1, R1]
    assert [facts.now_us for facts in seen] == [world.now_us] * 2
    (draw,) = seen[1].drawn
    assert (draw.ceiling.id, draw.subject, draw.amount) == ("run-calls-5", "r1", 1)
    assert sum(draw.window.counts) == 1


def test_every_policy_that_judged_is_kept(world: World) -> None:
    world.decided(world.read("a"))
    world.policy = a_policy(digest="d2")
    world.decided(world.read("b"))
    world.decided(world.read("c"))
    assert [world.shown(name)["policy"] for name in "abc"] == ["d1", "d2", "d2"]
    assert world.rows("SELECT digest, text FROM policy") == [("d1", "# d1"), ("d2", "# d2")]


# Principals and workers


def test_a_principal_of_an_unknown_kind_is_refused_and_recorded(world: World) -> None:
    class Robot:
        run = "r1"
        token_hash = b"h" * 32

    for name, claimant in (("a", Robot()), ("b", "r1"), ("c", ("r1", b"h"))):
        decision = world.decided(world.ask(name, claimant=cast("Any", claimant)))
        assert decision.verdict.reason == "principal_unknown"
        assert decision.identity is None
        row = world.shown(name)
        assert (row["state"], row["reason"], row["run"]) == ("refused", "principal_unknown", None)
    assert world.rows("SELECT count(*) FROM claim") == [(0,)]


def test_a_worker_that_is_not_registered_lets_nothing_through(world: World) -> None:
    world.store.register(a_worker())
    first, second = world.admit(world.ask("a", worker="w1"), world.read("b", worker="w2"))
    assert first.verdict.action is Action.ALLOW
    assert (second.verdict.reason, second.verdict.detail) == (
        "policy_failure",
        "the worker that asks is not registered",
    )
    assert world.rows("SELECT call_id, worker FROM open_call") == [("a", "w1")]
    world.check_memory()
