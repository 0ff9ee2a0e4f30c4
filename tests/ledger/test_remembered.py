"""What is known of a call's secrets: found wherever it stands, and not forgotten for others."""

import pytest

from ledger import remembered
from ledger.remembered import Known, Remembered, times


def free(steps: int) -> None:
    assert steps >= 0


def known(*values: str) -> Known:
    made = Known()
    for value in values:
        made.add(value, f"<{value[:3]}>")
    return made


@pytest.mark.parametrize(
    "values, text, shown",
    [
        (("hunter2!",), "a hunter2! hunter2%21 b", "a <hun> <hun> b"),
        (("secret1", "secret1-and-more"), "secret1-and-more secret1", "<sec> <sec>"),
        (("abc-def", "def-ghi"), "abc-def-ghi.", "<abc>."),  # one mark for both
        (("0123456789abcdef-x", "0123456789abcdef-y"), "0123456789abcdef-y-z", "<012>-z"),
        (("123456789",), "n=123456789 m=1234567890 k=1", "n=<123> m=1234567890 k=1"),
        (("123456789",), "k=0123456789", "k=0123456789"),
        (("redacted",), "redacted", "<red>"),
        (("short", "12345678"), "short 12345678", "short 12345678"),
    ],
)  # fmt: skip
def test_values_are_found(values: tuple[str, ...], text: str, shown: str) -> None:
    assert known(*values).masked(text, free) == shown


def test_steps_are_told() -> None:
    told: list[int] = []
    known("a" * 20, "b" * 20).masked("a" * 10_000, told.append)
    assert sum(told) > 10_000 * 2 // 1_024
    assert times("a" * 40, ["a" * 20], told.append) == 2


def test_a_run_makes_no_other_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "CALLS_MAX", 10)
    calls = Remembered()
    calls.keep("victim", "v1", known("hunter2!"))
    for number in range(50):
        calls.keep("loud", f"l{number}", known("decoy-1"))
    assert len(calls.of("victim", "v1")) > 0
    assert len(calls.of("loud", "l0")) == 0
    assert len(calls.of("loud", "l49")) > 0
    assert len(calls.of("victim", "l49")) == 0
    for number in range(50):
        calls.keep(f"run{number}", "c", known("decoy-1"))
    held = [number for number in range(50) if len(calls.of(f"run{number}", "c"))]
    assert len(held) + len([n for n in range(50) if len(calls.of("loud", f"l{n}"))]) <= 10
    assert 49 in held
