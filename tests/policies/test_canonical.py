"""Which writes ask for the same thing: tests/cases/canonical.yaml, and the form itself."""

import json
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from policies.call import Request
from policies.canonical import (
    PARTS_MAX,
    SORTED_BYTES_MAX,
    VALUES_MAX,
    NotPlainJsonError,
    is_too_long,
    read_json,
    write_json,
)
from policies.content import FORM
from policies.load import load
from policies.match import identify
from policies.policy import Policy

ROWS: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "cases" / "canonical.yaml").read_text()
)
POLICY = load("""
version: 1
unlisted: allow
tools:
  api: {match: {host: api.example}}
  all: {match: {host: mcp.example, mcp_tool: "*"}}
  graph: {match: {host: graph.example, graphql_operation: "*"}}
""")
BOUNDARIES = count()


def ignoring(paths: list[str]) -> Policy:
    """The policy, each tool of which ignores these."""
    if not paths:
        return POLICY
    text = POLICY.text.replace("}}", f"}}, idempotency: {{ignore: {json.dumps(paths)}}}}}")
    return load(text)


def parted(fields: list[list[str]]) -> tuple[str, str]:
    """Content type and body, with a boundary that was never used before."""
    boundary = f"drawn-{next(BOUNDARIES)}"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields
    ]
    return f"multipart/form-data; boundary={boundary}", "".join((*parts, f"--{boundary}--\r\n"))


def named(row: dict[str, Any]) -> str:
    return str(row["it"])


def rpc(sent: Any) -> Any:
    """A message, or each of a batch."""
    return [rpc(each) for each in sent] if isinstance(sent, list) else {"jsonrpc": "2.0", **sent}


def request_of(part: dict[str, Any]) -> Request:
    headers = dict(part.get("headers", {}))
    ask, body = part.get("ask", "POST https://api.example/v1/x"), part.get("body", "")
    if "json" in part:
        headers, body = {**headers, "content-type": "application/json"}, part["json"]
    elif "form" in part:
        headers, body = {**headers, "content-type": FORM}, part["form"]
    elif "parts" in part:
        headers["content-type"], body = parted(part["parts"])
    elif "graphql" in part:
        headers = {**headers, "content-type": "application/json"}
        ask, body = "POST https://graph.example/", json.dumps(part["graphql"])
    elif "mcp" in part:
        ask, body = "POST https://mcp.example/", json.dumps(rpc(part["mcp"]))
    method, _, url = ask.partition(" ")
    authority, _, target = url.removeprefix("https://").partition("/")
    host, _, port = authority.partition(":")
    return Request(
        method, "https", host, int(port or 443), f"/{target}", tuple(headers.items()), body.encode()
    )


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_two_writes_are_told_apart_or_taken_for_one(row: dict[str, Any]) -> None:
    policy = ignoring(row.get("ignore", []))
    one, other = (identify(policy, request_of(row[side])) for side in ("one", "other"))
    assert (one.fault, other.fault) == (None, None)
    assert len(one.fingerprint) == len(other.fingerprint) == 32
    assert (one.fingerprint == other.fingerprint) == row["same"]


@pytest.mark.parametrize("value", ['"\\ud800"', "[" * 300 + "]" * 300])
def test_a_mutation_whose_variables_cannot_be_written_is_known_by_its_bytes(value: str) -> None:
    def known(variables: str, text: str = "mutation { a }") -> bytes:
        body = f'{{"query": "{text}", "variables": {variables}}}'
        call = identify(POLICY, request_of({"ask": "POST https://graph.example/", "body": body}))
        assert call.fault is None
        return call.fingerprint

    assert known(f'{{"n": {value}}}') == known(f'{{"n": {value}}}')
    assert known(f'{{"n": {value}}}') != known(f'{{"n": {value}, "m": 1}}')
    assert known(f'{{"n": {value}}}') != known(f'{{"n": {value}}}', "mutation  { a }")


def test_sentences_name_rows_once() -> None:
    assert len({named(row) for row in ROWS}) == len(ROWS)


