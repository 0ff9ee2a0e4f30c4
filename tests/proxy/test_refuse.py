"""How a verdict is told: tests/cases/refusals.yaml, and what holds for every reason and dialect."""

import json
import re
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
import yaml

from policies.call import Dialect, Facts, Identity, Request
from policies.decide import decide
from policies.load import load
from policies.match import identify
from policies.verdict import MEANING, Action, Level, Limit, Pull, Reason, Scope, Verdict
from proxy.refuse import KINDS, Refusal, decision_header, refuse
from proxy.sentences import SENTENCES, may_retry, sentence

ROWS: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "cases" / "refusals.yaml").read_text("utf-8")
)
CALL_ID = "0199-call"
REFUSING = [reason for reason in Reason if reason not in (Reason.ALLOWED, Reason.REPLAYED)]
HOSTILE = (
    "x\r\nSet-Cookie: a=1\n\x00\x1b[2J\x7f\x85\u202e\u2066\u2028\ufeff\ud800\ufffe\U000e0041"
    "\"'%<&>]]>\\{why}{"
)
REQUEST = Request(
    "POST", "https", HOSTILE, 443, f"/{HOSTILE}", (("content-type", HOSTILE), ("user-agent", "x"))
)
JSON_DIALECTS = [dialect for dialect in Dialect if dialect not in (Dialect.AWS, Dialect.GRPC)]


def pull_of(rule: str) -> Pull:
    level, scope, subject = rule.split(":", 2)
    return Pull(Level(level), Scope(scope), subject, "", "ceiling:c1", 0)


def verdict_of(row: dict[str, Any]) -> Verdict:
    return Verdict(
        Action.REFUSE,
        Reason(row["reason"]),
        row.get("rule", ""),
        row.get("detail", ""),
        retry_after_seconds=row.get("retry_after"),
        limit=Limit(*row["limit"]) if "limit" in row else None,
        earlier_call=row.get("earlier", ""),
        pull=pull_of(row["pull"]) if "pull" in row else None,
    )


def request_of(row: dict[str, Any]) -> Request | None:
    if "request" not in row:
        return None
    method, _, url = row["request"].partition(" ")
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    headers = tuple(row.get("sent", {}).items())
    return Request(method, parts.scheme, parts.hostname or "", port, target, headers)


def refusal_of(row: dict[str, Any]) -> Refusal:
    return refuse(
        verdict_of(row),
        CALL_ID,
        Dialect(row.get("dialect", "http")),
        row.get("rpc_id"),
        run=row.get("run", ""),
        user_agent=row.get("user_agent", ""),
        request=request_of(row),
    )


def rows_with(*keys: str) -> Any:
    rows = [row for row in ROWS if any(key in row for key in keys)]
    return pytest.mark.parametrize("row", rows, ids=[row["it"] for row in rows])


def at(body: Any, path: str) -> Any:
    for step in path.split("."):
        body = body[int(step)] if isinstance(body, list) else body[step]
    return body


def hostile(reason: Reason) -> Verdict:
    """A verdict whose every text was written by an enemy."""
    return Verdict(
        Action.REFUSE,
        reason,
        f"halt:tool:{HOSTILE}",
        HOSTILE,
        retry_after_seconds=3,
        limit=Limit(HOSTILE, 1, 0, 3, 60),
        earlier_call=HOSTILE,
    )


every_answer = pytest.mark.parametrize("reason,dialect", list(product(REFUSING, Dialect)))


@rows_with("says")
def test_the_sentence(row: dict[str, Any]) -> None:
    said = sentence(verdict_of(row), CALL_ID, row.get("run", ""), request_of(row))
    assert said == row["says"]


@rows_with("status", "headers")
def test_the_head(row: dict[str, Any]) -> None:
    refusal = refusal_of(row)
    headers = dict(refusal.headers)
    expected = row.get("headers", {})
    assert refusal.status == row.get("status", refusal.status)
    assert {name: headers.get(name) for name in expected} == expected


@rows_with("body")
def test_the_body(row: dict[str, Any]) -> None:
    body = json.loads(refusal_of(row).body)
    assert {path: at(body, path) for path in row["body"]} == row["body"]


@rows_with("xml")
def test_the_xml(row: dict[str, Any]) -> None:
    root = ElementTree.fromstring(refusal_of(row).body)
    assert {path: root.findtext(path) for path in row["xml"]} == row["xml"]
    assert root.tag == ("Error" if "Code" in row["xml"] else "ErrorResponse")


@rows_with("yaml")
def test_the_yaml_to_add(row: dict[str, Any]) -> None:
    message, *lines = json.loads(refusal_of(row).body)["detail"].split("\n")
    assert len(lines) == 3
    assert yaml.safe_load("\n".join(lines)) == row["yaml"]
    assert message == json.loads(refusal_of(row).body)["message"]


