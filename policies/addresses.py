"""Which IP addresses are never destinations: the table of blocks, and the look through tunnels.

Pure: nothing here resolves a name or opens a socket; `proxy/dial.py` asks about every address that
a name resolved to. The table is the IANA IPv4 and IPv6 special-purpose registries (RFC 6890 and
8190, with the later entries), multicast, and the metadata addresses of clouds.
`ipaddress.is_global` is no substitute: it calls dozens of these addresses global.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Block:
    """One refused block. `source` is the RFC that reserves it, or the vendor that uses it.

    `alone` marks an address that hands out credentials: only a network of exactly this one
    address opens it, never a wider one that happens to hold it.
    """

    network: IPNetwork
    name: str
    source: str
    alone: bool = False


_REGISTRY = (
    # IPv4: https://www.iana.org/assignments/iana-ipv4-special-registry
    ("0.0.0.0/8", "this network", "RFC 791"),
    ("0.0.0.0/32", "unspecified", "RFC 1122"),
    ("10.0.0.0/8", "private", "RFC 1918"),
    ("100.64.0.0/10", "shared address space", "RFC 6598"),
    ("127.0.0.0/8", "loopback", "RFC 1122"),
    ("169.254.0.0/16", "link-local", "RFC 3927"),
    ("172.16.0.0/12", "private", "RFC 1918"),
    ("192.0.0.0/24", "protocol assignments", "RFC 6890"),
    ("192.0.0.0/29", "IPv4 service continuity", "RFC 7335"),
    ("192.0.0.8/32", "IPv4 dummy address", "RFC 7600"),
    ("192.0.0.9/32", "port control anycast", "RFC 7723"),
    ("192.0.0.10/32", "TURN anycast", "RFC 8155"),
    ("192.0.0.170/31", "NAT64 discovery", "RFC 8880"),
    ("192.0.2.0/24", "documentation", "RFC 5737"),
    ("192.31.196.0/24", "AS112", "RFC 7535"),
    ("192.52.193.0/24", "multicast tunnel relay", "RFC 7450"),
    ("192.88.99.0/24", "6to4 relay", "RFC 7526"),
    ("192.88.99.2/32", "6a44 relay", "RFC 6751"),
    ("192.168.0.0/16", "private", "RFC 1918"),
    ("192.175.48.0/24", "AS112", "RFC 7534"),
    ("198.18.0.0/15", "benchmarking", "RFC 2544"),
    ("198.51.100.0/24", "documentation", "RFC 5737"),
    ("203.0.113.0/24", "documentation", "RFC 5737"),
    ("224.0.0.0/4", "multicast", "RFC 5771"),
    ("240.0.0.0/4", "reserved", "RFC 1112"),
    ("255.255.255.255/32", "broadcast", "RFC 8190"),
    # IPv6: https://www.iana.org/assignments/iana-ipv6-special-registry
    ("::/128", "unspecified", "RFC 4291"),
    ("::1/128", "loopback", "RFC 4291"),
    ("::/96", "IPv4-compatible", "RFC 4291"),
    ("::ffff:0:0/96", "IPv4-mapped", "RFC 4291"),
    ("::ffff:0:0:0/96", "IPv4-translated", "RFC 2765"),
    ("64:ff9b::/96", "NAT64", "RFC 6052"),
    ("64:ff9b:1::/48", "local-use NAT64", "RFC 8215"),
    ("100::/64", "discard-only", "RFC 6666"),
    ("100:0:0:1::/64", "dummy prefix", "RFC 9780"),
    ("2001::/23", "protocol assignments", "RFC 2928"),
    ("2001::/32", "Teredo", "RFC 4380"),
    ("2001:1::1/128", "port control anycast", "RFC 7723"),
    ("2001:1::2/128", "TURN anycast", "RFC 8155"),
    ("2001:1::3/128", "service registration anycast", "RFC 9665"),
    ("2001:2::/48", "benchmarking", "RFC 5180"),
    ("2001:3::/32", "multicast tunnel relay", "RFC 7450"),
    ("2001:4:112::/48", "AS112", "RFC 7535"),
    ("2001:10::/28", "ORCHID", "RFC 4843"),
    ("2001:20::/28", "ORCHIDv2", "RFC 7343"),
    ("2001:30::/28", "drone remote ID", "RFC 9374"),
    ("2001:db8::/32", "documentation", "RFC 3849"),
    ("2002::/16", "6to4", "RFC 3056"),
    ("2620:4f:8000::/48", "AS112", "RFC 7534"),
    ("3fff::/20", "documentation", "RFC 9637"),
    ("5f00::/16", "segment routing", "RFC 9602"),
    ("fc00::/7", "unique local", "RFC 4193"),
    ("fe80::/10", "link-local", "RFC 4291"),
    ("fec0::/10", "site-local", "RFC 3879"),
    ("ff00::/8", "multicast", "RFC 4291"),
)

_METADATA = (
    ("169.254.169.254", "AWS, Azure, Google, Oracle, OpenStack and others"),
    ("169.254.170.2", "AWS container credentials"),
    ("169.254.170.23", "AWS pod identity"),
    ("169.254.0.23", "Tencent"),
    ("169.254.42.42", "Scaleway"),
    ("168.63.129.16", "Azure"),
    ("100.100.100.200", "Alibaba"),
    ("192.0.0.192", "Oracle Classic"),
    ("fd00:ec2::254", "AWS"),
    ("fd00:ec2::23", "AWS pod identity"),
    ("fd20:ce::254", "Google"),
    ("fd00:c1::a9fe:a9fe", "Oracle"),
    ("fd00:42::42", "Scaleway"),
    ("fd00:a9fe:a9fe::1", "Akamai"),
    ("fd00:100::100:200", "Alibaba"),
    ("fe80::a9fe:a9fe", "OpenStack"),
)

BLOCKS = (
    *(Block(ip_network(network), name, source) for network, name, source in _REGISTRY),
    *(Block(ip_network(address), "cloud metadata", who, alone=True) for address, who in _METADATA),
)

# Two blocks that are no prefix of their own: a form of the last 64 bits under any prefix, and
# whatever is left outside 2000::/3, the only space from which IANA allocates IPv6 unicast.
ISATAP = Block(IPv6Network("::/0"), "ISATAP", "RFC 5214")
UNALLOCATED = Block(IPv6Network("::/0"), "unallocated", "RFC 4291")

_PrefixTable = tuple[tuple[int, dict[int, Block]], ...]


def _prefix_table(blocks: Iterable[Block]) -> _PrefixTable:
    """Blocks by prefix under the shift that leaves the prefix, longest prefix first."""
    by_shift: dict[int, dict[int, Block]] = {}
    for block in blocks:
        network = block.network
        shift = network.max_prefixlen - network.prefixlen
        by_shift.setdefault(shift, {})[int(network.network_address) >> shift] = block
    return tuple(sorted(by_shift.items()))


_IPV4 = _prefix_table(block for block in BLOCKS if block.network.version == 4)
_IPV6 = _prefix_table(block for block in BLOCKS if block.network.version == 6)


def refused_block(address: IPAddress, allow: Sequence[IPNetwork] = ()) -> Block | None:
    """The block because of which this address may not be dialed; None when it may.

    Only globally routable unicast passes. An address that carries others inside (IPv4-mapped,
    NAT64, a tunnel) is judged by itself and by each of them, the carried ones first because they
    say where the packet ends. `allow` opens what it covers: for a carrier it has to cover the
    address as dialed, and each carried address that is itself in a refused block. A form of local
    NAT64 with a prefix below 96 can be read in several ways, and has to be allowed in all of them.
    """
    for face in (*carried_addresses(address), address):
        block = _block_of(face)
        if block is not None and not _is_opened(face, block, allow):
            return block
    return None


def carried_addresses(address: IPAddress) -> tuple[IPv4Address, ...]:
    """Every IPv4 address that an IPv6 address carries, in any embedding that a host can know.

    A network's own NAT64 prefix (RFC 6052, section 2.2) cannot be told from plain unicast.
    """
    if isinstance(address, IPv4Address):
        return ()
    bits = int(address)
    block = _block_of(address)
    reader = _CARRIERS.get(block.network) if block else None
    carried = [] if reader is None else list(reader(bits))
    if _is_isatap(bits):
        carried.append(bits)
    return tuple(IPv4Address(value & 0xFFFF_FFFF) for value in carried)


def _block_of(address: IPAddress) -> Block | None:
    """The narrowest block that holds this very address."""
    bits = int(address)
    for shift, blocks in _IPV4 if address.version == 4 else _IPV6:
        if block := blocks.get(bits >> shift):
            return block
    if address.version == 4:
        return None
    if _is_isatap(bits):
        return ISATAP
    return None if bits >> 125 == 0b001 else UNALLOCATED


def _is_opened(address: IPAddress, block: Block, allow: Sequence[IPNetwork]) -> bool:
    return any(
        address in network and (not block.alone or network.prefixlen == network.max_prefixlen)
        for network in allow
    )


def _is_isatap(bits: int) -> bool:
    """Interface identifier 0000:5efe:a.b.c.d, its u and g bits either way (RFC 5214, 6.1)."""
    return (bits >> 32) & 0xFCFF_FFFF == 0x0000_5EFE


# Each reader yields integers whose low 32 bits are a carried IPv4 address.


def _last_32_bits(bits: int) -> Iterator[int]:
    yield bits


def _after_2002(bits: int) -> Iterator[int]:
    yield bits >> 80


def _server_and_client(bits: int) -> Iterator[int]:
    """Teredo keeps the server as it is and the client inverted (RFC 4380, section 4)."""
    yield bits >> 64
    yield ~bits


def _any_prefix_length(bits: int) -> Iterator[int]:
    """The /96 form, and the /48, /56 and /64 forms, which step over bits 64 to 71.

    The shorter forms end in zeros (RFC 6052, section 2.2); others are no reading of this address.
    """
    yield bits
    without_u_octet = (bits >> 64) << 56 | bits & (1 << 56) - 1
    for suffix_bits in (40, 32, 24):
        if without_u_octet & (1 << suffix_bits) - 1 == 0:
            yield without_u_octet >> suffix_bits


_CARRIERS: dict[IPNetwork, Callable[[int], Iterator[int]]] = {
    IPv6Network("::/96"): _last_32_bits,
    IPv6Network("::ffff:0:0/96"): _last_32_bits,
    IPv6Network("::ffff:0:0:0/96"): _last_32_bits,
    IPv6Network("64:ff9b::/96"): _last_32_bits,
    IPv6Network("64:ff9b:1::/48"): _any_prefix_length,
    IPv6Network("2001::/32"): _server_and_client,
    IPv6Network("2002::/16"): _after_2002,
}
