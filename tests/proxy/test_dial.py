"""Dialing with real sockets on loopback; only the resolver is replaced where a test needs it."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest

from policies.addresses import IPNetwork
from proxy.dial import AddressRefused, AddrInfo, Dialer, NotDialled, OwnListener

NO_PORTS: frozenset[int] = frozenset()
EVERYTHING: list[IPNetwork] = [IPv4Network("0.0.0.0/0"), IPv6Network("::/0")]
LOOPBACK: list[IPNetwork] = [IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")]


class Names:
    """A resolver with given answers; the last one is repeated. It counts how often it is asked."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = answers
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[AddrInfo]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [self.info(text, port) for text in answer]

    @staticmethod
    def info(text: str, port: int) -> AddrInfo:
        # As getaddrinfo without hints answers: no protocol named.
        if ":" in text:
            return (socket.AF_INET6, socket.SOCK_STREAM, 0, "", (text, port, 0, 0))
        return (socket.AF_INET, socket.SOCK_STREAM, 0, "", (text, port))


class Listener:
    """A real listening socket that counts who got through to it."""

    def __init__(self, address: str) -> None:
        self.accepted = 0
        self.address = address
        self.port = 0

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._answer, self.address, 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        writer.write(b"hello")
        writer.close()


async def listening(address: str) -> AsyncIterator[Listener]:
    listener = Listener(address)
    server = await listener.start()
    yield listener
    server.close()
    await server.wait_closed()


@pytest.fixture
async def upstream() -> AsyncIterator[Listener]:
    async for listener in listening("127.0.0.1"):
        yield listener


@pytest.fixture
async def upstream_ipv6() -> AsyncIterator[Listener]:
    async for listener in listening("::1"):
        yield listener


@pytest.fixture(params=["127.0.0.1", "0.0.0.0", "::"])
async def proxy(request: pytest.FixtureRequest) -> AsyncIterator[Listener]:
    """Our own listener, bound to loopback only and to every interface."""
    async for listener in listening(request.param):
        yield listener


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def address_of_an_interface() -> str:
    """This machine's own address towards the world; loopback's third where there is no route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            return "127.0.0.3"
        return str(probe.getsockname()[0])


async def read_hello(dialer: Dialer, host: str, port: int, allow: Sequence[IPNetwork]) -> bytes:
    reader, writer = await dialer.open_connection(host, port, allow)
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


# ---------------------------------------------------------------------------- what gets through


async def test_dial_returns_a_connected_non_blocking_socket(upstream: Listener) -> None:
    with await Dialer(NO_PORTS).dial("127.0.0.1", upstream.port, LOOPBACK) as connected:
        assert connected.getpeername() == ("127.0.0.1", upstream.port)
        assert connected.getblocking() is False


async def test_streams_carry_bytes_without_delay(upstream: Listener) -> None:
    """The resolver names no protocol; without one asyncio leaves Nagle's algorithm on."""
    dialer = Dialer(NO_PORTS, resolve=Names(["127.0.0.1"]))
    reader, writer = await dialer.open_connection("api.example", upstream.port, LOOPBACK)
    connected = writer.get_extra_info("socket")
    assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    assert await reader.read() == b"hello"
    writer.close()
    await writer.wait_closed()


async def test_ipv6_is_dialed(upstream_ipv6: Listener) -> None:
    hello = await read_hello(Dialer(NO_PORTS), "::1", upstream_ipv6.port, LOOPBACK)
    assert hello == b"hello"


