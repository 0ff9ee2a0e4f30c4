"""Dollars as people write them become whole micro-dollars, or a sentence that says why not."""

from decimal import Decimal

import pytest
from pydantic import BaseModel, ValidationError

from policies.ceilings import usd
from proxy.money import SignedUsd, Usd, microusd


@pytest.mark.parametrize(
    "amount, expected",
    [
        ("5", 5_000_000),
        ("0.25", 250_000),
        (" 1.50 ", 1_500_000),
        ("0.000001", 1),
        ("1e2", 100_000_000),
        ("0", 0),
        (0.1, 100_000),
        (3, 3_000_000),
        (Decimal("0.70"), 700_000),
        ("1000000000", 10**15),
    ],
)
def test_dollars_are_whole_micro_dollars(amount: str | float | Decimal, expected: int) -> None:
    assert microusd(amount) == expected
    assert microusd(usd(expected)) == expected


@pytest.mark.parametrize(
    "amount, why",
    [
        ("", "no amount"),
        ("five", "no amount"),
        ("nan", "no amount"),
        ("inf", "no amount"),
        ("$5", "no amount"),
        ("1,5", "no amount"),
        (True, "no amount"),
        ("-1", "less than nothing"),
        ("0.0000001", "more than 6 decimals"),
        ("1000000000.01", "more than 1000000000 dollars"),
        ("1e999999999", "no amount"),
        ("1e99", "more than 1000000000 dollars"),
        ("1e-99", "more than 6 decimals"),
        ("٣", "no amount"),
        ("9" * 400, "no amount"),
    ],
)
def test_what_is_no_amount_says_so(amount: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        microusd(amount)


def test_a_correction_may_be_less_than_nothing() -> None:
    assert microusd("-0.5", signed=True) == -500_000


class Body(BaseModel):
    least: Usd | None = None
    signed: SignedUsd = 0


@pytest.mark.parametrize("body", ['{"least": 0.1}', '{"least": "0.10"}'])
def test_a_body_holds_numbers_or_text(body: str) -> None:
    assert Body.model_validate_json(body).least == 100_000


@pytest.mark.parametrize(
    "body", ['{"least": -1}', '{"least": [1]}', '{"least": true}', '{"signed": {}}']
)
def test_a_body_with_no_amount_is_a_mistake(body: str) -> None:
    with pytest.raises(ValidationError):
        Body.model_validate_json(body)