def test_the_yaml_in_the_sentence_is_yaml() -> None:
    request = Request("POST", "https", "api.example.com", 8443, "/v1/charges")
    verdict = Verdict(Action.REFUSE, Reason.DESTINATION_UNLISTED, "unlisted")
    entry = sentence(verdict, CALL_ID, "", request).partition("`tools:` ")[2]
    match = {"host": "api.example.com", "method": "POST", "port": 8443}
    assert yaml.safe_load(entry) == {"api.example.com": {"match": match}}


PASTED = [
    ("POST", "https://api.example.com/v1/charges?key=1"),
    ("GET", "http://api.example.com:8080/"),
    ("PATCH", "http://8.8.8.8/a"),
    ("GET", "https://api.example.com/a%2Fb/{c}/*/d"),
    ("DELETE", f"https://api.example.com/{'a' * 500}"),
    ("PUT", f"https://{'.'.join(['a' * 60] * 4)}/x"),
    ("GET", "https://null/on"),
    ("YES", "https://api.example.com/a//b"),
]


@pytest.mark.parametrize("method,url", PASTED)
def test_the_pasted_yaml_is_a_policy_that_lists_the_call(method: str, url: str) -> None:
    row = {"reason": "destination_unlisted", "rule": "unlisted", "request": f"{method} {url}"}
    request = request_of(row)
    assert request is not None
    snippet = json.loads(refusal_of(row).body)["detail"].partition("\n")[2]
    policy = load(f"version: 1\nunlisted: refuse\n{snippet}\n")
    assert identify(policy, request).tool == next(iter(policy.tools))


def test_a_freeze_of_the_policy_names_its_line() -> None:
    policy = load(
        "version: 1\nunlisted: refuse\nfrozen: [pay]\n"
        "tools:\n  pay: {match: {host: pay.example.com}}\n",
        "config/policy.yaml",
    )
    call = identify(policy, Request("POST", "https", "pay.example.com", 443, "/"))
    verdict = decide(policy, call, Facts(0, Identity("r1", "acme")))
    assert sentence(verdict, CALL_ID, "r1") == (
        "FROZEN by pullcord: writes of tool pay are frozen (policy.yaml:3). Do not retry. "
        "Reads still pass. Tell the user; an operator can remove that line of the policy."
    )


def test_every_reason_that_refuses_has_a_sentence_and_a_row() -> None:
    assert set(SENTENCES) == set(REFUSING)
    told = {row["reason"] for row in ROWS}
    assert set(REFUSING) - told == {
        # Alike in all but their words.
        Reason.CREDENTIALS_INVALID,
        Reason.TOKEN_EXPIRED,
        Reason.AUTHORITY_MISMATCH,
        Reason.HEAD_TOO_LARGE,
        Reason.PROTOCOL_UNSUPPORTED,
    }


def test_every_status_has_a_kind() -> None:
    verdicts = [hostile(reason) for reason in REFUSING]
    verdicts.append(Verdict(Action.REFUSE, Reason.OVER_CEILING, "ceiling:c1"))
    assert set(KINDS) == {(MEANING[v.reason].status, may_retry(v)) for v in verdicts}


def test_what_refuses_nothing_has_no_refusal() -> None:
    with pytest.raises(KeyError):
        refuse(Verdict(Action.ALLOW, Reason.ALLOWED, ""), CALL_ID)


def test_the_decision_header_is_the_contract() -> None:
    assert decision_header(Action.REPLAY, Reason.REPLAYED, "01\r\n9") == (
        "replay; reason=replayed; call=019"
    )


@every_answer
@pytest.mark.parametrize("request_", [None, REQUEST], ids=["alone", "with its request"])
def test_no_text_of_the_world_reaches_a_header(
    reason: Reason, dialect: Dialect, request_: Request | None
) -> None:
    refusal = refuse(hostile(reason), HOSTILE, dialect, 1, run=HOSTILE, request=request_)
    for name, value in refusal.headers:
        assert re.fullmatch(r"[a-z-]+", name)
        assert re.fullmatch(r"[ -~]*", value), name
    assert len(dict(refusal.headers)) == len(refusal.headers)


@every_answer
def test_every_answer_says_that_it_is_ours_and_whether_to_retry(
    reason: Reason, dialect: Dialect
) -> None:
    verdict = Verdict(Action.REFUSE, reason, "", retry_after_seconds=3)
    headers = dict(refuse(verdict, CALL_ID, dialect, 1).headers)
    assert headers["pullcord-decision"] == f"refuse; reason={reason}; call={CALL_ID}"
    assert headers["x-should-retry"] == str(MEANING[reason].retry).lower()
    assert headers["cache-control"] == "no-store"
    assert ("retry-after" in headers) == MEANING[reason].retry


