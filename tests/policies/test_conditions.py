"""Conditions on arguments: tests/cases/conditions.yaml, and what no agent's text may do."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from policies.argument_paths import SPELLED_CHARACTERS_MAX
from policies.arguments import CHARACTERS_MAX, VALUES_MAX, of_request
from policies.call import Argument, Effect, Facts, Identity, Request, ToolCall
from policies.conditions import Condition, failing
from policies.decide import decide
from policies.form import FIELDS_MAX, NAME_CHARACTERS_MAX, PARTS_MAX
from policies.head import Head, read_head
from policies.load import load
from policies.match import identify
from policies.verdict import Reason

TABLE: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[1] / "cases" / "conditions.yaml").read_text("utf-8")
)
POLICIES = {name: load(text, name) for name, text in TABLE["policies"].items()}
FORM = "application/x-www-form-urlencoded"


def named(row: dict[str, Any]) -> str:
    return str(row["it"])


def rows(part: str) -> Any:
    return pytest.mark.parametrize("row", TABLE[part], ids=named)


def test_sentences_name_rows_once() -> None:
    for part in ("values", "bodies", "calls"):
        names = [named(row) for row in TABLE[part]]
        assert len(names) == len(set(names))


# ---- what is asked of a value


def condition_of(where: dict[str, Any]) -> Condition:
    where = {"x": where}
    text = json.dumps({"match": {"host": "a.example"}, "where": where})
    policy = load(f"version: 1\ntools:\n  t: {text}\n")
    (condition,) = policy.tools["t"].where
    return condition


def value_of(told: Any) -> Argument:
    if isinstance(told, dict):
        return Decimal(told["number"])
    if isinstance(told, int) and not isinstance(told, bool):
        return Decimal(told)
    value: Argument = told
    return value


@rows("values")
def test_a_value_holds_or_fails(row: dict[str, Any]) -> None:
    condition = condition_of(row["where"])
    for told in row.get("holds", ()):
        assert condition.holds(value_of(told)), told
    for told in row["fails"]:
        assert not condition.holds(value_of(told)), told


NUMBERS = st.decimals(-(10**9), 10**9, allow_nan=False, places=3)


@given(NUMBERS, NUMBERS)
def test_numbers_compare_exactly_however_they_are_written(value: Decimal, bound: Decimal) -> None:
    condition = Condition("x", at_most=bound)
    assert condition.holds(value) is (value <= bound)
    assert condition.holds(f"{value:f}") is (value <= bound or "E" in str(value))


@given(st.text(max_size=12))
def test_a_text_that_python_alone_takes_for_a_number_is_none(text: str) -> None:
    condition = Condition("x", at_most=Decimal(10) ** 30, at_least=-(Decimal(10) ** 30))
    if condition.holds(text):
        assert text.isascii()
        assert text.strip() == text
        float(json.loads(text))


def call_with(**rest: Any) -> ToolCall:
    return ToolCall("t", Effect.WRITE, "POST /", b"", **rest)


def test_all_values_at_a_path_must_hold() -> None:
    asked = [Condition("a", at_most=Decimal(5)), Condition("b", absent=True)]

    def said(*values: Argument) -> str:
        return failing(asked, call_with(arguments=(("a", values), ("b", ()))))

    assert said(Decimal(5), "4") == ""
    assert said(Decimal(5), "6") == "a must be at most 5"
    assert said() == "a must be at most 5, and it is missing"


def test_what_was_not_read_never_holds() -> None:
    for condition in (Condition("a", at_most=Decimal(5)), Condition("a", absent=True)):
        assert failing([condition], call_with()) == "a was not read"
        unread = call_with(unread=(("a", "why"),), arguments=(("a", ()),))
        assert failing([condition], unread) == "a cannot be read for certain: why"


def test_a_condition_says_all_that_it_asks() -> None:
    condition = Condition(
        "a.b", Decimal(5), Decimal("1.5"), (Decimal(2), "x", True), "c*", length_at_most=9
    )
    assert str(condition) == (
        "a.b must be at least 1.5 and at most 5 and one of 2, x, true and like c* and text of at "
        "most 9 characters"
    )
    assert str(Condition("a", one_of=(False,))) == "a must be false"
    assert str(Condition("a", absent=True)) == "a must be absent"


# ---- what is read


def request_of(row: dict[str, Any]) -> Request:
    method, _, url = row.get("ask", "POST https://pay.example/refunds").partition(" ")
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    query = f"?{row['query']}" if "query" in row else ""
    headers = [(name, value) for name, value in row.get("headers", [])]
    body, media_type = row.get("body", "").encode(), row.get("type", "")
    if "form" in row:
        body, media_type = row["form"].encode(), FORM
    if "hex" in row:
        body = bytes.fromhex(row["hex"])
    if "mcp" in row:
        name, *given_arguments = row["mcp"]
        params = {"name": name} | ({"arguments": given_arguments[0]} if given_arguments else {})
        row = {**row, "json": {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}}
    if "graphql" in row:
        row = {**row, "json": dict(zip(("query", "variables"), row["graphql"], strict=True))}
    if "json" in row:
        body, media_type = json.dumps(row["json"]).encode(), "application/json"
    if media_type:
        headers.append(("content-type", media_type))
    return Request(method, scheme, host, 443, slash + path + query, tuple(headers), body)


def head_of(request: Request) -> Head:
    head = read_head(request)
    assert isinstance(head, Head)
    return head


@rows("bodies")
def test_what_stands_at_a_path_is_read(row: dict[str, Any]) -> None:
    request = request_of(row)
    found = of_request(row["paths"], request, head_of(request))
    values = {
        path: [str(value) if isinstance(value, Decimal) else value for value in read]
        for path, read in found.values
    }
    assert values == row.get("finds", {})
    unread = dict(found.unread)
    expected = row.get("unread", {})
    assert unread.keys() == expected.keys()
    for path, why in expected.items():
        assert unread[path].startswith(why)
        assert unread[path]


def unread_of(body: bytes, media_type: str, *paths: str) -> list[str]:
    headers = (("content-type", media_type),)
    request = Request("POST", "https", "pay.example", 443, "/", headers, body)
    return [why for _, why in of_request(paths, request, head_of(request)).unread]


def test_what_would_take_long_or_be_read_in_part_is_not_read() -> None:
    fields = b"&".join([b"a=1"] + [b"b%d=1" % place for place in range(FIELDS_MAX - 1)])
    assert unread_of(fields, FORM, "a") == []
    assert unread_of(fields + b"&c=1", FORM, "a") == [f"more than {FIELDS_MAX} fields"]
    assert unread_of(b"a=1&" + b"[b]" * PARTS_MAX, FORM, "a") == []
    assert unread_of(b"a=1&" + b"[b]" * (PARTS_MAX + 1), FORM, "a") != []
    assert unread_of(b"a=1&" + b"b" * NAME_CHARACTERS_MAX, FORM, "a") == []
    assert unread_of(b"a=1&" + b"b" * (NAME_CHARACTERS_MAX + 1), FORM, "a") != []
    many = json.dumps({"a": [1] * VALUES_MAX}).encode()
    assert unread_of(many, "application/json", "a[]") == []
    assert unread_of(many.replace(b"[1,", b"[1, 1,"), "application/json", "a[]") != []
    long = json.dumps({"a": "x" * CHARACTERS_MAX, "b": "y"}).encode()
    assert unread_of(long, "application/json", "a") == []
    assert unread_of(long, "application/json", "a", "b") != []
    for size, read in ((SPELLED_CHARACTERS_MAX, True), (SPELLED_CHARACTERS_MAX + 1, False)):
        odd = json.dumps({"a": 1, "\ufdfa" * size: 2}, ensure_ascii=False).encode()
        assert (unread_of(odd, "application/json", "a") == []) is read


def test_many_paths_and_members_take_no_longer_than_one_look() -> None:
    """The members of an object are looked through once, however many paths are asked for."""
    members = {f"member_{place}": place for place in range(40_000)}
    body = json.dumps(members).encode()
    paths = [f"member_{place}" for place in range(400)]
    assert unread_of(body, "application/json", *paths) == []


# ---- what decides


@rows("calls")
def test_a_call_is_judged_by_its_arguments(row: dict[str, Any]) -> None:
    policy = POLICIES[row.get("policy", "refunds")]
    call = identify(policy, request_of(row))
    assert call.fault is None
    identity = Identity("r1", row.get("tenant", "acme"))
    verdict = decide(policy, call, Facts(0, identity))
    assert verdict.reason == row["expect"]
    assert row.get("rule", verdict.rule) == verdict.rule
    assert row.get("says", "") in verdict.detail


def test_no_detail_tells_what_was_sent() -> None:
    policy = POLICIES["refunds"]
    for sent in ("amount=sk_live_1", "amount=1&currency=sk_live_1", "amount=1&amount=sk_live_1"):
        call = identify(policy, request_of({"form": sent}))
        verdict = decide(policy, call, Facts(0, Identity("r1", "acme")))
        assert verdict.reason is Reason.ARGUMENT_REFUSED
        assert "sk_live" not in verdict.detail


SPELLINGS = st.sampled_from(
    ["amount", "Amount", "amount[]", "amount[0]", "am%6Funt", "%61mount", " amount", "amount%00"]
    + ["amount.value", "amount[value]", "AMOUNT", "amount;", ";amount", "a-mount", "a.mount"]
)


@given(st.lists(st.tuples(SPELLINGS, st.sampled_from(["5", "9999", "1e9", ""])), max_size=4))
def test_a_form_that_passes_has_one_amount_to_every_reader(pairs: list[tuple[str, str]]) -> None:
    """Whatever is written beside it: a form passes only with one plain field, within its bound."""
    policy = load(
        "version: 1\ntools: {t: {match: {host: a.example}, where: {amount: {at_most: 5000}}}}"
    )
    body = "&".join(f"{name}={value}" for name, value in pairs)
    request = Request(
        "POST", "https", "a.example", 443, "/", (("content-type", FORM),), body.encode()
    )
    verdict = decide(policy, identify(policy, request), Facts(0, Identity("r1", "acme")))
    if verdict.reason is Reason.ALLOWED:
        assert [value for _, value in pairs] == ["5"]
        assert pairs[0][0] in ("amount", "am%6Funt", "%61mount")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9999) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "A", "b", "a.b", "a_b", "c"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(
    JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40),
    st.sampled_from([FORM, "application/json", "", "text/plain", "multipart/x; boundary=b"]),
    st.text(alphabet="ab=&[].;%0", max_size=20),
    st.sampled_from(["a", "a.b", "a[]", "a[].b", "query.a", "query.a.b", "body.c"]),
)
def test_whatever_is_sent_is_read_or_told_and_never_raises(
    body: bytes, media_type: str, query: str, path: str
) -> None:
    headers = (("content-type", media_type),) if media_type else ()
    request = Request("PUT", "https", "a.example", 443, f"/?{query}", headers, body)
    found = of_request([path], request, head_of(request))
    assert len(found.values) + len(found.unread) == 1