async def test_a_zone_id_is_dialed_without_a_second_lookup(
    upstream_ipv6: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def zoned(host: str, port: int) -> Sequence[AddrInfo]:
        # macOS repeats the zone in the text.
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1%1", port, 0, 1))]

    def second_lookup(*_args: object, **_kwargs: object) -> None:
        pytest.fail("looked up again")

    monkeypatch.setattr(socket, "getaddrinfo", second_lookup)
    dialer = Dialer(NO_PORTS, resolve=zoned)
    assert await read_hello(dialer, "zoned.example", upstream_ipv6.port, LOOPBACK) == b"hello"


async def test_the_zone_goes_with_the_address() -> None:
    """Without its zone a link-local address is an invalid argument, not an unreachable host."""

    async def zoned(host: str, port: int) -> Sequence[AddrInfo]:
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", port, 0, 1))]

    with pytest.raises(OSError, match=r"cannot connect to zoned\.example:9") as failed:
        await Dialer(NO_PORTS, resolve=zoned).dial("zoned.example", 9, [ip_network("fe80::/10")])
    assert failed.value.errno != errno.EINVAL


async def test_a_dead_address_does_not_hide_a_live_one(upstream: Listener) -> None:
    dialer = Dialer(NO_PORTS, resolve=Names(["::1", "127.0.0.1"]))
    assert await read_hello(dialer, "dual.example", upstream.port, LOOPBACK) == b"hello"


async def test_the_port_that_is_dialed_is_the_one_checked_against_own_listeners(
    upstream: Listener,
) -> None:
    async def elsewhere(host: str, port: int) -> Sequence[AddrInfo]:
        return [Names.info("127.0.0.1", upstream.port)]

    assert await read_hello(Dialer(NO_PORTS, resolve=elsewhere), "a.example", 443, LOOPBACK)
    own = Dialer(frozenset((upstream.port,)), resolve=elsewhere)
    with pytest.raises(OwnListener):
        await own.dial("a.example", 443, LOOPBACK)


async def test_the_checked_address_is_the_one_dialed(upstream: Listener) -> None:
    """A name that answers differently the second time is asked exactly once."""
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    dialer = Dialer(NO_PORTS, resolve=names)
    allow = [ip_network("127.0.0.1/32")]
    with await dialer.dial("rebind.example", upstream.port, allow) as connected:
        assert connected.getpeername()[0] == "127.0.0.1"
    assert names.asked == 1
    with pytest.raises(AddressRefused):
        await dialer.dial("rebind.example", upstream.port, allow)


# ---------------------------------------------------------------------------- refused addresses


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "::1",
        "::ffff:127.0.0.1",
        # Forms that only the system resolver reads.
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        # Digits and dots that IDNA turns into plain ones.
        "１２７.０.０.１",  # noqa: RUF001 - full-width on purpose
        "127。0。0。1",
    ],
)
async def test_no_spelling_of_loopback_passes(upstream: Listener, host: str) -> None:
    with pytest.raises(AddressRefused) as refused:
        await Dialer(NO_PORTS).dial(host, upstream.port)
    assert refused.value.block.name == "loopback"
    assert upstream.accepted == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "0", "::"])
async def test_the_unspecified_address_is_no_way_to_loopback(upstream: Listener, host: str) -> None:
    with pytest.raises(AddressRefused) as refused:
        await Dialer(NO_PORTS).dial(host, upstream.port, LOOPBACK)
    assert refused.value.block.name == "unspecified"
    assert upstream.accepted == 0


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1", "10.0.0.1"],
        ["10.0.0.1", "127.0.0.1"],
        ["127.0.0.1", "fd00::1"],
        ["127.0.0.1", "fe80::1%lo"],
        ["127.0.0.1", "::ffff:169.254.169.254"],
    ],
    ids=" and ".join,
)
async def test_one_bad_address_refuses_them_all(upstream: Listener, answer: list[str]) -> None:
    dialer = Dialer(NO_PORTS, resolve=Names(answer))
    with pytest.raises(AddressRefused):
        await dialer.dial("mixed.example", upstream.port, LOOPBACK)
    assert upstream.accepted == 0


async def test_a_refusal_names_host_and_block_but_not_the_address() -> None:
    dialer = Dialer(NO_PORTS, resolve=Names(["169.254.169.254"]))
    with pytest.raises(AddressRefused) as refused:
        await dialer.dial("metadata.google.internal", 80)
    said = str(refused.value)
    assert "metadata.google.internal" in said
    assert "cloud metadata" in said
    assert "169.254" not in said
    assert refused.value.host == "metadata.google.internal"
    assert refused.value.address == "169.254.169.254"
    assert isinstance(refused.value, NotDialled)
    assert isinstance(refused.value, OSError)


async def test_an_answer_that_is_no_address_is_not_dialed() -> None:
    dialer = Dialer(NO_PORTS, resolve=Names(["/run/other.sock"]))
    with pytest.raises(NotDialled, match="no IP address"):
        await dialer.dial("odd.example", 80, EVERYTHING)


# ---------------------------------------------------------------------------- our own listeners


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.2",
        "127.1",
        "localhost",
        "0.0.0.0",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:0.0.0.0",
        "64:ff9b::127.0.0.1",
        "an interface",
        "a mapped interface",
    ],
)
async def test_no_address_leads_to_our_own_listener(proxy: Listener, host: str) -> None:
    host = host.replace("an interface", address_of_an_interface())
    host = host.replace("a mapped interface", f"::ffff:{address_of_an_interface()}")
    with pytest.raises(OwnListener) as refused:
        await Dialer(frozenset({proxy.port})).dial(host, proxy.port, EVERYTHING)
    assert refused.value.port == proxy.port
    assert proxy.accepted == 0


