"""Dialing: resolve once, vet every address, connect to exactly the vetted ones.

The only place that opens connections to upstreams. What is refused is decided by
`policies/addresses.py`; which tool allows which address by the policy; TLS is the engine's.

    OSError
      NotDialled        refused before a packet left
        AddressRefused  an address that is not public and that the tool does not allow
        OwnListener     an address at which this proxy itself listens

Other failures are plain OSError (TimeoutError, ConnectionRefusedError, socket.gaierror). No message
holds a resolved address, because agents read messages; it is an attribute, or in `__cause__`.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from aiohappyeyeballs import start_connection

from policies.addresses import Block, IPAddress, IPNetwork, carried_addresses, refused_block
from policies.policy import CANARY_HOST

# The wait before the next address is tried beside the current one (RFC 8305, section 5).
NEXT_ADDRESS_DELAY_SECONDS = 0.25

# Lookups under way at once. Enough for a dozen silent names beside the usual ones.
RESOLVER_THREADS = 32

AddrInfo = tuple[int, int, int, str, tuple[Any, ...]]
Resolver = Callable[[str, int], Awaitable[Sequence[AddrInfo]]]
"""Host and port to answers in the form of `socket.getaddrinfo`; raises OSError or ValueError."""


class NotDialled(OSError):
    """Refused before anything was sent. `address` is for the log, never for the agent."""

    def __init__(self, message: str, host: str, address: str) -> None:
        super().__init__(message)
        self.host = host
        self.address = address


class AddressRefused(NotDialled):
    """The name leads, with one address at least, into a block that the tool does not allow."""

    def __init__(self, host: str, address: str, block: Block) -> None:
        super().__init__(
            f"{host} leads to an address that is no public destination ({block.name}); "
            "if the tool is meant to reach it, list the address in the tool's allow_addresses",
            host,
            address,
        )
        self.block = block


class OwnListener(NotDialled):
    """The name leads to a port of this proxy; no setting allows that."""

    def __init__(self, host: str, port: int, address: str) -> None:
        super().__init__(
            f"{host}:{port} is pullcord itself, which is never a destination", host, address
        )
        self.port = port


def system_resolver() -> Resolver:
    """The system's own resolver, on threads of its own.

    A lookup cannot be cancelled: a name whose servers stay silent holds its thread long after the
    call gave up. Held threads may delay other lookups, but no other work of the program.
    """
    threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolve")

    async def resolve(host: str, port: int) -> Sequence[AddrInfo]:
        if host.lower() == "localhost.":  # asked of no name server (RFC 6761, section 6.3)
            host = "localhost"
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        return await asyncio.get_running_loop().run_in_executor(threads, look_up)

    return resolve


@dataclass(frozen=True, slots=True)
class Dialer:
    """Connects to upstreams. `own_ports` are all TCP ports at which this program listens.

    `connect_timeout_seconds` covers resolving and connecting together: a name that resolves
    slowly leaves less time to connect.
    """

    own_ports: frozenset[int]
    connect_timeout_seconds: float = 5.0
    resolve: Resolver = field(default_factory=system_resolver)

    async def dial(self, host: str, port: int, allow: Sequence[IPNetwork] = ()) -> socket.socket:
        """A connected non-blocking TCP socket. `host` is a name or an address without brackets.

        `allow` are the tool's `allow_addresses`. Raises AddressRefused when one of the addresses
        is refused, also if others are not; OwnListener; OSError when nothing answers.
        """
        try:
            async with asyncio.timeout(self.connect_timeout_seconds):
                targets = await self._vetted(host, port, allow)
                return await start_connection(
                    targets, happy_eyeballs_delay=NEXT_ADDRESS_DELAY_SECONDS
                )
        except NotDialled:
            raise
        except TimeoutError as error:
            limit = f"{self.connect_timeout_seconds:g} seconds"
            raise TimeoutError(f"{host}:{port} did not answer within {limit}") from error
        except socket.gaierror as error:
            why = f"{host} does not resolve: {error.strerror}"
            raise socket.gaierror(error.errno, why) from error
        except (OSError, RuntimeError, OverflowError) as error:
            # uvloop reports some failures as RuntimeError; OverflowError is a port past 65535.
            raise _without_address(host, port, error) from error

    async def open_connection(
        self, host: str, port: int, allow: Sequence[IPNetwork] = ()
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """`dial`, then asyncio streams over the socket, with TCP_NODELAY."""
        connected = await self.dial(host, port, allow)
        try:
            return await asyncio.open_connection(sock=connected)
        except BaseException:
            connected.close()
            raise

    async def _vetted(self, host: str, port: int, allow: Sequence[IPNetwork]) -> list[AddrInfo]:
        if host.rstrip(".").lower() == CANARY_HOST:  # no resolver is asked for it
            return [self._vet(host, ("127.0.0.1", port), allow)]
        try:
            answers = await self.resolve(host, port)
        except ValueError as error:  # a label that IDNA cannot encode, or a null character
            raise socket.gaierror(socket.EAI_NONAME, "not a host name") from error
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        return [self._vet(host, answer[4], allow) for answer in answers]

    def _vet(self, host: str, sockaddr: tuple[Any, ...], allow: Sequence[IPNetwork]) -> AddrInfo:
        """The answer rebuilt from the address that was checked, so that nothing else is dialed."""
        try:
            address = ip_address(sockaddr[0])
        except ValueError as error:
            raise NotDialled(
                f"{host} resolves to what is no IP address; mend the resolver of this machine",
                host,
                str(sockaddr[0]),
            ) from error
        port, zone = sockaddr[1], sockaddr[3] if len(sockaddr) > 3 else 0
        if port in self.own_ports and any(
            _is_this_host(face, zone) for face in (address, *carried_addresses(address))
        ):
            raise OwnListener(host, port, str(address))
        block = refused_block(address, allow)
        if block is not None:
            raise AddressRefused(host, str(address), block)
        return _addr_info(address, port, zone)


def _addr_info(address: IPAddress, port: int, zone: int) -> AddrInfo:
    # The protocol is named because asyncio sets TCP_NODELAY only on sockets that name it.
    stream = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    if isinstance(address, IPv4Address):
        return (socket.AF_INET, *stream, (str(address), port))
    # The zone stands in its own field: with a zone in the text asyncio would resolve it again.
    bare = str(IPv6Address(int(address)))
    return (socket.AF_INET6, *stream, (bare, port, 0, zone))


def _is_this_host(address: IPAddress, zone: int) -> bool:
    """Whether a connection to this address stays here: only a host's own address can be bound.

    That holds for loopback, for every interface, and for the unspecified address, which Linux and
    macOS deliver to loopback. Anything but the kernel's plain "not mine" counts as ours.
    """
    family, kind, protocol, _, sockaddr = _addr_info(address, 0, zone)
    with socket.socket(family, kind, protocol) as probe:
        try:
            probe.bind(sockaddr)
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def _without_address(host: str, port: int, error: Exception) -> OSError:
    """The same failure in words that hold no resolved address."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None:  # several addresses failed, each in its own way
        return OSError(f"cannot connect to {host}:{port}")
    return OSError(number, f"cannot connect to {host}:{port}: {os.strerror(number)}")
