"""The canary of `pullcord drill`, which every policy has: nobody but the drill may use it, and
nothing in a policy file can take it over, limit it or widen it."""

from collections.abc import Callable

import pytest

from policies.bounds import drawn_on
from policies.call import Effect, Facts, Identity, Request
from policies.decide import decide
from policies.load import PolicyError, load
from policies.match import identify
from policies.policy import CANARY, CANARY_HOST, CANARY_TOOL, DRILL_TENANT, UNLISTED, Policy
from policies.verdict import Action, Reason, Verdict

Build = Callable[[str], Policy]

GREEDY = f"""
unlisted: allow
tools:
  mine: {{match: {{host: {CANARY_HOST}}}, effect: read}}
  wild: {{match: {{host: "*.pullcord.invalid"}}, effect: read}}
  mail: {{match: {{host: mail.example}}}}
tenants: {{acme: {{allow: ["*"]}}, {DRILL_TENANT}: {{allow: ["*"]}}}}
ceilings: [{{per: global, count: calls, at_most: 1, within: 1m}}]
"""
DRILL = Identity("pullcord.drill", DRILL_TENANT, tools=(CANARY,))


def judged(policy: Policy, host: str, identity: Identity, port: int = 80) -> Verdict:
    call = identify(policy, Request("POST", "http", host, port, "/x", (("host", host),)))
    return decide(policy, call, Facts(0, identity))


@pytest.mark.parametrize("port", [80, 443, 8640, 31_337])
@pytest.mark.parametrize("method, effect", [("GET", Effect.READ), ("POST", Effect.WRITE)])
@pytest.mark.parametrize("text", ["", GREEDY])
def test_its_host_means_it_in_every_policy(
    a_policy: Build, text: str, method: str, effect: Effect, port: int
) -> None:
    policy = a_policy(text)
    call = identify(policy, Request(method, "http", CANARY_HOST, port, "/x"))
    assert (call.tool, call.effect, call.fault) == (CANARY, effect, None)
    assert policy.tool(CANARY) is CANARY_TOOL


@pytest.mark.parametrize("host", [f"x.{CANARY_HOST}", "canary.pullcord.invalid.example", "canary"])
def test_no_other_host_means_it(a_policy: Build, host: str) -> None:
    assert identify(a_policy(""), Request("GET", "http", host, 80, "/")).tool == UNLISTED


@pytest.mark.parametrize("text", ["", GREEDY])
def test_only_the_drill_may_use_it_and_nothing_else(a_policy: Build, text: str) -> None:
    policy = a_policy(text)
    assert judged(policy, CANARY_HOST, DRILL, 31_337).action is Action.ALLOW
    for tenant in ("acme", "default", "pullcord", "pullcord.drill2"):
        verdict = judged(policy, CANARY_HOST, Identity("r1", tenant))
        assert verdict.reason is Reason.TOOL_NOT_ALLOWED
    for host in ("mail.example", "elsewhere.example"):
        verdict = judged(policy, host, Identity("pullcord.drill", DRILL_TENANT))
        assert verdict.action is Action.REFUSE


def test_no_ceiling_counts_it_and_no_claim_is_taken(a_policy: Build) -> None:
    policy = a_policy(GREEDY)
    call = identify(policy, Request("POST", "http", CANARY_HOST, 80, "/x"))
    assert list(drawn_on(policy, call, DRILL)) == []
    assert (CANARY_TOOL.key.missing, CANARY_TOOL.key.header) == ("off", None)


def test_a_policy_may_not_name_a_tool_so() -> None:
    text = "version: 1\ntools:\n  pullcord.canary: {match: {host: a.example}}\n"
    with pytest.raises(PolicyError, match=r"^policy\.yaml:3:3: tools that begin with 'pullcord\.'"):
        load(text, "policy.yaml")
    load(text.replace("pullcord.", "pullcord_"), "policy.yaml")
