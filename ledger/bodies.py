"""The kept bodies of the trace: packed, and named by the SHA-256 of their text. Pure."""

import hashlib
import io

import zstandard

from ledger.decoding import ZSTD_WINDOW_BYTES_MAX

UNPACKED_BYTES_MAX = 256 * 1024 * 1024  # of one text: what is longer, pullcord has not kept

_PIECE_BYTES = 65_536


def is_whole(packed: object, digest: object) -> bool:
    """Whether a body is the text of that digest. In little memory, whatever it unpacks to."""
    if not isinstance(packed, bytes) or not isinstance(digest, bytes):
        return False
    told, length = hashlib.sha256(), 0
    unpack = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
    try:
        with unpack.stream_reader(io.BytesIO(packed)) as reader:
            while piece := reader.read(_PIECE_BYTES):
                length += len(piece)
                if length > UNPACKED_BYTES_MAX:
                    return False
                told.update(piece)
    except zstandard.ZstdError:
        return False
    return told.digest() == digest


def unpacked(packed: bytes, digest: bytes) -> str | None:
    """The text of that digest; None where the body is another one, or broken."""
    if not is_whole(packed, digest):
        return None
    unpack = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
    with unpack.stream_reader(io.BytesIO(packed)) as reader:
        return reader.readall().decode()
