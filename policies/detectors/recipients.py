"""Whom a write is for, as far as a field of its arguments says so: a digest, empty where none does.

Fields that name the receiving end of money or of a message are looked for first, since one such
write too many does harm; then addresses of any kind; last, whose account or record it touches.
Those of the first group that has any count, all together. How a value is spelled does not: case and
blanks are left out.
"""

import hashlib
from collections.abc import Iterable, Iterator

import orjson

NODES_MAX = 500  # of the arguments, looked at in their order
DEPTH_MAX = 5
FOUND_MAX = 32
VALUE_BYTES_MAX = 1024

_GROUPS = (
    "to recipient recipients recipient_id recipient_email recipient_account payee payee_id "
    "beneficiary beneficiary_id beneficiary_account iban account_number destination "
    "destination_account destination_id transfer_to send_to to_account to_address to_email "
    "to_number cc bcc",
    "email email_address address phone phone_number mobile channel channel_id chat_id webhook "
    "webhook_url callback_url",
    "customer customer_id account account_id",
)


def _squashed(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


_GROUP_OF = {
    _squashed(name): number for number, names in enumerate(_GROUPS) for name in names.split()
}

Found = tuple[int, str, bytes]


def in_message(message: object) -> list[Found]:
    """The fields of JSON, wherever they stand: which group, which name, whose."""
    return list(_first(_members(message)))


def in_fields(fields: Iterable[tuple[bytes, bytes]]) -> list[Found]:
    """Those of a form or a query: in `destination[account]` the first name or the last counts."""
    return list(_first(_named(fields)))


def digest(found: list[Found], *where: str) -> bytes:
    """Of those that count, and of where they are: the host, the tool."""
    if not found:
        return b""
    best = min(group for group, _, _ in found)
    named = sorted({(name, value) for group, name, value in found if group == best})
    text = orjson.dumps([*where, [[name, value.decode("latin-1")] for name, value in named]])
    return hashlib.sha256(text).digest()


def _first(found: Iterator[Found]) -> Iterator[Found]:
    yield from (one for one, _ in zip(found, range(FOUND_MAX), strict=False))


def _members(message: object) -> Iterator[Found]:
    waiting: list[tuple[object, int]] = [(message, 0)]
    seen = 0
    for value, depth in waiting:  # it grows meanwhile
        members = value.items() if isinstance(value, dict) else ()
        inner = list(value) if isinstance(value, list) else []
        for name, member in members:
            group = _GROUP_OF.get(_squashed(name)) if len(name) <= VALUE_BYTES_MAX else None
            if group is not None and member not in (None, "", [], {}):
                yield group, _squashed(name), _plain(member)
            else:
                inner.append(member)
            seen += 1
            if seen >= NODES_MAX:
                return
        if depth < DEPTH_MAX:
            room = NODES_MAX - len(waiting)
            deeper = [one for one in inner[:NODES_MAX] if isinstance(one, dict | list)]
            waiting += [(one, depth + 1) for one in deeper[:room]]


def _named(fields: Iterable[tuple[bytes, bytes]]) -> Iterator[Found]:
    for name, value in fields:
        parts = name.decode("latin-1").replace("]", "").split("[")
        words = [part for part in parts if part and not part.isdigit()]
        for word in (words[0], words[-1]) if words else ():
            group = _GROUP_OF.get(_squashed(word))
            if group is not None and value:
                yield group, _squashed(word), _folded(value)
                break


def _plain(value: object) -> bytes:
    text = value.encode() if isinstance(value, str) else orjson.dumps(value, option=_SORTED)
    return _folded(text)


def _folded(value: bytes) -> bytes:
    return b"".join(value[:VALUE_BYTES_MAX].lower().split())


_SORTED = orjson.OPT_SORT_KEYS
