"""Tools with `stream: true`: what their requests are taken for, by their heads alone."""

from dataclasses import replace

import pytest

from policies.bounds import bounded
from policies.call import Draw, Effect, Facts, Identity, Request
from policies.ceilings import EMPTY, Ceiling, Count, Per, Then
from policies.decide import decide
from policies.load import load
from policies.match import identify, may_stream, streams
from policies.verdict import Action, Reason

POLICY = load(
    """
version: 1
tools:
  graph: {match: {host: files.example, path: /graphql, graphql_operation: "*"}}
  put: {match: {host: files.example, method: [PUT, POST]}, stream: true, body_bytes_max: 100}
  other: {match: {host: "*.example"}}
  free: {match: {host: free.test}, stream: true, idempotency: {missing: "off"}}
  strict: {match: {host: strict.test}, stream: true, idempotency: {missing: require}}
tenants:
  acme: {allow: [free, {tool: put, where: {amount: {at_most: 5}}}]}
"""
)
R1 = Identity("r1", "beta")


def put(host: str = "files.example", path: str = "/a", method: str = "PUT", **headers: str):
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Request(method, "https", host, 443, path, named, streamed=True)


@pytest.mark.parametrize(
    "request_, found",
    [
        (put(), True),
        (put(method="DELETE"), False),
        (put("a.files.example"), False),
        (put("free.test"), True),
        (put(path="/graphql"), False),
        (put(path="/a/../graphql"), False),
        (put(content_type="application/grpc"), False),
        (put(method="GET", host="free.test", upgrade="websocket"), False),
        (put(x_original_url="/b"), False),
    ],
    ids=["it", "method", "host", "any method", "an earlier tool", "dots", "gRPC", "socket", "path"],
)
def test_which_requests_are_judged_by_their_heads(request_: Request, found: bool) -> None:
    assert streams(POLICY, request_) is found


def test_hosts() -> None:
    assert may_stream(POLICY, "files.example")
    assert not may_stream(POLICY, "a.files.example")
    assert not may_stream(POLICY, "nowhere.test")


def test_the_length_that_is_told_counts() -> None:
    call = identify(POLICY, put(content_length="100"))
    assert (call.tool, call.effect, call.streamed) == ("put", Effect.WRITE, True)
    assert call.worth.bytes_up == 100
    assert identify(POLICY, put(content_length="101")).fault is Reason.BODY_TOO_LARGE
    assert identify(POLICY, put()).worth.bytes_up == 0


@pytest.mark.parametrize(
    "one, other, same",
    [
        ({}, {"user_agent": "x"}, True),
        ({"content_length": "1"}, {"content_length": "2"}, False),
        ({"content_length": "1"}, {}, False),
        ({"content_md5": "a"}, {"content_md5": "b"}, False),
        ({"content_digest": "a"}, {"content_digest": "b"}, False),
        ({"x_amz_content_sha256": "a"}, {"x_amz_content_sha256": "b"}, False),
        ({"content_type": "a/b"}, {"content_type": "a/c"}, False),
        ({"content_range": "bytes 0-1/9"}, {"content_range": "bytes 2-3/9"}, False),
    ],
)
def test_fingerprints_tell_what_the_head_tells_of_the_body(
    one: dict[str, str], other: dict[str, str], same: bool
) -> None:
    prints = [identify(POLICY, put(**headers)).fingerprint for headers in (one, other)]
    assert (prints[0] == prints[1]) is same


def test_a_body_that_is_held_has_another_fingerprint() -> None:
    streamed = put()
    held = replace(streamed, streamed=False)
    assert identify(POLICY, streamed).fingerprint != identify(POLICY, held).fingerprint


@pytest.mark.parametrize(
    "host, key, reason",
    [
        ("files.example", {}, Reason.KEY_REQUIRED),
        ("files.example", {"idempotency_key": "k"}, Reason.ALLOWED),
        ("strict.test", {}, Reason.KEY_REQUIRED),
        ("free.test", {}, Reason.ALLOWED),
    ],
)
def test_a_write_needs_its_key(host: str, key: dict[str, str], reason: Reason) -> None:
    call = identify(POLICY, put(host, **key))
    assert decide(POLICY, call, Facts(1, R1)).reason is reason


def test_no_condition_holds_on_what_is_not_read() -> None:
    call = identify(POLICY, put(path="/a?amount=1", idempotency_key="k"))
    verdict = decide(POLICY, call, Facts(1, Identity("r1", "acme")))
    assert verdict.reason is Reason.ARGUMENT_REFUSED
    assert "streamed" in verdict.detail


def test_a_request_that_began_under_another_policy_is_refused() -> None:
    call = identify(POLICY, put("a.files.example"))
    assert (call.tool, call.fault) == ("other", Reason.MALFORMED_REQUEST)
    assert "send it again" in call.detail
    assert identify(POLICY, put("nowhere.test")).fault is Reason.MALFORMED_REQUEST
    assert identify(POLICY, put(path="/graphql")).fault is not None


def test_nobody_is_asked_about_what_nobody_can_look_at() -> None:
    call = identify(POLICY, put(idempotency_key="k"))
    ceiling = Ceiling("c", Per.RUN, Count.CALLS, 0, 60_000_000, Then.HOLD)
    facts = Facts(1, R1, drawn=(Draw(ceiling, "r1", EMPTY, 1),))
    refused = bounded(call, R1, facts)
    assert refused is not None
    assert (refused.action, refused.reason) == (Action.REFUSE, Reason.OVER_CEILING)
    held = bounded(replace(call, streamed=False), R1, facts)
    assert held is not None
    assert held.action is Action.HOLD


def test_without_a_limit_of_its_own_a_tool_has_one() -> None:
    assert POLICY.tool("free").body_bytes_max == 1024**3
    assert POLICY.tool("put").body_bytes_max == 100
    assert POLICY.tool("other").body_bytes_max is None