@every_answer
def test_the_status_is_the_table_s(reason: Reason, dialect: Dialect) -> None:
    status = MEANING[reason].status
    answered = refuse(hostile(reason), CALL_ID, dialect, 1).status
    if dialect in (Dialect.MCP, Dialect.GRAPHQL, Dialect.GRPC) and status != 407:
        assert answered in (status, 200)
    else:
        assert answered == status


@pytest.mark.parametrize("reason,dialect", list(product(REFUSING, JSON_DIALECTS)))
def test_every_body_carries_the_sentence_where_its_sdk_looks(
    reason: Reason, dialect: Dialect
) -> None:
    verdict = hostile(reason)
    refusal = refuse(verdict, CALL_ID, dialect, 1)
    body = json.loads(refusal.body.decode("ascii"))
    said = sentence(verdict, CALL_ID, "")
    if "result" in body:
        assert body["result"]["content"] == [{"type": "text", "text": said}]
    elif "errors" in body:
        assert body["errors"][0]["message"] == said
    else:
        assert body["error"]["message"] == body["message"] == said
        if dialect is not Dialect.GOOGLE:
            assert body["status"] == refusal.status


@pytest.mark.parametrize("reason", REFUSING)
@pytest.mark.parametrize("content_type", ["", "application/x-www-form-urlencoded"])
def test_every_aws_answer_is_xml_or_json(reason: Reason, content_type: str) -> None:
    verdict = hostile(reason)
    request = Request("POST", "https", "h", 443, "/", (("content-type", content_type),))
    refusal = refuse(verdict, CALL_ID, Dialect.AWS, request=request)
    messages = list(ElementTree.fromstring(refusal.body).iter("Message"))
    assert [message.text for message in messages] == [sentence(verdict, CALL_ID, "", request)]
    request = Request(
        "POST", "https", "h", 443, "/", (("content-type", "application/x-amz-json-1.0"),)
    )
    refusal = refuse(verdict, CALL_ID, Dialect.AWS, request=request)
    assert json.loads(refusal.body)["message"] == sentence(verdict, CALL_ID, "", request)


@pytest.mark.parametrize("reason", REFUSING)
def test_every_grpc_answer_is_trailers_only(reason: Reason) -> None:
    verdict = hostile(reason)
    refusal = refuse(verdict, CALL_ID, Dialect.GRPC)
    headers = dict(refusal.headers)
    assert refusal.body == b""
    assert headers["grpc-status"] != "0"
    assert unquote(headers["grpc-message"]) == sentence(verdict, CALL_ID, "")


@pytest.mark.parametrize("reason", REFUSING)
@pytest.mark.parametrize("request_", [None, REQUEST], ids=["alone", "with its request"])
def test_a_sentence_is_one_line_and_says_the_truth_about_retrying(
    reason: Reason, request_: Request | None
) -> None:
    verdict = hostile(reason)
    said = sentence(verdict, HOSTILE, HOSTILE, request_)
    assert said.isprintable()
    assert " by pullcord: " in said
    assert ("Do not retry." in said) != may_retry(verdict)
    assert "  " not in said
    assert said == said.strip()


def test_a_long_detail_is_cut_short() -> None:
    verdict = Verdict(Action.REFUSE, Reason.HALTED, "halt:run:r1", "x" * 10_000)
    assert len(sentence(verdict, CALL_ID, "")) < 600


def test_a_query_string_is_never_repeated() -> None:
    request = Request("GET", "https", "api.example.com", 443, "/a?key=sk_live_1")
    for reason, dialect in product(REFUSING, Dialect):
        verdict = Verdict(Action.REFUSE, reason, "unlisted")
        assert b"sk_live_1" not in refuse(verdict, CALL_ID, dialect, 1, request=request).body


@pytest.mark.parametrize("dialect", list(Dialect))
def test_an_answer_to_head_has_no_body(dialect: Dialect) -> None:
    request = Request("HEAD", "https", "api.example.com", 443, "/")
    verdict = Verdict(Action.REFUSE, Reason.HALTED, "halt:global")
    assert refuse(verdict, CALL_ID, dialect, 1, request=request).body == b""


@pytest.mark.parametrize("rpc_id", [0, "", "a\ud800\r\n", 2**80, -1])
def test_an_rpc_id_comes_back_as_it_was(rpc_id: str | int) -> None:
    verdict = Verdict(Action.REFUSE, Reason.HALTED, "halt:global")
    assert json.loads(refuse(verdict, CALL_ID, Dialect.MCP, rpc_id).body)["id"] == rpc_id
