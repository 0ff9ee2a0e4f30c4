"""What an operator's call would be: places filled in, and nothing but the policy's own read."""

import re
from pathlib import Path
from typing import Any

import pytest

from policies.call import Effect
from policies.load import PolicyError, load
from policies.policy import Policy, Undo
from proxy.credentials import Credential
from proxy.operations import OperationError
from proxy.operator_calls import Plan
from proxy.operator_plans import VALUE_CHARACTERS_MAX, Known, planned, planned_undo
from proxy.recorded import Bare

POLICY = """
version: 1
tools:
  list: {match: {host: pay.example, method: [GET, HEAD], path: "/v1/charges"}, effect: read}
  one: {match: {host: pay.example, method: GET, path: "/v1/charges/{id}"}, effect: read}
  gone: {match: {host: pay.example, method: DELETE, path: "/v1/charges/{id}"}}
  make: {match: {host: pay.example, method: POST, path: "/v1/charges"}, verify: VERIFY}
  odd: {match: {host: pay.example, path: "/v1/odd"}, effect: write}
  many: {match: {host: [a.example, "*.b.example"], path: "/x"}, effect: read}
  far: {match: {host: "::1", port: 8443, path: "/x"}, effect: read}
  model: {match: {host: m.example, path: "/m"}, effect: model}
"""
CALL = {
    "id": "01a202ea-6b9c",
    "run": "r1",
    "tenant": "acme",
    "host": "pay.example",
    "at": "2026-11-22T11:00:47.250Z",
}
ENTRIES = Path("/nowhere/credentials.yaml")
OPS = Credential("ops", frozenset({"pay.example"}), "authorization", "Bearer s", ("s",))


def policy(verify: str) -> Policy:
    return load(POLICY.replace("VERIFY", verify))


def plan(
    verify: str,
    given: dict[str, str] | None = None,
    request: dict[str, str] | None = None,
    call: dict[str, Any] = CALL,
    **credentials: Credential,
) -> Plan:
    def asked(path: str) -> str:
        if path not in (request or {}):
            raise OperationError(f"{path} is not kept")
        return (request or {})[path]

    made = policy(verify)
    asks = made.tools["make"].verify
    assert asks is not None
    return planned(made, asks, Known(call, given or {}, asked), credentials, ENTRIES)


@pytest.mark.parametrize(
    "verify, url",
    [
        ("{tool: list}", "https://pay.example/v1/charges"),
        ("{tool: list, query: {run: '{run}'}}", "https://pay.example/v1/charges?run=r1"),
        (
            "{tool: list, query: {'created[gte]': '{at_seconds}', t: '{tenant}'}}",
            "https://pay.example/v1/charges?created%5Bgte%5D=1795345247&t=acme",
        ),
        ("{tool: list, query: {a: '{at}'}}", "https://pay.example/v1/charges?a=2026-11-22T11%3A00%3A47.250Z"),
        ("{tool: one, path: '/v1/charges/{call}'}", "https://pay.example/v1/charges/01a202ea-6b9c"),
        ("{tool: one, path: '/v1/charges/ch_{run}'}", "https://pay.example/v1/charges/ch_r1"),
        ("{tool: many, path: /x}", "https://a.b.example/x"),
        ("{tool: far, path: /x}", "https://[::1]:8443/x"),
        ("{tool: list, query: {q: 'a&b=c {run}'}}", "https://pay.example/v1/charges?q=a%26b%3Dc%20r1"),
    ],
)  # fmt: skip
def test_places_are_filled_in(verify: str, url: str) -> None:
    host = "a.b.example" if "many" in verify else "pay.example"
    assert plan(verify, call={**CALL, "host": host}).url == url


def test_a_value_of_the_request_is_taken_from_the_trace_or_from_who_asks() -> None:
    verify = "{tool: list, query: {customer: '{request.customer}'}}"
    traced = plan(verify, request={"customer": "cus_1"})
    assert traced.target == "/v1/charges?customer=cus_1"
    with pytest.raises(OperationError, match="is known, and is 'cus_1'"):
        plan(verify, {"request.customer": "cus_2"}, {"customer": "cus_1"})
    told = plan(verify, {"request.customer": "cus 2&x=y"})
    assert told.target == "/v1/charges?customer=cus%202%26x%3Dy"
    with pytest.raises(OperationError, match="customer is not kept"):
        plan(verify)


def test_headers_are_filled_in_and_method_is_the_tools_own() -> None:
    found = plan("{tool: list, method: HEAD, headers: {X-Run: 'of {run}'}}")
    assert (found.method, found.headers) == ("HEAD", (("x-run", "of r1"),))
    assert plan("{tool: list}").method == "GET"


