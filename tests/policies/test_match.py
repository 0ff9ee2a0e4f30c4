"""What a request is taken for: tests/cases/matchers.yaml, protocols.yaml, and all else."""

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from policies.call import Effect, Request, ToolCall
from policies.canonical import SORTED_BYTES_MAX
from policies.load import load
from policies.match import DEFAULT_PORT, MATCHERS, identify
from policies.overrides import FIELDS_MAX, PART_HEADS_BYTES_MAX
from policies.policy import Policy, Tool
from policies.protocols import graphql, mcp
from policies.verdict import Reason

CASES = Path(__file__).parents[1] / "cases"
TABLES = [
    yaml.safe_load((CASES / name).read_text()) for name in ("matchers.yaml", "protocols.yaml")
]
POLICIES = {name: load(text, name) for table in TABLES for name, text in table["policies"].items()}
ROWS: list[dict[str, Any]] = [row for table in TABLES for row in table["rows"]]


def named(row: dict[str, Any]) -> str:
    return str(row["it"])


def request_of(row: dict[str, Any]) -> Request:
    """The request of a row; the URL's path stays exactly as it is written."""
    method, _, url = row["ask"].partition(" ")
    scheme, _, rest = url.partition("://")
    authority, slash, target = rest.partition("/")
    host, _, port = authority.rpartition(":") if authority[-1] != "]" else (authority, "", "")
    if not port.isdigit():
        host, port = authority, ""
    headers = row.get("headers", [])
    pairs = list(headers.items()) if isinstance(headers, dict) else headers
    body = row.get("body", "").encode() * row.get("times", 1)
    if "json" in row:
        body = json.dumps(row["json"]).encode()
        pairs = [*pairs, ("content-type", "application/json")]
    if "long_key" in row:
        pairs = [*pairs, ("idempotency-key", "k" * row["long_key"])]
    return Request(
        method,
        scheme,
        host.strip("[]"),
        int(port or DEFAULT_PORT[scheme]),
        row.get("target", slash + target),
        tuple((name.lower(), value) for name, value in pairs),
        body,
    )


def judged(row: dict[str, Any]) -> ToolCall:
    return identify(POLICIES[row.get("policy", "house")], request_of(row))


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_a_request_is_taken_for(row: dict[str, Any]) -> None:
    call = judged(row)
    found: list[str] = [call.tool, call.effect, *([call.fault] if call.fault else [])]
    assert found == row["expect"]
    for field in ("operation", "key", "dialect", "rpc_id"):
        if field in row:
            assert getattr(call, field) == row[field]


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_only_a_write_that_can_pass_has_a_fingerprint(row: dict[str, Any]) -> None:
    call, request = judged(row), request_of(row)
    opens_a_socket = request.method == "CONNECT" or "websocket" in str(request.headers).lower()
    deduplicated = call.effect is Effect.WRITE and call.fault is None
    if request.method == "POST" or not opens_a_socket:
        assert bool(call.fingerprint) == deduplicated
    else:
        assert (call.fingerprint, call.key) == (b"", None)


def test_sentences_name_rows_once() -> None:
    names = [row["it"] for row in ROWS]
    assert len(names) == len(set(names))


def test_every_protocol_condition_of_a_tool_has_its_matcher() -> None:
    tool = Tool("t", mcp_tool="m", graphql_operation="g")
    assert sorted(str(matcher.glob(tool)) for matcher in MATCHERS) == ["g", "m"]


def test_a_plain_call_is_judged_without_its_body() -> None:
    """A body that must not be touched: any look at it raises, but for its length."""

    class Untouchable(bytes):
        def _touched(self, *_: object) -> Any:
            raise AssertionError("the body was read")

        __iter__ = __getitem__ = __contains__ = _touched
        decode = split = _touched  # type: ignore[assignment]

    for ask in ("GET https://api.github.com/x", "POST https://search.example/search"):
        request = request_of({"ask": ask})
        call = identify(POLICIES["house"], replace(request, body=Untouchable(b"x")))
        assert call.fault is None


