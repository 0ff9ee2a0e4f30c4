"""What the record keeps of a call is what `decide` needs to judge it again."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from ledger import seen
from ledger.connection import open_reader
from ledger.queries import Row, rows
from policies.call import Dialect, Facts, Identity, ToolCall, Traits, Worth
from policies.conditions import Condition
from policies.decide import decide
from policies.policy import Grant, Holder, Tool
from policies.verdict import Reason
from tests.ledger.world import R1, World

CHILD = Identity(
    "r3",
    "acme",
    ("r2", "r1", "r0"),
    agent="biller",
    release="rel",
    tools=("pay", "mail"),
    read_only=True,
    budgets=(("r3", 5_000_000), ("r0", 1)),
)
ARGUMENTS = (
    ("amount", (5000, Decimal("12.50"), 2**70)),
    ("note", ("hello", "café", True, None)),
)


def stored(world: World, name: str) -> Row:
    reader = open_reader(world.data)
    try:
        (row,) = rows(reader, "SELECT * FROM event WHERE call_id = ?", (name,))
        return row
    finally:
        reader.close()


def recorded(world: World, identity: Identity = R1, **call: Any) -> tuple[ToolCall, seen.Seen]:
    ask = world.ask("a", claimant=identity)
    told = {"method": "POST", **call}
    ask = replace(ask, call=replace(ask.call, **told))
    world.decided(ask)
    return ask.call, seen.recalled(stored(world, "a"))


def test_what_the_detectors_go_by_is_not_what_a_call_is_judged_by(world: World) -> None:
    traits = Traits(b"a" * 32, b"r" * 32, b"h" * 32, 7)
    ask = replace(world.read("a"), traits=traits)
    world.decided(ask)
    row = stored(world, "a")
    assert '"mark":7' in row["seen"]
    assert seen.recalled(row) == seen.recalled({**row, "seen": None})


def test_a_plain_read_has_nothing_beside_its_columns(world: World) -> None:
    world.decided(world.read("a"))
    assert stored(world, "a")["seen"] is None


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"arguments": ARGUMENTS, "unread": (("items[].price", "it stands twice"),)},
        {"dialect": Dialect.MCP, "operations": 3, "own": True},
        {"fault": Reason.BODY_TOO_LARGE},
        {"streamed": True},
        {"worth": Worth(10, 20, 30, "gpt-9", priced=False)},
    ],
    ids=lambda call: ",".join(call) or "plain",
)
def test_a_call_is_recalled_as_it_was_judged(world: World, call: dict[str, Any]) -> None:
    judged, told = recorded(world, **call)
    assert told.call == judged
    assert told.identity == R1
    assert not told.lost


def test_who_called_is_recalled_with_what_the_token_allowed(world: World) -> None:
    _, told = recorded(world, CHILD)
    assert told.identity == CHILD


@pytest.mark.parametrize("ancestors", [(), ("r0",), ("r2", "r0"), ("r2", "r1", "r0")])
def test_ancestors_are_recalled_from_columns_or_whole(
    world: World, ancestors: tuple[str, ...]
) -> None:
    _, told = recorded(world, replace(R1, run="r3", ancestors=ancestors))
    assert told.identity.ancestors == ancestors


def test_that_a_key_was_sent_is_known_and_the_key_is_not(world: World) -> None:
    _, told = recorded(world, key="order-4711-secret")
    assert told.call.key is not None
    assert "order-4711" not in str(stored(world, "a"))


@pytest.mark.parametrize("text", ["sk_live_" + "4" * 24, "x" * 3000])
def test_what_is_masked_or_too_long_is_told_as_lost(world: World, text: str) -> None:
    _, told = recorded(world, arguments=(("card", (text,)), ("amount", (5,))))
    assert told.lost == {"card"}
    assert text not in stored(world, "a")["seen"]


@pytest.mark.parametrize("amount", [5000, 5001])
def test_the_verdict_on_what_is_recalled_is_the_verdict_that_was_given(
    world: World, amount: int
) -> None:
    most = Condition("amount", at_most=Decimal(5000))
    pay = Tool("pay", where=(most,), reads=("amount",))
    holder = Holder((Grant("pay", frozenset({"POST"}), (most,)),))
    world.policy = replace(world.policy, tools={"pay": pay}, agents={"biller": holder})
    ask = world.ask("a")
    ask = replace(ask, call=replace(ask.call, method="POST", arguments=(("amount", (amount,)),)))
    given = world.decided(ask).verdict
    told = seen.recalled(stored(world, "a"))
    again = decide(world.policy, told.call, Facts(world.now_us, told.identity))
    assert (again.action, again.reason, again.rule) == (given.action, given.reason, given.rule)
    assert (given.reason is Reason.ARGUMENT_REFUSED) is (amount > 5000)


def test_arguments_are_told_exactly_and_only_whole_ones(world: World) -> None:
    many = Decimal("12345678901234567890.123456789")
    recorded(
        world,
        arguments=(("amount", (many, 2**70, "5")), ("note", ("x" * 3_000,)), ("none", ())),
    )
    statement = "SELECT json_extract(seen, '$.arguments') FROM event WHERE call_id = 'a'"
    ((text,),) = world.rows(statement)
    assert seen.arguments(text) == {"amount": (many, 2**70, "5"), "none": ()}
