"""The newest keys in few bytes: what is remembered is what a plain ordered mapping remembers."""

import random
from collections import OrderedDict

import pytest

from policies.detectors.newest import KEY_BYTES, Newest, packed

# Keys that are found across two others, where they stand side by side.
ALIKE = [bytes([byte]) * KEY_BYTES for byte in (0, 1)] + [
    bytes([0] * shift + [1] * (KEY_BYTES - shift)) for shift in range(1, KEY_BYTES)
]


def model(known: OrderedDict[bytes, bytes], key: bytes, value: bytes, size: int) -> bytes | None:
    before = known.pop(key, None)
    known[key] = value
    if len(known) > size:
        known.popitem(last=False)
    return before


@pytest.mark.parametrize("value_bytes", [0, 8, 16])
@pytest.mark.parametrize("keys", [ALIKE, [random.Random(1).randbytes(8) for _ in range(40)]])
def test_it_remembers_what_an_ordered_mapping_does(keys: list[bytes], value_bytes: int) -> None:
    dice, known, newest = random.Random(2), OrderedDict[bytes, bytes](), Newest(6, value_bytes)
    for _ in range(3_000):
        key, value = dice.choice(keys), dice.choice((b"\0", b"\1")) * value_bytes
        assert newest.put(key, value) == model(known, key, value, 6)
        assert len(newest) == len(known)


def test_keys_and_values_of_any_length_are_told_apart() -> None:
    newest = Newest(10, 8)
    keys: list[bytes | str] = ["", "api.example", "api.exampl", "\udce9", b"x" * 32, b"x" * 33]
    for number, key in enumerate(keys):
        assert newest.put(key, b"%d" % number) is None
    assert newest.put("api.example", b"1") == packed(b"1", 8) != packed(b"2", 8)


def test_of_a_hash_of_the_record_a_part_is_kept() -> None:
    one, other = bytes.fromhex("0011223344556677"), bytes.fromhex("ffff223344556678")
    assert packed(one, KEY_BYTES) == one[-KEY_BYTES:]
    newest = Newest(10, 4)
    assert newest.put(one, one) is None
    assert newest.put(other, other) is None
    assert newest.put(one, other) == one[-4:]
    assert newest.put(one, one) == other[-4:]