GUARDED = """
tools:
  refunds: {match: {host: pay.example, path: /refunds}, where: {amount: {at_most: 5}}}
  small: {match: {host: pay.example, path: /small}, body_bytes_max: 3}
  held: {match: {host: pay.example, path: /held}, hold: true}
  watched: {match: {host: pay.example, path: /watched}, hold: true, websocket: read}
  crm.add: {match: {host: mcp.example, mcp_tool: add}, body_bytes_max: 200}
  crm: {match: {host: mcp.example, mcp_tool: "*"}, where: {count: {at_most: 3}}}
"""
FORM = {"content-type": "application/x-www-form-urlencoded"}


def guarded(a_policy: Any, ask: str, **row: Any) -> ToolCall:
    return identify(a_policy(GUARDED), request_of({"ask": ask, **row}))


def test_a_call_has_what_conditions_ask_for_and_its_method_and_host(a_policy: Any) -> None:
    ask = "POST https://pay.example/refunds"
    call = guarded(a_policy, ask, body="amount=5&x=1", headers=FORM)
    assert (call.method, call.host) == ("POST", "pay.example")
    assert (call.arguments, call.unread) == ((("amount", ("5",)),), ())
    hidden = guarded(a_policy, ask, body="amount=5&Amount=6", headers=FORM)
    assert hidden.arguments == ()
    assert [path for path, _ in hidden.unread] == ["amount"]
    assert hidden.fault is None
    other = guarded(a_policy, "POST https://pay.example/held", body="amount=5", headers=FORM)
    assert (other.arguments, other.unread) == ((), ())


def test_arguments_are_those_of_an_mcp_call_and_housekeeping_has_none(a_policy: Any) -> None:
    def asked(method: str, **params: Any) -> ToolCall:
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return guarded(a_policy, "POST https://mcp.example/mcp", json=message)

    call = asked("tools/call", name="x", arguments={"count": 2})
    assert (call.tool, call.arguments, call.own) == ("crm", (("count", (Decimal(2),)),), False)
    own = asked("tools/list")
    assert (own.own, own.arguments, own.unread) == (True, (), ())


def test_a_body_longer_than_its_tool_allows_is_refused(a_policy: Any) -> None:
    fits = guarded(a_policy, "POST https://pay.example/small", body="123")
    assert fits.fault is None
    for method in ("POST", "GET"):
        call = guarded(a_policy, f"{method} https://pay.example/small", body="1234")
        assert (call.tool, call.fault) == ("small", Reason.BODY_TOO_LARGE)
        line = a_policy(GUARDED).tools["small"].line
        assert call.detail == f"4 bytes, at most 3 for small; line {line} of the policy"
    assert guarded(a_policy, "POST https://pay.example/refunds", body="1234").fault is None
    for name, size, fault in (
        ("add", 300, Reason.BODY_TOO_LARGE),
        ("add", 1, None),
        ("x", 300, None),
    ):
        params = {"name": name, "arguments": {"note": "x" * size}}
        message = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
        call = guarded(a_policy, "POST https://mcp.example/mcp", json=message)
        assert (call.fault, call.rpc_id) == (fault, 7)


def test_a_socket_to_a_tool_that_is_held_cannot_be_approved(a_policy: Any) -> None:
    socket = {"headers": {"upgrade": "websocket"}}
    call = guarded(a_policy, "GET https://pay.example/held", **socket)
    assert (call.tool, call.fault) == ("held", Reason.PROTOCOL_UNSUPPORTED)
    assert guarded(a_policy, "GET https://pay.example/watched", **socket).fault is None
    assert guarded(a_policy, "GET https://pay.example/held").fault is None


def test_the_order_of_the_file_decides_not_the_kind_of_host(a_policy: Any) -> None:
    text = """
    tools:
      {}: {{match: {{host: {}}}}}
      {}: {{match: {{host: {}}}}}
    """
    exact, suffix = ("exact", "a.b.example"), ("suffix", '"*.b.example"')
    request = request_of({"ask": "GET https://a.b.example/"})
    assert identify(a_policy(text.format(*exact, *suffix)), request).tool == "exact"
    assert identify(a_policy(text.format(*suffix, *exact)), request).tool == "suffix"


def faulted(policy: str, ask: str, message: Any) -> bool:
    return judged({"policy": policy, "ask": ask, "json": message}).fault is not None


