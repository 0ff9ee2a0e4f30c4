"""Whom a write is for, as far as a field of its arguments says so: a digest, empty where none does.

Fields that name the receiving end of money or of a message are looked for first, since one such
write too many does harm; then addresses of any kind; last, whose account or record it touches. Of
all that stand there one counts, by a fixed order, so that a field that is made up beside it changes
nothing. How a value is spelled does not count: case and blanks are left out.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

import orjson

SCANNED_BYTES_MAX = 256 * 1024  # of a longer body nobody is known
DEPTH_MAX = 5
FOUND_MAX = 32  # values of the field that counts
VALUE_BYTES_MAX = 1024

_NAMES = (
    "to recipient recipients recipient_id recipient_email recipient_account payee payee_id "
    "beneficiary beneficiary_id beneficiary_account iban account_number destination "
    "destination_account destination_id transfer_to send_to to_account to_address to_email "
    "to_number cc bcc "
    "email email_address address phone phone_number mobile channel channel_id chat_id webhook "
    "webhook_url callback_url "
    "customer customer_id account account_id"
)
_LONGEST_NAME = 32  # as it may be written, with joints


def _squashed(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


_RANK_OF = {_squashed(name): 2 * number for number, name in enumerate(_NAMES.split())}
_AS_LISTED = frozenset(_NAMES.split())
_MEMBER = re.compile(rb'"([A-Za-z_-]{2,32})"\s{0,9}:\s{0,9}"([^"\\]{1,1024})"')

Found = tuple[str, bytes]
Field = tuple[tuple[int, int], str, object]
"""What counts most is least: by its name, then by how deep it stands. Then the name, and whose."""


def in_message(message: object) -> list[Found]:
    """The fields of JSON, wherever they stand. Its caller bounds how long it was as a text."""
    return _best(_members(message))


def in_fields(fields: Iterable[tuple[bytes, bytes]]) -> list[Found]:
    """Those of a form or a query: in `destination[account]` the first name or the last counts."""
    return _best(_named(fields))


def in_text(text: bytes) -> list[Found]:
    """Those of JSON that is too long to be read: the members that are plain texts, at any depth."""
    if len(text) > SCANNED_BYTES_MAX:
        return []
    return _best(_written(text))


def digest(found: list[Found], *where: str) -> bytes:
    """Of the one that counts, with all that it names there; and of where: the host, the tool."""
    if not found:
        return b""
    named = sorted({(name, value.decode("latin-1")) for name, value in found})
    text = orjson.dumps([*where, named])
    return hashlib.sha256(text).digest()


def _best(fields: Iterator[Field]) -> list[Found]:
    """The one that counts, as often as it stands there."""
    best: list[Field] = []
    for field in fields:
        if not best or field[0] < best[0][0]:
            best = [field]
        elif len(best) < FOUND_MAX and field[0] == best[0][0]:
            best.append(field)
    return [(_squashed(name), _plain(value)) for _, name, value in best]


@lru_cache(maxsize=1_024)
def _rank(name: str) -> int | None:
    """One that is written as it is listed counts before one that is not: `to` before `T_O`."""
    rank = _RANK_OF.get(_squashed(name))
    return rank if rank is None or name in _AS_LISTED else rank + 1


def _members(message: object) -> Iterator[Field]:
    waiting: list[tuple[object, int]] = [(message, 0)]
    for value, depth in waiting:  # it grows meanwhile
        members = value.items() if isinstance(value, dict) else ()
        inner = list(value) if isinstance(value, list) else []
        for name, member in members:
            rank = _rank(name) if len(name) <= _LONGEST_NAME else None
            if rank is not None and member not in (None, "", [], {}):
                yield (rank, depth), name, member
            else:
                inner.append(member)
        if depth < DEPTH_MAX:
            waiting += [(one, depth + 1) for one in inner if isinstance(one, dict | list)]


def _written(text: bytes) -> Iterator[Field]:
    for member in _MEMBER.finditer(text):
        name = member[1].decode()
        rank = _rank(name)
        if rank is not None:
            yield (rank, 0), name, member[2]


def _named(fields: Iterable[tuple[bytes, bytes]]) -> Iterator[Field]:
    for name, value in fields:
        parts = name.decode("latin-1").replace("]", "").split("[")
        words = [part for part in parts if part and not part.isdigit()]
        for depth in sorted({0, len(words) - 1}) if words else ():
            rank = _rank(words[depth]) if len(words[depth]) <= _LONGEST_NAME else None
            if rank is not None and value:
                yield (rank, depth), words[depth], value
                break


def _plain(value: object) -> bytes:
    """Of a list all that it names, in any order."""
    entries = value if isinstance(value, list) and len(value) <= FOUND_MAX else [value]
    return b",".join(sorted({_whom(entry) for entry in entries}))


def _whom(value: object) -> bytes:
    """Of `{"email": ..., "name": ...}` the address alone, as of `Name <address>`."""
    if isinstance(value, dict):
        inner = min(_members(value), key=_by_rank, default=None)
        value = value if inner is None else inner[2]
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    text = value if isinstance(value, bytes) else orjson.dumps(value, option=_SORTED)
    if text.endswith(b">"):
        text = text[text.rfind(b"<") :].strip(b"<>")
    return b"".join(text[:VALUE_BYTES_MAX].lower().split())


def _by_rank(field: Field) -> tuple[int, int]:
    return field[0]


_SORTED = orjson.OPT_SORT_KEYS