async def test_our_listener_is_found_behind_a_name(proxy: Listener) -> None:
    dialer = Dialer(frozenset({proxy.port}), resolve=Names([address_of_an_interface()]))
    with pytest.raises(OwnListener) as refused:
        await dialer.dial("proxy.example", proxy.port, EVERYTHING)
    assert address_of_an_interface() not in str(refused.value)
    assert refused.value.address == address_of_an_interface()


async def test_what_the_kernel_cannot_place_counts_as_ours() -> None:
    """Link-local without a zone is neither ours nor another's until a zone is given."""
    dialer = Dialer(frozenset({8080}), resolve=Names(["fe80::1"]))
    with pytest.raises(OwnListener):
        await dialer.dial("nowhere.example", 8080, EVERYTHING)


async def test_another_port_of_this_host_is_no_listener_of_ours(upstream: Listener) -> None:
    dialer = Dialer(frozenset({upstream.port + 1}))
    assert await read_hello(dialer, "127.0.0.1", upstream.port, LOOPBACK) == b"hello"


async def test_the_same_port_of_another_host_is_no_listener_of_ours() -> None:
    """It gets as far as the table, which refuses documentation addresses."""
    dialer = Dialer(frozenset({8080}), resolve=Names(["203.0.113.7"]))
    with pytest.raises(AddressRefused):
        await dialer.dial("elsewhere.example", 8080)


# ---------------------------------------------------------------------------- failures


async def test_a_resolver_that_never_answers_times_out() -> None:
    async def silent(host: str, port: int) -> Sequence[AddrInfo]:
        return await asyncio.get_running_loop().create_future()

    dialer = Dialer(NO_PORTS, connect_timeout_seconds=0.02, resolve=silent)
    with pytest.raises(TimeoutError, match=r"silent\.example:443 did not answer within 0\.02 sec"):
        await dialer.dial("silent.example", 443)


async def test_an_upstream_that_never_accepts_times_out() -> None:
    """A listener whose queue is full drops what comes, as a dead host would."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        dialer = Dialer(NO_PORTS, connect_timeout_seconds=0.05)
        with pytest.raises(TimeoutError) as failed:
            await dialer.dial("127.1", full.getsockname()[1], LOOPBACK)
    assert "127.0.0.1" not in str(failed.value)


@pytest.mark.parametrize("answer", [["127.0.0.1"], ["127.0.0.1", "::1"]], ids=" and ".join)
async def test_a_refused_connection_says_so_without_the_address(answer: list[str]) -> None:
    dialer = Dialer(NO_PORTS, resolve=Names(answer))
    port = unused_port()
    with pytest.raises(ConnectionRefusedError) as failed:
        await dialer.dial("down.example", port, LOOPBACK)
    assert failed.value.errno == errno.ECONNREFUSED
    assert f"down.example:{port}" in str(failed.value)
    assert "127.0.0.1" not in str(failed.value)
    assert "::1" not in str(failed.value)
    assert not isinstance(failed.value, NotDialled)


async def test_failures_of_several_kinds_are_one_oserror_without_addresses() -> None:
    """Nothing listens on the first; the second, link-local without a zone, has no route."""
    dialer = Dialer(NO_PORTS, resolve=Names(["127.0.0.1", "fe80::1"]))
    with pytest.raises(OSError, match=r"cannot connect to down\.example") as failed:
        await dialer.dial("down.example", unused_port(), EVERYTHING)
    assert "127.0.0.1" not in str(failed.value)
    assert "fe80" not in str(failed.value)


@pytest.mark.parametrize(
    "host", ["", "a..b", "x" * 70 + ".example", "nul\0byte", "[::1]", "127.0.0.1 "]
)
async def test_what_is_no_host_name_fails_as_a_lookup_does(host: str) -> None:
    with pytest.raises(socket.gaierror):
        await Dialer(NO_PORTS).dial(host, 80, EVERYTHING)


async def test_no_answer_at_all_fails_as_a_lookup_does() -> None:
    with pytest.raises(socket.gaierror, match=r"empty\.example does not resolve"):
        await Dialer(NO_PORTS, resolve=Names([])).dial("empty.example", 80)


async def test_a_port_out_of_range_is_an_oserror_too() -> None:
    with pytest.raises(OSError, match=r"cannot connect to 127\.1:70000"):
        await Dialer(NO_PORTS).dial("127.1", 70000, LOOPBACK)
