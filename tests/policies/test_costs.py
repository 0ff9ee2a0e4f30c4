"""What calls may cost and what they came to: tests/cases/costs.yaml, and all that may be sent."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from policies.bounds import amounts_of
from policies.call import Request, Worth
from policies.canonical import SORTED_BYTES_MAX
from policies.ceilings import Count
from policies.costs import Answer, asked, is_model_call, reads_answer, settled
from policies.load import load
from policies.match import DEFAULT_PORT, identify
from policies.meter.usage import TOKENS_MAX, Usage
from policies.policy import Policy
from policies.prices import shipped_prices
from policies.pricing import MICROUSD_MAX

CASES: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[1] / "cases" / "costs.yaml").read_text("utf-8")
)
POLICY = load(CASES["policy"])
FORM = "application/x-www-form-urlencoded"
CHAT = "POST https://api.openai.com/v1/chat/completions"


def named(row: dict[str, Any]) -> str:
    return str(row["it"])


def body_of(row: dict[str, Any]) -> bytes:
    """Filled up with a member `x`, so that it has the size."""
    body = orjson.dumps(row["json"]) if "json" in row else row.get("form", row.get("body", ""))
    body = body if isinstance(body, bytes) else body.encode()
    if "size" not in row:
        return body
    head = body[:-1] + (b"," if len(body) > 2 else b"") + b'"x":"'
    return head + b"." * (row["size"] - len(head) - 2) + b'"}'


def request_of(row: dict[str, Any]) -> Request:
    method, url = row["ask"].split(" ")
    parts = urlsplit(url)
    body = body_of(row)
    media_type = FORM if "form" in row else row.get("type", "application/json")
    headers = {"content-type": media_type} if body else {}
    headers |= row.get("headers", {})
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    port = parts.port or DEFAULT_PORT[parts.scheme]
    return Request(
        method, parts.scheme, parts.hostname or "", port, target, tuple(headers.items()), body
    )


def worth_of(row: dict[str, Any], policy: Policy = POLICY) -> Worth:
    call = identify(policy, request_of(row))
    assert call.fault is None
    return call.worth


@pytest.mark.parametrize("row", CASES["worth"], ids=named)
def test_what_a_call_may_take(row: dict[str, Any]) -> None:
    request = request_of(row)
    call = identify(POLICY, request)
    if "refused" in row:
        assert call.fault == row["refused"]
        assert call.detail
        return
    assert call.fault is None
    assert [call.worth.tokens, call.worth.spend_microusd] == row["worth"]
    assert call.worth.priced is row.get("known", True)
    assert call.worth.bytes_up == len(request.body) == row.get("size", len(request.body))


@pytest.mark.parametrize("row", CASES["settled"], ids=named)
def test_what_a_call_came_to(row: dict[str, Any]) -> None:
    request = request_of(row)
    call = identify(POLICY, request)
    tool = POLICY.tool(call.tool)
    usage = replace(Usage("", 0, 0, 0, 0, 0), **row["usage"]) if "usage" in row else None
    body = row["says"].encode() if "says" in row else None
    granted = tuple(row["granted"]) if "granted" in row else None
    answer = Answer(
        row["answer"], row.get("whole", True), usage, body, row.get("final", True), granted
    )
    found = settled(POLICY, tool, request, call, answer)
    assert [found.tokens, found.microusd] == row["settled"]
    assert found.is_known is row.get("known", True)
    if is_model_call(tool, request, call):
        one = asked(POLICY, tool, request)
        assert settled(POLICY, tool, request, call, answer, one=one) == found


def test_what_a_model_api_is_asked_for_is_a_step_unless_it_is_free() -> None:
    base = "POST https://api.openai.com/v1"
    for path, steps in (("chat/completions", 1), ("threads/t1/runs", 1), ("files", 0)):
        call = identify(POLICY, request_of({"ask": f"{base}/{path}", "json": {"model": "m"}}))
        assert amounts_of(call)[Count.STEPS] == steps


def test_sentences_name_rows_once() -> None:
    names = [named(row) for kind in ("worth", "settled") for row in CASES[kind]]
    assert len(set(names)) == len(names)


def test_who_names_no_price_has_the_shipped_ones() -> None:
    policy = load("version: 1\ntools: {o: {match: {host: api.openai.com}, model_api: openai}}\n")
    row = {"ask": CHAT, "json": {"model": "gpt-4o", "max_tokens": 50}, "size": 300}
    worth = worth_of(row, policy)
    listed = shipped_prices().estimate_microusd("openai", "gpt-4o", 300, 50)
    assert worth == Worth(150, listed, 300, "gpt-4o", True)
    assert listed > 0
    # 100 + 32,768 tokens at 100 dollars for a million
    worth = worth_of({**row, "json": {"model": "nobodys"}}, policy)
    assert worth == Worth(32_868, 3_286_800, 300, "nobodys", False)


def test_a_price_of_the_policy_beats_the_list_and_its_tiers() -> None:
    policy = load(
        """version: 1
prices: {models: [{model: "gpt-5*", input_usd_per_million_tokens: 1, output_usd_per_million_tokens: 1}]}
tools: {o: {match: {host: api.openai.com}, model_api: openai}}
"""  # noqa: E501 - a line of the file
    )
    request = request_of({"ask": CHAT, "json": {"model": "gpt-5.1"}})
    one = asked(policy, policy.tools["o"], request)
    usage = Usage("gpt-5.1-2025-11-13", 1000, 0, 0, 0, 0, tier="priority")
    assert one.cost(usage).microusd == 1000
    assert one.cost(usage).is_known


def test_only_an_answer_that_tells_the_cost_is_read() -> None:
    wanted = {name for name, tool in POLICY.tools.items() if reads_answer(tool)}
    assert wanted == {"jobs"}
    request = request_of({"ask": "POST https://jobs.example/v1"})
    call = identify(POLICY, request)
    long = b'{"usage":{"cost":1},"x":"' + b"." * SORTED_BYTES_MAX + b'"}'
    found = settled(POLICY, POLICY.tools["jobs"], request, call, Answer(200, True, None, long))
    assert found.microusd is None


MESSAGES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["amount", "transfer", "total", "usage", "cost", "model", "max_tokens"]
            ),
            inner,
        )
    ),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())


@given(
    st.sampled_from(sorted({row["ask"] for row in CASES["worth"]})),
    st.binary(max_size=200) | MESSAGES,
    st.sampled_from(["", "application/json", FORM, "multipart/form-data; boundary=x", "a;;b"]),
    st.sampled_from([None, 101, 200, 302, 404, 500]),
)  # fmt: skip
def test_nothing_that_is_sent_or_answered_breaks_it(
    ask: str, body: bytes, content_type: str, status: int | None
) -> None:
    request = replace(
        request_of({"ask": ask}), body=body, headers=(("content-type", content_type),)
    )
    call = identify(POLICY, request)
    worth = call.worth
    assert 0 <= worth.tokens <= 2 * TOKENS_MAX
    assert 0 <= worth.spend_microusd <= MICROUSD_MAX
    answer = Answer(status, status is not None, None, body)
    found = settled(POLICY, POLICY.tool(call.tool), request, call, answer)
    assert found.tokens in (None, 0)
    if call.fault is None and is_model_call(POLICY.tool(call.tool), request, call):
        assert (worth.tokens > 0) == (worth.spend_microusd > 0)
    assert found.microusd is None or 0 <= found.microusd <= MICROUSD_MAX
