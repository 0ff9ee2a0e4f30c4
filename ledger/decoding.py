"""Bodies as they were before their content codings, to a bounded length. Pure."""

import io
import zlib
from typing import NamedTuple

import brotli
import zstandard

DECODED_BYTES_MAX = 1024 * 1024  # of one body; a bomb ends here
CODINGS_MAX = 3
ZSTD_WINDOW_BYTES_MAX = 8 * 1024 * 1024  # RFC 9659, section 3

_ERRORS = (zlib.error, brotli.error, zstandard.ZstdError)


class Decoded(NamedTuple):
    body: bytes
    is_cut: bool


def decoded(body: bytes, codings: str, bytes_max: int = DECODED_BYTES_MAX) -> Decoded | None:
    """`codings` is the value of Content-Encoding. None where one is unknown or the bytes are not
    in it. `is_cut`: there would have been more, or the bytes ended too early."""
    named = [name.strip().lower() for name in codings.split(",")]
    named = [name for name in named if name not in {"", "identity"}]
    if len(named) > CODINGS_MAX:
        return None
    is_cut = len(body) > bytes_max and not named
    if not named:
        return Decoded(body[:bytes_max], is_cut)
    for name in reversed(named):
        undo = _CODINGS.get(name)
        if undo is None:
            return None
        try:
            body, was_cut = undo(body, bytes_max)
        except _ERRORS:
            return None
        is_cut = is_cut or was_cut
    return Decoded(body, is_cut)


def _zlib(body: bytes, bytes_max: int) -> Decoded:
    """gzip, also of several members, and deflate, also without the head that it should have."""
    out = bytearray()
    while body:
        undo = zlib.decompressobj(wbits=47)  # gzip or zlib, by their heads
        try:
            out += undo.decompress(body, bytes_max - len(out) + 1)
        except zlib.error:
            if out:
                break  # what follows the last member is nothing
            undo = zlib.decompressobj(wbits=-15)
            out += undo.decompress(body, bytes_max + 1)
        if len(out) > bytes_max or not undo.eof:
            return Decoded(bytes(out[:bytes_max]), True)
        body = undo.unused_data
    return Decoded(bytes(out), False)


def _brotli(body: bytes, bytes_max: int) -> Decoded:
    undo = brotli.Decompressor()
    out = bytearray(undo.process(body, output_buffer_limit=bytes_max + 1))
    while len(out) <= bytes_max and not undo.can_accept_more_data():
        more = undo.process(b"", output_buffer_limit=bytes_max + 1 - len(out))
        if not more:
            break
        out += more
    return Decoded(bytes(out[:bytes_max]), len(out) > bytes_max or not undo.is_finished())


def _zstd(body: bytes, bytes_max: int) -> Decoded:
    undo = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
    out = bytearray()
    with undo.stream_reader(io.BytesIO(body), read_across_frames=True) as reader:
        while len(out) <= bytes_max:
            more = reader.read(min(65_536, bytes_max + 1 - len(out)))
            if not more:
                break
            out += more
    if not out and body:
        return Decoded(b"", True)
    return Decoded(bytes(out[:bytes_max]), len(out) > bytes_max)


_CODINGS = {"gzip": _zlib, "x-gzip": _zlib, "deflate": _zlib, "br": _brotli, "zstd": _zstd}
