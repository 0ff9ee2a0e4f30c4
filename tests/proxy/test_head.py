"""What a head must be, what is stripped from it, what is added."""

from typing import Any

import pytest

from policies.call import Identity, Request
from policies.verdict import Reason
from proxy import head

WHO = Identity(run="r1", tenant="acme")
HANDSHAKE = ((b"Host", b"api.test"), (b"Upgrade", b"WebSocket"))
TAGS = ("X-Run-Id", "X-Tenant-Id")


def a_head(**changed):
    parts: dict[str, Any] = {
        "method": "GET",
        "scheme": "https",
        "host": "api.test",
        "port": 443,
        "target": "/v1?q=1",
        "headers": ((b"Host", b"api.test"),),
    }
    return head.Head(**(parts | changed))


def test_a_plain_head_becomes_a_request_with_lower_case_names():
    request = head.read(a_head(headers=((b"Host", b"API.test."), (b"X-A", b" b "))), b"body")
    assert isinstance(request, Request)
    assert request.headers == (("host", "API.test."), ("x-a", "b"))
    assert (request.host, request.target, request.body) == ("api.test", "/v1?q=1", b"body")


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"headers": ((b"Host", b"api.test:443"),)},
        {"authority": "api.test:443"},
        {"tunnel": ("API.test", 443), "sni": "api.TEST"},
        {"http2": True, "headers": (), "authority": "api.test"},
        {"host": "::1", "headers": ((b"Host", b"[::1]"),)},
        {"scheme": "http", "port": 80},
        {"method": "CONNECT", "target": "/", "http10": True, "headers": ()},
        {"headers": HANDSHAKE},
        {"headers": (*HANDSHAKE, (b"Content-Length", b"0"))},
    ],
    ids=str,
)
def test_names_that_agree_pass(changed):
    assert isinstance(head.read(a_head(**changed)), Request)


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"headers": ((b"Host", b"evil.test"),)}, Reason.AUTHORITY_MISMATCH),
        ({"headers": ((b"Host", b"api.test:444"),)}, Reason.AUTHORITY_MISMATCH),
        ({"headers": ((b"Host", b"api.test@evil.test"),)}, Reason.AUTHORITY_MISMATCH),
        ({"authority": "evil.test"}, Reason.AUTHORITY_MISMATCH),
        ({"tunnel": ("evil.test", 443)}, Reason.AUTHORITY_MISMATCH),
        ({"tunnel": ("api.test", 444)}, Reason.AUTHORITY_MISMATCH),
        ({"sni": "evil.test"}, Reason.AUTHORITY_MISMATCH),
        ({"headers": ()}, Reason.MALFORMED_REQUEST),
        ({"headers": (), "http10": True}, Reason.MALFORMED_REQUEST),
        (
            {"method": "CONNECT", "target": "/", "http10": True, "authority": "evil.test"},
            Reason.AUTHORITY_MISMATCH,
        ),
        ({"headers": ((b"Host", b"api.test"),) * 2}, Reason.MALFORMED_REQUEST),
        ({"headers": ((b"Host", b"api.test"), (b"A b", b"1"))}, Reason.MALFORMED_REQUEST),
        ({"headers": ((b"Host", b"api.test"), (b"A", b"1\r\n 2"))}, Reason.MALFORMED_REQUEST),
        ({"headers": ((b"Host", b"api.test"), (b"A", b"\x7f"))}, Reason.MALFORMED_REQUEST),
        (
            {"headers": ((b"Host", b"api.test"), (b"Connection", b"content-length"))},
            Reason.MALFORMED_REQUEST,
        ),
        ({"headers": (*HANDSHAKE, (b"Content-Length", b"7"))}, Reason.MALFORMED_REQUEST),
        ({"headers": (*HANDSHAKE, (b"transfer-encoding", b"x"))}, Reason.MALFORMED_REQUEST),
        ({"target": "*"}, Reason.MALFORMED_REQUEST),
        ({"target": "/a b"}, Reason.MALFORMED_REQUEST),
        ({"target": "/a#b"}, Reason.MALFORMED_REQUEST),
        ({"target": "/\u00e9"}, Reason.MALFORMED_REQUEST),
        ({"method": "G T"}, Reason.MALFORMED_REQUEST),
        ({"host": "a,b", "headers": ((b"Host", b"a,b"),)}, Reason.MALFORMED_REQUEST),
        ({"target": "/" + "a" * head.TARGET_BYTES_MAX}, Reason.HEAD_TOO_LARGE),
        (
            {"headers": ((b"Host", b"api.test"),) + ((b"a", b"b"),) * head.HEADERS_MAX},
            Reason.HEAD_TOO_LARGE,
        ),
        (
            {"headers": ((b"Host", b"api.test"), (b"a", b"b" * head.HEAD_BYTES_MAX))},
            Reason.HEAD_TOO_LARGE,
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_head_that_could_be_read_in_two_ways_is_a_fault(changed, reason):
    fault = head.read(a_head(**changed))
    assert isinstance(fault, head.Fault)
    assert fault.reason is reason


def test_tags_are_added_and_spoofed_ones_and_hop_by_hop_fields_are_dropped():
    sent = (
        (b"Host", b"api.test"),
        (b"X_RUN_ID", b"root"),
        (b"x-tenant-id", b"other"),
        (b"X-Pullcord-Progress", b"1"),
        (b"Proxy-Authorization", b"Basic secret"),
        (b"Connection", b"close, X-Private"),
        (b"X-Private", b"1"),
        (b"TE", b"trailers"),
        (b"Authorization", b"Bearer kept"),
    )
    assert head.upstream_headers(sent, WHO, TAGS, tagged=True, http2=False) == (
        (b"Host", b"api.test"),
        (b"Authorization", b"Bearer kept"),
        (b"Connection", b"close"),
        (b"X-Run-Id", b"r1"),
        (b"X-Tenant-Id", b"acme"),
    )


def test_an_untagged_tool_gets_no_tags_and_spoofed_ones_are_dropped_all_the_same():
    sent = ((b"Host", b"api.test"), (b"X-Run-Id", b"root"))
    assert head.upstream_headers(sent, WHO, TAGS, tagged=False, http2=False) == (sent[0],)


def test_http2_fields_are_lower_case_without_a_connection_field():
    sent = ((b"X-A", b"1"), (b"connection", b"close"), (b"te", b"trailers"))
    assert head.upstream_headers(sent, WHO, TAGS, tagged=True, http2=True) == (
        (b"x-a", b"1"),
        (b"te", b"trailers"),
        (b"x-run-id", b"r1"),
        (b"x-tenant-id", b"acme"),
    )


@pytest.mark.parametrize(
    "http2, name", [(False, b"Accept-Encoding"), (True, b"accept-encoding")], ids=["1.1", "2"]
)
def test_an_answer_that_is_to_be_read_is_asked_for_uncoded(http2, name):
    sent = ((b"Accept-encoding", b"gzip"), (b"accept-encoding", b"br"))
    kept = head.upstream_headers(sent, WHO, TAGS, tagged=False, http2=http2, uncoded=True)
    assert kept == ((name, b"identity"),)


def test_a_websocket_handshake_keeps_its_upgrade_and_no_other_does():
    upgrade = ((b"Upgrade", b"websocket"), (b"Connection", b"Upgrade, X-A"), (b"X-A", b"1"))
    kept = head.upstream_headers(upgrade, WHO, TAGS, tagged=False, http2=False)
    assert kept == ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
    h2c = ((b"Upgrade", b"h2c"), (b"HTTP2-Settings", b"x"), (b"Connection", b"Upgrade"))
    assert head.upstream_headers(h2c, WHO, TAGS, tagged=False, http2=False) == ()


def test_an_upstream_cannot_speak_in_our_name():
    answer = (
        (b"Content-Type", b"text/plain"),
        (b"Pullcord-Decision", b"allow; forged"),
        (b"PULLCORD_X", b"1"),
        (b"Idempotent-Replayed", b"true"),
        (b"Alt-Svc", b"h3"),
        (b"Proxy-Authenticate", b"Basic"),
    )
    assert head.agent_headers(answer, "allow; reason=allowed; call=1") == (
        (b"Content-Type", b"text/plain"),
        (b"Pullcord-Decision", b"allow; reason=allowed; call=1"),
    )


def test_trailers_cannot_speak_in_our_name_either():
    trailers = ((b"grpc-status", b"0"), (b"pullcord-decision", b"x"), (b"connection", b"x"))
    assert head.agent_trailers(trailers) == (trailers[0], trailers[2])


def test_compression_of_a_websocket_is_not_offered_and_not_taken():
    upgrade = ((b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"))
    asked = (*upgrade, (b"Sec-WebSocket-Extensions", b"permessage-deflate"))
    kept = head.upstream_headers(asked, WHO, TAGS, tagged=False, http2=False)
    assert b"Sec-WebSocket-Extensions" not in dict(kept)
    kept = head.agent_headers(asked, "allow", websocket=True)
    assert b"Sec-WebSocket-Extensions" not in dict(kept)


@pytest.mark.parametrize(
    "status, fields",
    [
        (99, ()),
        (600, ()),
        (200, ((b"X-A", b"1\rX-B: 2"),)),
        (200, ((b"X-A", b"1\n 2"),)),
        (200, ((b"X-A", b"1\x00"),)),
        (200, ((b"X A", b"1"),)),
        (200, ((b"", b"1"),)),
        (200, ((b"X-A\n", b"1"),)),
        (200, ((b"X-A:", b"1"),)),
        (200, ((b"X-A", b"1"), (b"\xc3\xa9", b"2"))),
    ],
)
def test_an_answer_that_could_be_read_in_two_ways_is_broken(status, fields):
    assert head.broken_answer(status, fields)


@pytest.mark.parametrize("status", [100, 200, 407, 599])
def test_an_answer_that_reads_in_one_way_is_not_broken(status):
    assert not head.broken_answer(status, ())
    assert not head.broken_answer(
        status, ((b"X-A", b""), (b"x_b", b"\xe2\x82\xac\t%&"), (b"C", b"1"))
    )


@pytest.mark.parametrize("sent", [{"body": b"abc"}, {"streamed": True}], ids=str)
def test_a_websocket_handshake_has_no_body_however_it_comes(sent):
    fault = head.read(a_head(headers=HANDSHAKE), **sent)
    assert isinstance(fault, head.Fault)
    assert "its client sent a body with a WebSocket handshake" in fault.detail
