"""`value:` of a tool: what is read for it, what it comes to, and what is wrong with one."""

from decimal import Decimal
from fractions import Fraction

import pytest

from policies.amounts import MOVED_MAX, ToolValue
from policies.call import Argument, Request
from policies.load import PolicyError, load
from policies.match import identify

TOOLS = """version: 1
tools:
  pay: {match: {host: pay.example, method: POST, path: /v1/charges}, REST}
"""


def value(rest: str) -> ToolValue:
    found = load(TOOLS.replace("REST", rest)).tools["pay"].value
    assert found is not None
    return found


def test_the_amount_and_its_currency_are_read_from_the_request_or_are_always_the_same() -> None:
    assert value("value: {from: request.amount, scale: 0.01, currency: request.currency}") == (
        ToolValue("amount", Decimal("0.01"), "", "currency")
    )
    assert value("value: {from: request.total, currency: usd}") == (
        ToolValue("total", Decimal(1), "USD")
    )


def test_what_it_names_is_kept_with_each_call() -> None:
    policy = load(
        TOOLS.replace(
            "REST",
            "where: {amount: {at_least: 1}}, "
            "value: {from: request.amount, currency: request.query.currency}",
        )
    )
    assert policy.tools["pay"].reads == ("amount", "query.currency")
    head = (("content-type", "application/x-www-form-urlencoded"),)
    target = "/v1/charges?currency=eur"
    call = identify(
        policy,
        Request("POST", "https", "pay.example", 443, target, head, body=b"amount=4900"),
    )
    tool = policy.tools["pay"].value
    assert tool is not None
    assert tool.of(dict(call.arguments)) == ("EUR", Fraction(4900))


Read = tuple[Argument, ...]


@pytest.mark.parametrize(
    "amount, currency, moved",
    [
        ((4999,), ("eur",), ("EUR", Fraction(4999, 100))),
        ((Decimal("0.1"), Decimal("0.2")), ("eur", "EUR"), ("EUR", Fraction(3, 1000))),
        (("12.5",), ("JPY",), ("JPY", Fraction(1, 8))),
        ((0,), ("usd",), ("USD", Fraction(0))),
        ((), ("usd",), ("USD", None)),
        (("1e3",), ("usd",), ("USD", None)),
        ((-1,), ("usd",), ("USD", None)),
        ((True,), ("usd",), ("USD", None)),
        ((5, None), ("usd",), ("USD", None)),
        ((MOVED_MAX * 100 + 1,), ("usd",), ("USD", None)),
        ((Decimal("1e-30"),), ("usd",), ("USD", None)),
        ((Decimal("1e999"),), ("usd",), ("USD", None)),
        ((5,), (), ("", None)),
        ((5,), ("usd", "eur"), ("", None)),
        ((5,), (7,), ("", None)),
        ((5,), ("\x1b[2J",), ("", None)),
    ],
)
def test_an_amount_that_is_not_plain_is_none(
    amount: Read, currency: Read, moved: tuple[str, Fraction | None]
) -> None:
    tool = ToolValue("amount", Decimal("0.01"), "", "currency")
    assert tool.of({"amount": amount, "currency": currency}) == moved


def test_what_is_not_there_is_no_amount() -> None:
    assert ToolValue("amount", currency="USD").of({}) == ("USD", None)


@pytest.mark.parametrize(
    "rest, tells",
    [
        ("value: {from: request.amount}", "'currency'"),
        ("value: {currency: usd}", "'from'"),
        ("value: {from: response.amount, currency: usd}", "must be request.FIELD"),
        ("value: {from: amount, currency: usd}", "must be request.FIELD"),
        ("value: {from: request.a..b, currency: usd}", "must be names with dots"),
        ("value: {from: request.a, currency: US$}", "must be a currency such as usd"),
        ("value: {from: request.a, currency: response.b}", "must be a currency such as usd"),
        ("value: {from: request.a, scale: 0, currency: usd}", "must be more than 0"),
        ("value: {from: request.a, scale: -1, currency: usd}", "not negative"),
        ("stream: true, value: {from: request.a, currency: usd}", "its body is not read"),
    ],
)
def test_a_mistake_is_told(rest: str, tells: str) -> None:
    with pytest.raises(PolicyError) as told:
        load(TOOLS.replace("REST", rest))
    assert tells in str(told.value)