@pytest.mark.parametrize(
    "value",
    ["a/b", "..", ".", "a\\b", "a?b", "a#b", "a%2fb", "a;b", "a\nb", "", "x" * 1_025, "a\u202eb"],
)
def test_no_value_leads_to_another_path(value: str) -> None:
    assert VALUE_CHARACTERS_MAX == 1_024
    with pytest.raises(OperationError) as refused:
        plan("{tool: one, path: '/v1/charges/{request.id}'}", {"request.id": value})
    assert "{request.id}" in str(refused.value)


@pytest.mark.parametrize("value", ["a\r\nX-Y: z", "a\0b", " a", "é"])
def test_no_value_makes_another_header(value: str) -> None:
    with pytest.raises(OperationError, match=r"request\.h"):
        plan("{tool: list, headers: {X-H: '{request.h}'}}", {"request.h": value})


@pytest.mark.parametrize(
    "verify, why",
    [
        ("{tool: gone, path: /v1/charges/1}", r"gone \(line 6\) is only for DELETE"),
        ("{tool: list, method: POST}", "must be GET or HEAD, not POST"),
        ("{tool: one}", "say which path of one"),
        ("{tool: odd}", "odd is a write, and only a read verifies"),
        ("{tool: model}", "model is a model, and only a read verifies"),
        ("{tool: list, path: /v1/charges/1}", "takes GET pay.example/v1/charges/1 for one"),
        ("{tool: list, path: /v2}", "takes GET pay.example/v2 for unlisted"),
        ("{tool: list, path: /v1/../v1/charges}", "is no request that this proxy would let pass"),
        ("{tool: list, path: '/v1/charges?a=b'}", "must hold no query"),
        ("{tool: many, path: /x}", "many has several hosts, and none is pay.example"),
        ("{tool: list, query: {a: '{key}'}}", "only a hash is kept"),
        ("{tool: list, query: {a: '{token}'}}", r"\{token\} is unknown; there are call"),
        ("{tool: list, headers: {X-HTTP-Method-Override: DELETE}}", "let pass"),
    ],
)
def test_what_is_no_read_of_that_tool_is_refused(verify: str, why: str) -> None:
    with pytest.raises((OperationError, PolicyError), match=why):
        plan(verify)


@pytest.mark.parametrize("name", ["host", "content-length", "transfer-encoding"])
def test_headers_that_frame_a_message_are_refused(name: str) -> None:
    made = policy("{tool: list}")
    asks = made.tools["make"].verify
    assert asks is not None
    object.__setattr__(asks, "headers", ((name, "x"),))
    with pytest.raises(OperationError, match="is not the policy's to set"):
        planned(made, asks, Known(CALL, {}, str), {}, ENTRIES)


def test_a_value_that_nothing_asks_for_is_a_mistake() -> None:
    with pytest.raises(OperationError, match=r"nothing of this call is \{request.customer\}"):
        plan("{tool: list}", {"request.customer": "cus_1"})


# ---------------------------------------------------------------------------- credentials


def test_a_credential_goes_along_where_it_is_bound_to_the_host() -> None:
    found = plan("{tool: list, auth: ops}", ops=OPS)
    assert (found.credential, found.lacks, found.auth) == (OPS, "", "ops")
    assert "Bearer s" not in repr(found)


def test_a_credential_of_another_host_stays() -> None:
    elsewhere = Credential("ops", frozenset({"api.example"}), "authorization", "Bearer s", ("s",))
    found = plan("{tool: list, auth: ops}", ops=elsewhere)
    assert found.credential is None
    assert found.lacks == (
        f"the entry 'ops' of {ENTRIES} is not for pay.example: its `hosts` lack it"
    )


def test_a_missing_credential_is_told() -> None:
    found = plan("{tool: list, auth: ops}")
    assert found.lacks == (
        f"there is no {ENTRIES}; write there, for you alone (chmod 600): "
        '"ops": {hosts: ["pay.example"], bearer: SECRET}'
    )


def test_no_header_stands_twice() -> None:
    bound = Credential("ops", OPS.hosts, "x-key", "s", ("s",))
    with pytest.raises(OperationError, match="both the policy and ops name the header"):
        plan("{tool: list, auth: ops, headers: {X-Key: t}}", ops=bound)


# ---------------------------------------------------------------------------- what undoes a write

UNDO = """
version: 1
tools:
  make: {match: {host: pay.example, method: POST, path: "/v1/charges"}, undo: CALL}
  back: {match: {host: pay.example, method: [POST, DELETE], path: "/v1/refunds/**"}}
  bare: {match: {host: pay.example, path: "/v1/bare"}, idempotency: {header: X-Once}}
  seen: {match: {host: pay.example, method: [GET, POST], path: "/v1/seen"}, effect: read}
"""
ANSWER = {"id": "ch_1", "amount": Bare("12.50"), "paid": Bare("true"), "odd": 'a"&b=c/é'}


