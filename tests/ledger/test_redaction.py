"""What of a message may be kept: which parts of a body are masked, and what stays readable."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import masking
from ledger.masking import Masking, Rules, TooMuchError
from ledger.redact import mark
from ledger.redaction import Redacted, redacted
from ledger.remembered import Known
from ledger.traced import Caught, Side
from policies.policy import Redaction

CASES = yaml.safe_load(
    (Path(__file__).parents[1] / "cases" / "redaction_bodies.yaml").read_text("utf-8")
)
KEY = b"k" * 32
MARK = re.compile(r"\[redacted:[0-9a-f]{8}\]")
JSON = "application/json"
MIB = 1024 * 1024


def caught(body: bytes = b"", media_type: str = JSON, **changes: Any) -> Caught:
    named: dict[str, Any] = {
        "call_id": "call", "side": Side.REQUEST, "at_us": 1, "run": "run", "tenant": "t",
        "tool": "tool", "release": "", "level": "full", "start": "POST https://api.example/v1",
        "headers": (("Content-Type", media_type),), "body": body, "body_bytes": len(body),
    }  # fmt: skip
    return Caught(**(named | changes))


def show(message: Caught, known: Known | None = None) -> Redacted:
    return redacted(message, Rules(KEY, message.redaction), Known() if known is None else known)


def shown(text: str | None) -> str | None:
    return None if text is None else MARK.sub("[*]", text)


@pytest.mark.parametrize("case", CASES, ids=[case["it"] for case in CASES])
def test_a_body(case: dict[str, Any]) -> None:
    body = case["body"].encode("latin-1" if case.get("latin1") else "utf-8")
    rule = Redaction((), tuple(case.get("keys", ())), tuple(case.get("patterns", ())))
    message = caught(body, case.get("type", JSON), redaction=rule)
    if case.get("is_cut"):
        message = caught(body, body_bytes=len(body) + 100)
    kept = show(message)
    assert shown(kept.text) == case.get("shows", case["body"])
    assert (kept.why, kept.is_cut) == ("", bool(case.get("is_cut")))


HEADERS = {
    "Authorization": ("Bearer abc.def", "Bearer [*]"),
    "Proxy-Authorization": ("Basic YWRhOmI=", "Basic [*]"),
    "Cookie": ("a=1; b=2", "[*]"),
    "Set-Cookie": ("a=1; Path=/", "[*]"),
    "X-Api-Key": ("abc", "[*]"),
    "api-key": ("abc", "[*]"),
    "X-Goog-Api-Key": ("abc", "[*]"),
    "X-Amz-Security-Token": ("abc", "[*]"),
    "X-Hub-Signature-256": ("sha256=abc", "[*]"),
    "Stripe-Signature": ("t=1,v1=abc", "[*]"),
    "X-Own": ("abc", "[*]"),
    "Location": ("https://x.example/cb?token=abc&n=1", "https://x.example/cb?token=[*]&n=1"),
    "X-Note": ("a sk_live_4eC39HqLyjWDarjtT1zdp7dc b", "a [*] b"),
    "X-Ratelimit-Remaining-Tokens": ("500", "500"),
    "Idempotency-Key": ("order-17", "order-17"),
    "User-Agent": ("OpenAI/Python 2.1", "OpenAI/Python 2.1"),
    "X-Request-Id": ("req_011CSHoEeqs5C35K2UUqR7Fy", "req_011CSHoEeqs5C35K2UUqR7Fy"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header(name: str) -> None:
    value, expected = HEADERS[name]
    for _ in range(2):  # the second time from what is remembered
        kept = show(caught(headers=((name, value),), redaction=Redaction(headers=("x-own",))))
        assert [(n, shown(v)) for n, v in kept.headers] == [(name, expected)]


URLS = {
    "GET https://ada:pw@x.example/a?b=1": "GET https://ada:[*]@x.example/a?b=1",
    "GET https://x.example/a?api_key=abc&q=x%20y": "GET https://x.example/a?api_key=[*]&q=x%20y",
    "GET https://x.example/a?key=abc#access_token=abc": (
        "GET https://x.example/a?key=[*]#access_token=[*]"
    ),
    "GET https://x.example/bot123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw0/getMe": (
        "GET https://x.example/[*]/getMe"
    ),
    "GET https://x.example/a;jsessionid=abc/b?page_token=5": (
        "GET https://x.example/a;jsessionid=[*]/b?page_token=5"
    ),
    "GET https://x.example/a?q=password%253Dpw1&b=x%2520y": (
        "GET https://x.example/a?q=password%3D[*]&b=x%2520y"
    ),
    "GET https://x.example/password/hunter2xyz/y": "GET https://x.example/password/[*]/y",
    "GET https://x.example/password/reset/token/v1": (
        "GET https://x.example/password/reset/token/v1"
    ),
    "GET https://[2001:db8::1]:8443/a?": "GET https://[2001:db8::1]:8443/a?",
}


@pytest.mark.parametrize("start", URLS)
def test_a_url(start: str) -> None:
    assert shown(show(caught(start=start)).start) == URLS[start]


def test_what_a_request_carried_is_masked_where_the_answer_tells_it_again() -> None:
    known = Known()
    show(
        caught(b'{"password": "hunter2!"}', headers=(("Authorization", "Bearer abcdef12"),)), known
    )
    answer = caught(b'{"you sent": ["abcdef12", "hunter2!"]}', side=Side.RESPONSE, start="200")
    assert shown(show(answer, known).text) == '{"you sent": ["[*]", "[*]"]}'


def test_what_a_request_carried_is_masked_where_a_model_tells_it_piece_by_piece() -> None:
    known = Known()
    show(caught(b'{"password": "correct horse"}'), known)
    stream = "".join(
        f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': piece}}]})}\n\n"
        for piece in ("it is corr", "ect ho", "rse, dear")
    )
    text = show(caught(stream.encode(), "text/event-stream", side=Side.RESPONSE), known).text
    assert '"content": "it is [*], dear"' in (shown(text) or "")


def test_equal_secrets_have_equal_marks_wherever_they_stand() -> None:
    secret = "sk_live_4eC39HqLyjWDarjtT1zdp7dc"
    kept = show(
        caught(
            json.dumps({"password": secret, "note": f"x {secret}", "a": secret}).encode(),
            headers=(("Authorization", f"Bearer {secret}"),),
            start=f"GET https://x.example/{secret}?token={secret}",
        )
    )
    everything = f"{kept.start} {kept.headers} {kept.text}"
    assert set(MARK.findall(everything)) == {mark(secret, KEY)}
    assert len(MARK.findall(everything)) == 6


@pytest.mark.parametrize(
    "media_type, body, coding, why",
    [
        ("application/octet-stream", b"\x00\x01", "", "binary"),
        ("image/png", b"plain", "", "binary"),
        ("application/grpc+proto", b"plain", "", "binary"),
        ("text/plain", b"no gzip", "gzip", "coded"),
        ("text/plain", b"abc", "own-coding", "coded"),
        ("application/json; charset=utf-7", b'{"+AHA-assword": "a"}', "", "binary"),
        ("application/x-www-form-urlencoded", "password=a".encode("utf-16-le"), "", "binary"),
        ("multipart/form-data; boundary=B; boundary=B", b"--B\r\n\r\na\r\n--B--", "", "binary"),
        ("multipart/form-data", b"--B\r\n\r\na\r\n--B--", "", "binary"),
        ("application/x-www-form-urlencoded", b"&" * 60_000, "", "too_long"),
        ("text/event-stream", b"\n\n" * 30_000, "", "too_long"),
    ],
)
def test_of_some_bodies_only_the_digest_is_kept(
    media_type: str, body: bytes, coding: str, why: str
) -> None:
    headers = (("Content-Type", media_type), ("Content-Encoding", coding))
    kept = show(caught(body, headers=headers))
    assert (kept.text, kept.why) == (None, why)


def test_the_policy_may_give_up_bodies() -> None:
    kept = show(caught(b'{"a": 1}', level="digest"))
    assert (kept.text, kept.why) == (None, "digest")


def test_what_cannot_be_read_is_given_up_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str) -> None:
        raise ValueError(text)

    monkeypatch.setattr("ledger.redaction.storable", broken)
    assert show(caught(b"{}")) == Redacted("", (), "", False, None, "unreadable")


@pytest.mark.parametrize(
    "text",
    [
        '"', '\\"', "{", '{"a":', "[", "eyJ", " eyJ", "a=", "token=", "token=x ", "password:\n",
        "a&", "://a:", "-----BEGIN RSA PRIVATE KEY-----", '<a key="', "<password><![CDATA[",
        "key.", "--key ", "key: \t  ", "%41", "SG.aaaaaaaaaaaaaaaaaaaaaaa", "/TAAAAAAA", "1.5,",
        "\\u0041", '{"name":"a","value":"b"},', "Bearer ", "-", "token:'", 'token:"\\', "QUJD",
        "data: {}\n\n", 'data: {"index":0,"choices":[{"delta":{"content":"a"}}]}\n\n', "a\n", "é",
        "\udce9",
    ],
)  # fmt: skip
@pytest.mark.parametrize("media_type", [JSON, "text/plain", "text/event-stream", "text/xml"])
def test_hostile_megabytes_end_in_bounded_steps(
    text: str, media_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not counted in steps passes over the text a few times; the steps are bounded."""
    monkeypatch.setattr(masking, "STEPS_MAX", 50_000)
    body = (text * (MIB // 8 // len(text))).encode("utf-8", "surrogatepass")
    kept = show(caught(body, media_type))
    assert kept.why in {"", "too_long", "binary"}


def hostile_values() -> Iterator[tuple[str, list[str], str]]:
    """Secrets and texts that are alike for as long as can be."""
    long = ["ab"[n % 2] + "-" + "a-" * 2_000 + str(n) for n in range(50)]
    yield "long", long, "a-" * 350_000 + long[0] + long[1]
    yield "one letter", ["a" * (6 + n) for n in range(100)], "a" * 500_000
    yield "same beginning", ["a" * 40 + f"b{n}" for n in range(100)], "a" * 500_000
    yield "numbers", ["1" * (9 + n) for n in range(90)], "1" * 500_000
    yield "middle", ["a" * 8 + "b" + "a" * 6 + chr(65 + n) for n in range(50)], "a" * 500_000


@pytest.mark.parametrize("case", list(hostile_values()), ids=lambda case: case[0])
@pytest.mark.parametrize("pieces", [1, 200])
def test_looking_for_secrets_by_value_ends(case: tuple[str, list[str], str], pieces: int) -> None:
    """40 seconds of one request's body, where each secret was tried at each place."""
    _, values, text = case
    size = len(text) // pieces
    texts = ["\u00e9" + text[n * size : (n + 1) * size] for n in range(pieces)]
    body = json.dumps({"p": [{"password": value} for value in values], "t": texts}).encode()
    before_seconds = process_time()
    kept = show(caught(body))
    assert process_time() - before_seconds < 5  # 0.5 where it is bounded
    assert kept.why in {"", "too_long"}
    assert kept.start == "POST https://api.example/v1"


@pytest.mark.parametrize("times", range(1, 13))
def test_json_too_deep_in_texts_is_masked_whole(times: int) -> None:
    for wrap in (lambda text: json.dumps(text), lambda text: json.dumps({"a": text})):
        body = json.dumps({"password": "hunter2x"})
        for _ in range(times):
            body = wrap(body)
        kept = show(caught(body.encode()))
        assert kept.text is not None
        assert "hunter2x" not in kept.text
        assert MARK.search(kept.text)


def test_steps_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "STEPS_MAX", 5_000)
    with pytest.raises(TooMuchError):
        Masking(Rules(KEY, Redaction()), Known()).text("{" * (masking.STEPS_MAX + 1) + '"')


SECRET = "sk_live_4eC39HqLyjWDarjtT1zdp7dc"
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(SECRET)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just(SECRET), inner)
)


