"""The table of refused addresses against tests/cases/addresses.yaml, and against itself."""

from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from policies.addresses import BLOCKS, Block, carried_addresses, refused_block

ROWS: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "cases" / "addresses.yaml").read_text()
)


def named(row: dict[str, Any]) -> str:
    return str(row["it"])


def described(block: Block) -> str:
    return f"{block.name} {block.network}"


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_an_address_passes_or_is_refused_by_the_named_block(row: dict[str, Any]) -> None:
    allow = [ip_network(network) for network in row.get("allow", ())]
    block = refused_block(ip_address(row["address"]), allow)
    assert (block.name if block else "pass") == row["expect"]


@pytest.mark.parametrize("block", BLOCKS, ids=described)
def test_a_block_is_refused_from_its_first_address_to_its_last(block: Block) -> None:
    for address in (block.network.network_address, block.network.broadcast_address):
        assert refused_block(address) is not None


@pytest.mark.parametrize("block", BLOCKS, ids=described)
def test_every_block_has_a_row_that_it_decides(block: Block) -> None:
    assert any(
        row["expect"] == block.name and ip_address(row["address"]) in block.network for row in ROWS
    )


def test_no_block_stands_in_the_table_twice() -> None:
    networks = [block.network for block in BLOCKS]
    assert len(networks) == len(set(networks))


def test_every_refused_row_names_a_known_block() -> None:
    known = {block.name for block in BLOCKS} | {"ISATAP", "unallocated", "pass"}
    assert {row["expect"] for row in ROWS} == known


@pytest.mark.parametrize("row", [row for row in ROWS if row.get("is_global")], ids=named)
def test_is_global_alone_would_let_it_through(row: dict[str, Any]) -> None:
    address = ip_address(row["address"])
    assert address.is_global
    assert refused_block(address) is not None


@pytest.mark.parametrize("row", [row for row in ROWS if row["expect"] == "pass"], ids=named)
def test_what_is_not_global_never_passes_unless_allowed(row: dict[str, Any]) -> None:
    assert ip_address(row["address"]).is_global or row.get("allow")


def test_a_refused_block_says_where_it_comes_from() -> None:
    block = refused_block(ip_address("10.0.0.1"))
    assert block == Block(ip_network("10.0.0.0/8"), "private", "RFC 1918")


@pytest.mark.parametrize(
    "address, carried",
    [
        ("8.8.8.8", []),
        ("2606:4700::1111", []),
        ("::", []),
        ("::1", []),
        ("::ffff:1.2.3.4", ["1.2.3.4"]),
        ("::1.2.3.4", ["1.2.3.4"]),
        ("::ffff:0:1.2.3.4", ["1.2.3.4"]),
        ("64:ff9b::1.2.3.4", ["1.2.3.4"]),
        ("64:ff9b:1::1.2.3.4", ["1.2.3.4"]),
        ("2002:102:304::", ["1.2.3.4"]),
        ("2606:4700::5efe:1.2.3.4", ["1.2.3.4"]),
        ("2002:102:304::5efe:5.6.7.8", ["1.2.3.4", "5.6.7.8"]),
        # Teredo: the server as it is, the client inverted.
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", ["65.54.227.120", "192.0.2.45"]),
    ],
)
def test_the_carried_addresses_are_read_out(address: str, carried: list[str]) -> None:
    assert list(carried_addresses(ip_address(address))) == [IPv4Address(text) for text in carried]


@pytest.mark.parametrize(
    "text",
    # RFC 6052, section 2.4: 192.0.2.33 under prefixes of each length, moved under 64:ff9b:1::/48.
    ["64:ff9b:1:c000:2:2100::", "64:ff9b:1:c0:0:221::", "64:ff9b:1:0:c0:2:2100:0"],
)
def test_local_nat64_is_read_with_every_prefix_length(text: str) -> None:
    assert IPv4Address("192.0.2.33") in carried_addresses(ip_address(text))