def undone(call: str, answer: dict[str, str] = ANSWER, **given: str) -> Plan:
    made = load(UNDO.replace("CALL", call))
    asks = made.tools["make"].undo
    assert isinstance(asks, Undo)

    def answered(path: str) -> str:
        if path not in answer:
            raise OperationError(f"{path} is not kept")
        return answer[path]

    known = Known(CALL, given, answered, answered)
    plan, taken = planned_undo(made, asks, known, {"ops": OPS}, ENTRIES, "the-key")
    assert (taken.tool, taken.effect) == (plan.tool, Effect.WRITE)
    return plan


@pytest.mark.parametrize(
    "call, told",
    [
        ("{tool: bare}", ("POST", "https://pay.example/v1/bare", b"")),
        ("{tool: bare, method: DELETE}", ("DELETE", "https://pay.example/v1/bare", b"")),
        (
            "{tool: back, path: '/v1/refunds/{response.id}', method: DELETE}",
            ("DELETE", "https://pay.example/v1/refunds/ch_1", b""),
        ),
        (
            "{tool: bare, form: {c: '{response.id}', 'm[a]': 'of {response.odd}'}}",
            ("POST", "https://pay.example/v1/bare", b"c=ch_1&m%5Ba%5D=of+a%22%26b%3Dc%2F%C3%A9"),
        ),
        (
            "{tool: bare, json: {a: '{response.amount}', b: 'x {response.amount}', c: [true, 1]}}",
            ("POST", "https://pay.example/v1/bare", b'{"a":12.50,"b":"x 12.50","c":[true,1]}'),
        ),
        (
            "{tool: bare, json: {a: '{response.paid}', b: '{response.odd}', c: {d: '{run}'}}}",
            ("POST", "https://pay.example/v1/bare",
             '{"a":true,"b":"a\\"&b=c/é","c":{"d":"r1"}}'.encode()),
        ),
    ],
)  # fmt: skip
def test_what_undoes_a_write_is_filled_in(call: str, told: tuple[str, str, bytes]) -> None:
    plan = undone(call)
    assert (plan.method, plan.url, plan.body) == told


def test_it_carries_a_key_and_says_what_its_body_is() -> None:
    assert undone("{tool: back, path: /v1/refunds/x}").headers == (("idempotency-key", "the-key"),)
    assert undone("{tool: bare, form: {a: b}}").headers == (
        ("content-type", "application/x-www-form-urlencoded"), ("x-once", "the-key"),
    )  # fmt: skip
    own = undone("{tool: bare, headers: {X-Once: 'undo {call}'}, json: {a: b}}").headers
    assert own == (("x-once", f"undo {CALL['id']}"), ("content-type", "application/json"))


@pytest.mark.parametrize(
    "call, answer, why",
    [
        ("{tool: back, path: '/v1/refunds/{response.id}'}", {"id": "../x"}, "another path"),
        ("{tool: bare, headers: {X-A: '{response.id}'}}", {"id": "a\r\nx: y"}, "cannot be printed"),
        ("{tool: bare, json: {a: '{response.id}'}}", {"id": ""}, "is empty"),
        ("{tool: bare, json: {a: '{response.id}'}}", {}, "id is not kept"),
        ("{tool: bare, form: {a: '{response.id}'}}", {"id": "x" * 2_000}, "is empty, long"),
        ("{tool: back, path: /v2/other}", {}, "takes POST pay.example/v2/other for unlisted"),
        ("{tool: bare, auth: none}", {}, ""),
    ],
)
def test_what_cannot_be_filled_in_is_told(call: str, answer: dict[str, str], why: str) -> None:
    if why:
        with pytest.raises(OperationError, match=re.escape(why)):
            undone(call, answer)
    else:
        assert "has no entry" in undone(call, answer).lacks or undone(call, answer).lacks


def test_a_value_that_a_person_gives_comes_first_and_has_to_be_of_use() -> None:
    given = {"response.id": "ch_9"}
    assert (
        undone("{tool: bare, form: {charge: '{response.id}'}}", {}, **given).body == b"charge=ch_9"
    )
    with pytest.raises(OperationError, match="leave it out of --set"):
        undone("{tool: bare, form: {charge: x}}", {}, **given)


def test_a_body_has_a_bound() -> None:
    long = ", ".join(f"f{number}: '{{response.id}}'" for number in range(100))
    with pytest.raises(OperationError, match="longer than 65536 bytes"):
        undone(f"{{tool: bare, json: {{{long}}}}}", {"id": "x" * 1_000})