@settings(max_examples=100, deadline=None)
@given(VALUES, st.booleans(), st.sampled_from(["none", "text", "gzip"]))
def test_a_planted_key_is_never_left_in_json(value: Any, is_ascii: bool, wrapped: str) -> None:
    body = json.dumps({"marker": 1, "value": value, "k": SECRET}, ensure_ascii=is_ascii)
    if wrapped == "text":
        body = json.dumps({"arguments": body}, ensure_ascii=is_ascii)
    raw = body.encode("utf-8", "surrogatepass")
    headers: tuple[tuple[str, str], ...] = (("Content-Type", JSON),)
    if wrapped == "gzip":
        raw, headers = gzip.compress(raw), (*headers, ("Content-Encoding", "gzip"))
    kept = show(caught(raw, headers=headers))
    assert kept.why == ""
    assert kept.text is not None
    assert SECRET not in kept.text
    assert "marker" in kept.text


@settings(max_examples=300, deadline=None)
@given(
    st.binary(),
    st.sampled_from(
        [JSON, "text/plain", "text/event-stream", "application/x-www-form-urlencoded",
         "multipart/form-data; boundary=B", "application/x-ndjson", "text/xml", ""]
    ),
    st.sampled_from(["", "gzip", "br", "zstd", "deflate", "br, gzip"]),
    st.binary(max_size=40),
)  # fmt: skip
def test_no_bytes_raise(body: bytes, media_type: str, coding: str, start: bytes) -> None:
    told = start.decode("utf-8", "surrogateescape")
    headers = (("Content-Type", media_type), ("Content-Encoding", coding), ("X", told))
    kept = show(caught(body, headers=headers, start=told))
    assert kept.why != "unreadable"
    f"{kept.start}{kept.headers}{kept.text}".encode()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=6), st.integers(0, len(SECRET)), st.data())
def test_a_key_cut_over_events_is_never_left(texts: list[str], cut: int, data: Any) -> None:
    at = data.draw(st.integers(0, len(texts)))
    pieces = [*texts[:at], f" {SECRET[:cut]}", f"{SECRET[cut:]} ", *texts[at:]]
    stream = "".join(
        f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': piece}}]})}\n\n"
        for piece in pieces
    )
    kept = show(caught(stream.encode(), "text/event-stream"))
    assert kept.text is not None
    assert SECRET not in kept.text
    for piece in (SECRET[:cut], SECRET[cut:]):
        assert len(piece) < 12 or piece not in kept.text
