"""A request's head as it stands on the wire: read in one way, or refused."""

import base64

import pytest

from proxy import head
from proxy.engines.heard import Tunnel
from proxy.engines.http1_request import Broken, has_bare_feed, incoming, is_no_request
from proxy.identity import Credentials

WHO = base64.b64encode(b"r1:acme")
TUNNEL = Tunnel("api.test", 443, Credentials("r1", "acme"))
LINE = b"GET http://api.test/a?b HTTP/1.1"
HOST = b"Host: api.test"


def read(*lines, tunnel=None, scheme="http"):
    return incoming(b"\r\n".join(lines), tunnel, scheme=scheme, sni=None)


def test_an_absolute_form_names_where_it_goes():
    asked = read(LINE, HOST, b"Proxy-Authorization: Basic " + WHO)
    assert (asked.method, asked.scheme, asked.host, asked.port) == ("GET", "http", "api.test", 80)
    assert (asked.target, asked.length) == ("/a?b", 0)
    assert asked.fields == ((b"Host", b"api.test"),), "credentials go nowhere"
    assert asked.credentials == Credentials("r1", "acme")
    assert not isinstance(head.read(asked.head), head.Fault)


def test_inside_a_tunnel_the_connection_says_where_and_who():
    asked = read(b"GET /a HTTP/1.1", HOST, tunnel=TUNNEL, scheme="https")
    assert (asked.scheme, asked.host, asked.port) == ("https", "api.test", 443)
    assert asked.credentials == TUNNEL.credentials
    own = read(b"GET / HTTP/1.1", HOST, b"Proxy-Authorization: x", tunnel=TUNNEL, scheme="https")
    assert own.credentials is None


@pytest.mark.parametrize(
    "authority, place",
    [
        (b"[::1]:8080", ("::1", 8080)),
        (b"[::ffff:1.2.3.4]", ("::ffff:1.2.3.4", 80)),
        (b"a_b.test.", ("a_b.test.", 80)),
    ],
)
def test_the_ways_to_write_a_place(authority, place):
    asked = read(b"GET http://%b/ HTTP/1.1" % authority, b"Host: " + authority)
    assert (asked.host, asked.port) == place


@pytest.mark.parametrize(
    "lines",
    [
        (b"GET http://api.test/",),
        (b"GET  http://api.test/ HTTP/1.1",),
        (b"GET http://api.test/ http/1.1",),
        (b"GET http://api.test/ HTTP/1.1 ",),
        (b"GET api.test/ HTTP/1.1",),
        (b"GET http://api..test/ HTTP/1.1",),
        (b"GET http://api.test:0/ HTTP/1.1",),
        (b"GET http://api.test:65536/ HTTP/1.1",),
        (b"GET http://[api.test]/ HTTP/1.1",),
        (b"GET http://api.test?a HTTP/1.1",),
        (b"GET http://a@api.test/ HTTP/1.1",),
        (b"GET / HTTP/1.1",),
        (b"CONNECT api.test HTTP/1.1",),
        (b"CONNECT api.test:443/ HTTP/1.1",),
        (LINE, b" folded: at once"),
        (LINE, b"no colon"),
        (LINE, b": no name"),
        (LINE, HOST, b"X-A : b"),
        (LINE, HOST, b"X\xe9: a"),
        (LINE, HOST, b"bad line 123:ABC"),
        (LINE, HOST, b"Content-Length : 5"),
        (LINE, HOST, b"Content-Length: 1", b"Content-Length: 1"),
        (LINE, HOST, b"Content-Length: +1"),
        (LINE, HOST, b"Content-Length: 01"),
        (LINE, HOST, b"Content-Length: 1,1"),
        (LINE, HOST, b"Content-Length: "),
        (LINE, HOST, b"Content-Length: 9999999999999999999"),
        (LINE, HOST, b"Content-Length: 1", b"Transfer-Encoding: chunked"),
        (LINE, HOST, b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (LINE, HOST, b"Transfer-Encoding: gzip, chunked"),
        (LINE, HOST, b"Transfer-Encoding: identity"),
        (LINE, HOST, b"Transfer-Encoding: \x0bchunked"),
        (LINE.replace(b"1.1", b"1.0"), HOST, b"Transfer-Encoding: chunked"),
    ],
)
def test_what_nobody_can_frame_is_no_request(lines):
    with pytest.raises(Broken) as told:
        read(*lines)
    assert told.value.status == 400


@pytest.mark.parametrize("version", [b"0.9", b"1.2", b"2.0", b"9.9"])
def test_another_version_is_told_so(version):
    with pytest.raises(Broken) as told:
        read(LINE.replace(b"1.1", version), HOST)
    assert told.value.status == 505


@pytest.mark.parametrize(
    "field",
    [b"X-A: a\x00b", b"X-A: a\rb", b"X-A: a\nb", b"X-A: a\r\n b"],
)
def test_what_can_be_framed_is_refused_in_words(field):
    asked = read(LINE, HOST, field, b"Proxy-Authorization: Basic " + WHO)
    assert asked.credentials is not None
    assert isinstance(head.read(asked.head), head.Fault)


def test_two_credentials_are_nobodys():
    asked = read(LINE, HOST, *[b"Proxy-Authorization: Basic " + WHO] * 2)
    assert asked.credentials is None
    assert asked.fault is not None


def test_who_wants_no_other_answer():
    assert not read(LINE, HOST).is_close
    assert read(LINE, HOST, b"Connection: keep-alive, Close").is_close
    assert read(LINE.replace(b"1.1", b"1.0"), HOST).is_close


def test_the_first_bytes_tell_what_is_no_request():
    for start in (b"\x16\x03\x01", b"SSH-2.0-x\r\n", b"\0", b"G@T ", b"X" * 40):
        assert is_no_request(start), start
    for start in (b"", b"G", b"GET", b"GET ", b"PRI * "):
        assert not is_no_request(start), start


def test_a_bare_feed_is_found():
    assert has_bare_feed(b"GET / HTTP/1.1\nHost: a\r\n")
    assert not has_bare_feed(b"GET / HTTP/1.1\r\nHost: a\r\n")


@pytest.mark.parametrize("looked_bytes", [0, 4, 5])
def test_where_a_line_ends_is_known_from_what_was_looked_at_before(looked_bytes):
    assert not has_bare_feed(b"GET \r\n", looked_bytes)
    assert has_bare_feed(b"GET \r\n\n", looked_bytes)
    assert has_bare_feed(b"GET /\n", looked_bytes)
