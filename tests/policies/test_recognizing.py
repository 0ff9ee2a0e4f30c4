"""Whether a call of the record is the same call under another policy, as far as its row says."""

from dataclasses import replace

import pytest

from policies import recognizing
from policies.call import Dialect, Effect, Request, ToolCall
from policies.load import load
from policies.match import identify
from policies.policy import UNLISTED, Policy
from policies.recognizing import Recognizing
from policies.verdict import Reason

OLD = """\
version: 1
tools:
  pay: {match: {host: api.example, method: POST, path: /v1/charges}}
  read: {match: {host: api.example, method: GET}}
  crm: {match: {host: mcp.example, mcp_tool: "contacts.*"}, effect: write}
  ported: {match: {host: port.example, port: 8443}}
"""


def changed(old: str, new: str) -> Policy:
    assert old in OLD
    return load(OLD.replace(old, new))


def call(method: str = "POST", path: str = "/v1/charges", host: str = "api.example") -> ToolCall:
    request = Request(method, "https", host, 443, path, (("host", host),), b"x=1")
    return identify(load(OLD), request)


def again(new: Policy, asked: ToolCall, path: str | None = "/v1/charges") -> ToolCall | str:
    old = load(OLD)
    return Recognizing(new, {old.digest: old}.get).again(asked, path, old.digest)


def test_under_its_own_policy_a_call_is_what_it_was() -> None:
    asked = replace(call(), fault=Reason.BATCH_OF_WRITES)
    assert again(load(OLD), asked, None) is asked


def test_what_is_changed_at_another_host_changes_nothing() -> None:
    new = changed('"contacts.*"', '"contacts.read"')
    assert again(new, call(), None) == call()


def test_a_renamed_tool_is_found_by_its_head() -> None:
    found = again(changed("  pay:", "  charge:"), call())
    assert found == replace(call(), tool="charge")


def test_a_path_that_no_tool_has_any_more_is_unlisted() -> None:
    found = again(changed("/v1/charges}", "/v2/charges}"), call())
    assert isinstance(found, ToolCall)
    assert found.tool == UNLISTED


def test_another_effect_is_taken_over() -> None:
    found = again(changed("path: /v1/charges}}", "path: /v1/charges}, effect: read}"), call())
    assert isinstance(found, ToolCall)
    assert found.effect is Effect.READ


@pytest.mark.parametrize(
    "old, new, asked, path, why",
    [
        ("  pay:", "  charge:", call(), None, recognizing.NO_PATH),
        ("  pay:", "  charge:", call(), "/v1/a%2Fb", recognizing.NO_PATH),
        (
            '"contacts.*"', '"contacts.read"',
            replace(call(host="mcp.example"), dialect=Dialect.MCP, fault=None), "/",
            recognizing.BY_BODY,
        ),
        ("8443", "9443", replace(call(), host="port.example"), "/", recognizing.NOT_READ),
        (
            "  pay:", "  charge:", replace(call(), fault=Reason.MALFORMED_REQUEST), "/v1/charges",
            recognizing.NOT_READ,
        ),
        (
            "path: /v1/charges}", "path: /v1/charges}, model_api: openai", call(), "/v1/charges",
            recognizing.OTHER_API,
        ),
        (
            "method: GET}", "method: GET}, effect: read", replace(call("GET"), effect=Effect.WRITE),
            "/v1/charges", recognizing.UPGRADED,
        ),
    ],
)  # fmt: skip
def test_what_the_row_cannot_tell_is_said(
    old: str, new: str, asked: ToolCall, path: str | None, why: str
) -> None:
    assert again(changed(old, new), asked, path) == why


def test_a_body_that_is_too_large_now_is_refused() -> None:
    new = changed("path: /v1/charges}}", "path: /v1/charges}, body_bytes_max: 2}")
    found = again(new, call())
    assert isinstance(found, ToolCall)
    assert found.fault is Reason.BODY_TOO_LARGE


def test_a_body_that_was_too_large_under_another_limit_is_not_judgeable() -> None:
    new = changed("path: /v1/charges}}", "path: /v1/charges}, body_bytes_max: 2}")
    asked = replace(call(), fault=Reason.BODY_TOO_LARGE)
    assert again(new, asked) == recognizing.OTHER_SIZE


def test_without_the_policy_of_that_time_nothing_is_known_to_be_the_same() -> None:
    found = Recognizing(load(OLD), lambda digest: None)
    assert found.again(call(), "/v1/charges", "gone") == recognizing.NO_POLICY
    assert not found.keeps_keys("pay", "gone")


def test_writes_are_told_apart_as_they_were_unless_the_rule_has_changed() -> None:
    old = load(OLD)
    new = changed("path: /v1/charges}}", "path: /v1/charges}, idempotency: {missing: 'off'}}")
    found = Recognizing(new, {old.digest: old}.get)
    assert not found.keeps_keys("pay", old.digest)
    assert found.keeps_keys("read", old.digest)