def test_the_canonical_form_is_sorted_bare_and_keeps_numbers() -> None:
    body = b'{ "b": [1.50, -0, 1E+2], "a": "\\u00e9", "\xc3\xa9": null }'
    expected = '{"a":"é","b":[1.50,-0,1E+2],"é":null}'
    assert write_json(read_json(body)) == expected.encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"\xef\xbb\xbf1",
        b'{"a":1,"a":1}',
        b"Infinity",
        b"[1,]",
        b'"\x00"',
        b"1 2",
    ]
    + [b"[" * 100_000, "[1]".encode("utf-16")],
)
def test_what_two_readers_could_understand_differently_is_not_plain_json(body: bytes) -> None:
    with pytest.raises(NotPlainJsonError):
        read_json(body)


def test_what_is_nested_too_deeply_is_not_written() -> None:
    with pytest.raises(NotPlainJsonError):
        write_json(read_json(b"[" * 300 + b"]" * 300))


def fingerprint(body: bytes, content_type: str = "") -> bytes:
    headers = (("content-type", content_type),)
    request = Request("POST", "https", "a.example", 443, "/", headers, body)
    return identify(POLICY, request).fingerprint


def test_a_body_too_large_to_sort_is_taken_byte_for_byte() -> None:
    text = "x" * SORTED_BYTES_MAX
    one, other = (f'{{"a": 1, "b": "{text}"}}', f'{{"b": "{text}", "a": 1}}')
    for content_type in ("application/json", FORM):
        assert fingerprint(one.encode(), content_type) != fingerprint(other.encode(), content_type)
        assert fingerprint(one.encode(), content_type) == fingerprint(one.encode(), content_type)


def test_json_of_too_many_values_is_taken_byte_for_byte() -> None:
    few, many = "1," * (VALUES_MAX - 2), "1," * (VALUES_MAX - 1)
    for values, same in ((few, True), (many, False)):
        one, other = (f"[{blank}{values}1]".encode() for blank in ("", " "))
        assert is_too_long(one) is not same
        marks = {fingerprint(body, "application/json") for body in (one, other)}
        assert (len(marks) == 1) is same


def test_commas_in_a_text_are_no_values() -> None:
    assert not is_too_long(json.dumps({"csv": 'a,"{b[\n' * VALUES_MAX}).encode())
    assert not is_too_long(b'"' + b'\\"' * VALUES_MAX + b"{," * VALUES_MAX)
    assert is_too_long(json.dumps([""] * VALUES_MAX).encode())
    assert is_too_long(json.dumps([""] * VALUES_MAX * 3).encode())


def test_a_form_of_too_many_escapes_is_taken_byte_for_byte() -> None:
    for escapes, same in ((VALUES_MAX - 1, True), (VALUES_MAX, False)):
        last = b"b=%42" + b"%41" * escapes
        one, other = fingerprint(b"a=1&" + last, FORM), fingerprint(last + b"&a=1", FORM)
        assert (one == other) is same


def test_a_body_of_too_many_parts_is_taken_byte_for_byte() -> None:
    few, many = b"c=3" + b"&x=1" * (PARTS_MAX - 1), b"c=3" + b"&x=1" * PARTS_MAX
    assert fingerprint(b"b=2&" + few, FORM) != fingerprint(few, FORM)
    for pairs, same in ((few[:-4], True), (many, False)):
        one, other = b"b=2&" + pairs, pairs + b"&b=2"
        assert (fingerprint(one, FORM) == fingerprint(other, FORM)) is same
    parts = {name: b"--%s" % name * PARTS_MAX for name in (b"AAA", b"BBB")}
    multipart = {name: f"multipart/mixed; boundary={name.decode()}" for name in parts}
    assert len({fingerprint(parts[name], multipart[name]) for name in parts}) == 2


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def is_writable(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


@given(VALUES.filter(is_writable), st.sampled_from([None, 1, 3]), st.booleans())
def test_one_value_has_one_form(value: Any, indent: int | None, is_ascii: bool) -> None:
    """However a client writes it: the form is that of a plain sorted writer."""
    body = json.dumps(value, indent=indent, ensure_ascii=is_ascii).encode()
    assert write_json(read_json(body)) == orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


@given(st.lists(st.binary(max_size=6), max_size=5), st.lists(st.binary(max_size=6), max_size=5))
def test_bodies_that_differ_as_bytes_differ(one: list[bytes], other: list[bytes]) -> None:
    one_body, other_body = b"".join(one), b"".join(other)
    assert (fingerprint(one_body) == fingerprint(other_body)) == (one_body == other_body)
