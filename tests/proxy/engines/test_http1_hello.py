"""What a TLS hello says that its client speaks, by hellos that OpenSSL makes."""

import ssl

import pytest

from proxy.engines.http1_hello import HELLO_BYTES_MAX, HELLO_RECORDS_MAX, offers_http2_alone

OFFERS = [
    ((), False),
    (("http/1.1",), False),
    (("h2",), True),
    (("h2", "http/1.1"), False),
    (("http/1.1", "h2"), False),
    (("acme-tls/1",), False),
    (("h2", "acme-tls/1"), True),
    (("h2c",), False),
    (("h3", "h2"), True),
    (("\x02h2",), False),  # one that only reads like it
]


def hello(offered: tuple[str, ...], name: str = "api.test") -> bytes:
    """The first bytes of a client that offers these."""
    context = ssl.create_default_context()
    if offered:
        context.set_alpn_protocols(list(offered))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    speaking = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        speaking.do_handshake()
    return outgoing.read()


def in_records(data: bytes, size_bytes: int) -> bytes:
    """The same message in records of that size."""
    head, message = data[:3], data[5:]
    parts = [message[at : at + size_bytes] for at in range(0, len(message), size_bytes)]
    return b"".join(head + len(part).to_bytes(2) + part for part in parts)


@pytest.mark.parametrize("offered, is_alone", OFFERS, ids=str)
def test_what_a_client_offers(offered: tuple[str, ...], is_alone: bool) -> None:
    assert offers_http2_alone(hello(offered)) is is_alone


@pytest.mark.parametrize("offered", [("h2",), ("h2", "h3")], ids=str)
def test_a_hello_may_come_in_some_records_but_not_in_many(offered: tuple[str, ...]) -> None:
    whole = hello(offered)
    message_bytes = len(whole) - 5
    most = -(-message_bytes // HELLO_RECORDS_MAX)
    for size_bytes, is_alone in (
        (message_bytes, True),
        (most, True),
        (most // 2, False),
        (1, False),
    ):
        assert offers_http2_alone(in_records(whole, size_bytes)) is is_alone


@pytest.mark.parametrize("offered", [(), ("h2",), ("h2", "http/1.1")], ids=str)
def test_a_part_of_it_decides_nothing_wrong(offered: tuple[str, ...]) -> None:
    whole = hello(offered)
    told = offers_http2_alone(whole)
    for size_bytes in range(len(whole)):
        assert offers_http2_alone(whole[:size_bytes]) in (None, told)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x00\x00\x16",  # a record of nothing
        b"\x17\x03\x03\x00\x02h2",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",  # a server's hello
        b"\x16\x03\x01\x00\x07\x01\x00\x00\x03\x02h2",  # too short for anything
        b"\x16\x03\x01\x40\x00\x01" + bytes(HELLO_BYTES_MAX),
    ],
)
def test_what_is_no_hello_offers_nothing(data: bytes) -> None:
    assert offers_http2_alone(data) is False


def test_every_byte_of_a_hello_may_be_wrong() -> None:
    whole = hello(("h2",))
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 0xFF
        assert offers_http2_alone(bytes(broken)) in (True, False, None)