def test_what_would_take_long_to_read_is_a_fault() -> None:
    ping = {"jsonrpc": "2.0", "method": "ping"}
    ask = "POST https://mcp.example/mcp"
    assert not faulted("mcp", ask, [ping] * mcp.ENTRIES_MAX)
    assert faulted("mcp", ask, [ping] * (mcp.ENTRIES_MAX + 1))
    query, ask = {"query": "{a}"}, "POST https://gql.example/graphql"
    assert not faulted("graphql", ask, [query] * graphql.ENTRIES_MAX)
    assert faulted("graphql", ask, [query] * (graphql.ENTRIES_MAX + 1))
    shared = {"query": "{" + "a " * (graphql.TOKENS_MAX // 20 - 2) + "}"}
    assert not faulted("graphql", ask, [query] * 19 + [shared])
    assert faulted("graphql", ask, [query] * 19 + [{"query": "{" + "a " * 249 + "}"}])
    assert not faulted("graphql", ask, {"query": "{" + "a " * graphql.FIELDS_MAX + "}"})
    assert faulted("graphql", ask, {"query": "{" + "a " * (graphql.FIELDS_MAX + 1) + "}"})
    assert faulted("graphql", ask, {"query": "{a" * graphql.TOKENS_MAX})
    assert faulted("graphql", ask, {"query": "{a} #" + "x" * graphql.CHARACTERS_MAX})
    nested = "{a" * 1_600 + "}" * 1_600
    assert faulted("graphql", ask, {"query": nested})


@pytest.mark.parametrize(
    "body",
    [text.encode(coding) for text in ('{"jsonrpc": "2.0", "method": "ping"}', '{"query": "{a}"}')
     for coding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-8-sig")],
)  # fmt: skip
@pytest.mark.parametrize("url", ["mcp.example/mcp", "gql.example/graphql"])
def test_a_message_in_another_unicode_encoding_is_a_fault(body: bytes, url: str) -> None:
    policy = "mcp" if url.startswith("mcp") else "graphql"
    request = replace(request_of({"ask": f"POST https://{url}"}), body=body)
    assert identify(POLICIES[policy], request).fault is Reason.MALFORMED_REQUEST


def test_a_body_too_long_to_be_read_is_refused_where_it_decides_and_nowhere_else() -> None:
    long = " " * SORTED_BYTES_MAX
    ping: dict[str, Any] = {"policy": "mcp", "body": '{"jsonrpc": "2.0", "method": "ping"}'}
    query: dict[str, Any] = {"policy": "graphql", "body": '{"query": "{a}"}'}
    for row, url in ((ping, "mcp.example/mcp"), (query, "gql.example/graphql")):
        host = url.partition("/")[0]
        padded = {**row, "body": row["body"] + long}
        fits = {**row, "body": (row["body"] + long)[:SORTED_BYTES_MAX]}
        call = judged({**padded, "ask": f"POST https://{url}"})
        assert (call.fault, bool(call.detail)) == (Reason.BODY_TOO_LARGE, True)
        assert judged({**fits, "ask": f"POST https://{url}"}).fault is None
        assert judged({**padded, "ask": f"POST https://{host}/other"}).fault is None


def test_a_method_is_found_before_the_limits_of_parts() -> None:
    """Heads of parts are looked through up to their limits, and beyond them nothing passes."""
    headers = (("content-type", "multipart/form-data; boundary=b"),)
    request = replace(request_of({"ask": "POST https://api.stripe.com/v1/x"}), headers=headers)
    part = (
        b"--b\r\nContent-Disposition: form-data; name=a; filename=" + b"f" * 900 + b"\r\n\r\n\r\n"
    )
    for count in (1, PART_HEADS_BYTES_MAX // 960, PART_HEADS_BYTES_MAX // 900):
        for method in (b"DELETE", b"POST"):
            last = b"--b\r\nContent-Disposition: form-data; name=_method\r\n\r\n" + method
            body = part * count + last + b"\r\n--b--"
            call = identify(POLICIES["house"], replace(request, body=body))
            too_many = count == PART_HEADS_BYTES_MAX // 900
            expected = Reason.MALFORMED_REQUEST if method == b"DELETE" else None
            assert call.fault is (Reason.BODY_TOO_LARGE if too_many else expected)
    many = replace(request, body=b"--b" * (FIELDS_MAX + 1))
    assert identify(POLICIES["house"], many).fault is Reason.BODY_TOO_LARGE


def test_a_method_among_very_many_members_is_a_fault() -> None:
    headers = (("content-type", "application/json"),)
    request = replace(request_of({"ask": "POST https://api.stripe.com/v1/x"}), headers=headers)
    body = b'{"_method": "POST"}' * 101
    assert identify(POLICIES["house"], replace(request, body=body[19:])).fault is None
    assert identify(POLICIES["house"], replace(request, body=body)).fault is not None


def test_every_fault_of_a_request_says_why() -> None:
    faulty = [call for call in map(judged, ROWS) if call.fault is not None]
    batches = {Reason.BATCH_OF_WRITES}
    assert [call for call in faulty if not call.detail and call.fault not in batches] == []


def test_a_label_is_short() -> None:
    name = "contacts." + "x" * 1_000
    params = {"jsonrpc": "2.0", "method": "tools/call", "params": {"name": name}}
    call = judged({"policy": "mcp", "ask": "POST https://mcp.example/mcp", "json": params})
    assert (call.tool, len(call.operation)) == ("crm.contacts", 200)


@pytest.mark.parametrize("host", ["a." * 200 + "corp.example", "1:2:3", ""])
def test_a_host_that_cannot_be_is_unlisted(host: str) -> None:
    call = identify(POLICIES["house"], Request("GET", "https", host, 443, "/"))
    assert call.tool == "unlisted"


ANY_TEXT = st.text(max_size=40)
PATHS = st.lists(
    st.sampled_from(
        ["/", "v1", "refunds", "..", ".", "%2e", "%2F", ";", "%", "\\", "é", "graphql"]
    ),
    max_size=8,
).map("".join)
MESSAGES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | ANY_TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["jsonrpc", "method", "params", "name", "id", "query", "Query"])
            | ANY_TEXT,
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
BODIES = (
    st.binary(max_size=80)
    | st.lists(st.sampled_from([b"--b", b"name=_method", b"\r\n\r\n", b"&_method=PUT", b"%"])).map(
        b"".join
    )
    | MESSAGES.map(lambda message: json.dumps(message).encode())
    | st.sampled_from(
        ["{a}", "mutation{issueDelete}", "query A{...F} fragment F on Q{...F b}"]
    ).map(lambda text: json.dumps({"query": text}).encode())
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            ["content-type", "content-encoding", "connection", "upgrade", "mcp-name"]
            + ["idempotency-key", "x-http-method", "x_original_url", "authorization", "api-key"]
        ),
        ANY_TEXT
        | st.sampled_from(
            ["application/json", "application/graphql; charset", "multipart/x; boundary=b"]
            + ["application/x-www-form-urlencoded", "websocket", "=?base64?4?=", "POST"]
            + ["Bearer a.e30.b", "Bearer a.W10.b", "Bearer a.\u00e9.b", "gzip", "Content-Type"]
        ),
    ),
    max_size=3,
)


@given(
    st.sampled_from(sorted(POLICIES)),
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "CONNECT", "post", ""]),
    st.sampled_from(
        ["api.stripe.com", "mcp.example", "gql.example", "anywhere.example", "a:b", ""]
    ),
    PATHS | ANY_TEXT,
    HEADERS,
    BODIES,
)
def test_whatever_an_agent_sends_is_named_and_never_raises(
    policy: str, method: str, host: str, target: str, headers: list[tuple[str, str]], body: bytes
) -> None:
    request = Request(method, "https", host, 443, target, tuple(headers), body)
    call = identify(POLICIES[policy], request)
    assert call.tool in {*POLICIES[policy].tools, "unlisted"}
    assert call.fault is None or call.effect is Effect.WRITE
    call.operation.encode()


REFUNDS = "/v1/refunds"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [str, str.upper, lambda c: f"%{ord(c):02X}", lambda c: f"%{ord(c):02x}"]
            ),
            st.sampled_from(["", "/", "//"]),
        ),
        min_size=len(REFUNDS),
        max_size=len(REFUNDS),
    )
)
def test_no_spelling_of_a_frozen_path_reaches_the_broad_tool(
    spelling: list[tuple[Any, str]],
) -> None:
    """Letters in either case or escaped, slashes repeated: always the specific tool."""
    path = "".join(
        character + more if character == "/" else spell(character)
        for character, (spell, more) in zip(REFUNDS, spelling, strict=True)
    )
    policy: Policy = POLICIES["house"]
    call = identify(policy, Request("POST", "https", "api.stripe.com", 443, path))
    assert (call.tool, call.fault) == ("stripe.refunds.create", None)
