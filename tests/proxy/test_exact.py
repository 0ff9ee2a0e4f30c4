"""The exact request that an approval is bound to: what differs is another one, few things aside."""

from dataclasses import replace

import pytest

from policies.call import Request
from proxy.exact import UNBOUND, bound_to, headers

TAGS = ("X-Run-Id", "X-Tenant-Id")
SIGNED = "AWS4-HMAC-SHA256 Credential={key}/20261122/us-east-1/s3/aws4_request, {rest}"
NAMES = "SignedHeaders=host;x-amz-date, Signature="


def a_request(body: bytes = b"x", **rest: str) -> Request:
    pairs = tuple((name.replace("_", "-"), value) for name, value in rest.items())
    return Request("POST", "https", "mail.example", 443, "/send?to=ann", pairs, body)


def bound(request: Request) -> bytes:
    return bound_to(request, TAGS, "idempotency-key")


def aws(signature: str = "0" * 64, key: str = "AKIA1", at: str = "20261122T180000Z") -> Request:
    told = SIGNED.format(key=key, rest=NAMES + signature)
    return a_request(authorization=told, x_amz_date=at)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(replace(a_request(), method="PUT"), id="method"),
        pytest.param(replace(a_request(), scheme="http"), id="scheme"),
        pytest.param(replace(a_request(), host="mail.other"), id="host"),
        pytest.param(replace(a_request(), port=444), id="port"),
        pytest.param(replace(a_request(), target="/send?to=bob"), id="query"),
        pytest.param(replace(a_request(), target="/send?to=%61nn"), id="the query's escapes"),
        pytest.param(replace(a_request(), target="/./send?to=ann"), id="path"),
        pytest.param(a_request(b"x "), id="body"),
        pytest.param(a_request(content_type="text/plain"), id="content type"),
        pytest.param(a_request(authorization="Bearer other"), id="authorization"),
        pytest.param(a_request(cookie="session=other"), id="cookie"),
        pytest.param(a_request(private_token="other"), id="another account"),
        pytest.param(a_request(x_dry_run="false"), id="any header"),
        pytest.param(a_request(user_agent="other"), id="user agent"),
        pytest.param(a_request(baggage="account=other"), id="baggage"),
        pytest.param(a_request(x_amz_date="20261122T180000Z"), id="a date that nobody signed"),
        pytest.param(a_request(te="trailers"), id="trailers"),
        pytest.param(a_request(upgrade="websocket"), id="upgrade"),
    ],
)
def test_what_differs_is_another_request(other: Request) -> None:
    assert bound(other) != bound(a_request())


def test_values_of_one_name_are_bound_in_their_order() -> None:
    one = replace(a_request(), headers=(("x-a", "1"), ("x-a", "2"), ("x-b", "3")))
    other = replace(a_request(), headers=(("x-a", "2"), ("x-a", "1"), ("x-b", "3")))
    moved = replace(a_request(), headers=(("x-b", "3"), ("x-a", "1"), ("x-a", "2")))
    assert bound(one) != bound(other)
    assert bound(one) == bound(moved)


def test_what_stands_where_is_bound() -> None:
    assert bound(a_request(x_ab="c")) != bound(a_request(x_a="bc"))
    assert bound(replace(a_request(b"ab"), method="c")) != bound(
        replace(a_request(b"a"), method="bc")
    )


@pytest.mark.parametrize("name", sorted({*UNBOUND, "idempotency-key"}))
def test_marks_of_a_try_are_not_bound(name: str) -> None:
    assert bound(replace(a_request(), headers=((name, "a"),))) == bound(a_request())


@pytest.mark.parametrize("name", ["proxy-connection", "keep-alive", "x-run-id", "x-pullcord-a"])
def test_what_stays_here_is_not_bound_and_not_shown(name: str) -> None:
    request = replace(a_request(), headers=((name, "a"),))
    assert bound(request) == bound(a_request())
    assert headers(request, TAGS) == ()


def test_what_connection_names_stays_here() -> None:
    request = a_request(connection="x-a", x_a="1", x_b="caf\xe9")
    assert headers(request, TAGS) == (("x-b", "caf\xe9"),)


def test_a_new_signature_of_one_key_is_the_same_request() -> None:
    again = aws("1" * 64, at="20261122T180500Z")
    assert bound(aws()) == bound(again)
    assert bound(aws()) != bound(aws(key="AKIA2"))
    assert bound(aws()) != bound(aws("2" * 63))
    assert bound(aws()) != bound(aws(at="another"))
    assert bound(aws()) != bound(replace(again, headers=again.headers[1:]))
    assert bound(aws()) != bound(replace(again, body=b"y"))
