"""Content codings undone: which, how far, and what is told of bytes that are none."""

import gzip
import zlib

import brotli
import pytest
import zstandard

from ledger.decoding import Decoded, decoded

BODY = b"in plain words, " * 200
BARE = zlib.compressobj(wbits=-15)
CODED = {
    "": BODY,
    "identity": BODY,
    "gzip": gzip.compress(BODY),
    "x-gzip": gzip.compress(BODY),
    "GZIP": gzip.compress(BODY[:100]) + gzip.compress(BODY[100:]),
    "deflate": zlib.compress(BODY),
    " deflate ": BARE.compress(BODY) + BARE.flush(),
    "br": brotli.compress(BODY),
    "zstd": zstandard.compress(BODY),
    "zstd, identity": zstandard.compress(BODY[:100]) + zstandard.compress(BODY[100:]),
    "gzip, br": brotli.compress(gzip.compress(BODY)),
}


@pytest.mark.parametrize("codings", CODED)
def test_a_coding_is_undone(codings: str) -> None:
    assert decoded(CODED[codings], codings) == Decoded(BODY, False)


@pytest.mark.parametrize("codings", ["gzip", "deflate", "br"])
def test_of_a_body_that_was_cut_its_beginning_is_read(codings: str) -> None:
    whole = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress}[codings]
    noise = bytes(range(256)) * 8
    told = decoded(whole(noise)[:-20], codings)
    assert told is not None
    assert told.is_cut
    assert noise.startswith(told.body)


@pytest.mark.parametrize("codings", ["", "gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_a_bomb_ends_at_the_limit(codings: str) -> None:
    body = bytes(5_000_000)
    for name in filter(None, codings.split(", ")):
        packs = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress}
        body = packs.get(name, zstandard.compress)(body)
    assert decoded(body, codings, 1_000) == Decoded(bytes(1_000), True)


@pytest.mark.parametrize(
    "body, codings",
    [
        (b"no such thing", "gzip"),
        (b"no such thing", "br"),
        (b"no such thing", "zstd"),
        (BODY, "own"),
        (BODY, "identity, own"),
        (BODY, "gzip, gzip, gzip, gzip"),
    ],
)
def test_what_is_in_no_known_coding_is_told(body: bytes, codings: str) -> None:
    assert decoded(body, codings) is None


def test_a_window_that_needs_much_memory_is_refused() -> None:
    # A frame of one block that asks for a window of 64 MiB (RFC 8878, section 3.1.1.1.2).
    frame = b"\x28\xb5\x2f\xfd" + bytes((0, 0x80)) + b"\x01\x00\x00"
    assert decoded(frame, "zstd") is None
