"""What `idempotency.ignore` leaves out before two writes are compared: a time, a nonce.

Only the policy names such fields, by dotted paths as its conditions have them: of a plain call
`query.NAME` is of the URL's query, `body.NAME` and all else of the body; of an MCP tool they are of
its arguments, of GraphQL of the variables. A field that is plainly there is left out with all below
it; one that is spelled otherwise, or that a server may take for more than itself, counts.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import unquote_plus

from policies.argument_paths import Place, Step
from policies.form import spelling

_BELOW = r"(?:\[[^\[\]]*\])*"
_FIELD = re.compile(
    rb'content-disposition:[ \t]*form-data;[ \t]*name=(?:"([^"\\]*)"|([^\s"\\;]+))[ \t]*', re.I
)
_HEADERS = frozenset(
    {b"content-disposition", b"content-length", b"content-transfer-encoding", b"content-type"}
)


class Ignored(NamedTuple):
    """The fields of one tool. `batched`: a body that is a list holds messages, each with them."""

    body: tuple[Place, ...] = ()
    query: tuple[Place, ...] = ()
    batched: bool = False

    def in_json(self, value: object) -> object:
        """The value without them; what was given stays as it is."""
        if not self.body:
            return value
        if self.batched and isinstance(value, list):
            return [_without_all(message, self.body) for message in value]
        return _without_all(value, self.body)

    def in_form(self) -> re.Pattern[str] | None:
        """What the names of such fields of a form match; None where nothing is ignored."""
        return _names(self.body)

    def in_query(self, pairs: list[str]) -> list[str]:
        """The pairs of a query without them."""
        names = _names(self.query)
        if names is None:
            return pairs
        return [
            pair
            for pair in pairs
            if ";" in pair or not names.fullmatch(unquote_plus(pair.partition("=")[0]))
        ]


NOTHING = Ignored()


def of_request(paths: Sequence[str]) -> Ignored:
    """Of a plain HTTP call."""
    body: list[Place] = []
    query: list[Place] = []
    for path in paths:
        part, dot, rest = path.partition(".")
        if dot and part == "query":
            query.append(Place.of(rest))
        else:
            body.append(Place.of(rest if dot and part == "body" else path))
    return Ignored(tuple(body), tuple(query))


def of_messages(paths: Sequence[str], where: str) -> Ignored:
    """Of a protocol's messages, each of which has such fields under the path `where`."""
    return Ignored(tuple(Place.of(f"{where}.{path}") for path in paths), batched=True)


def is_field(names: re.Pattern[str], name: str, pair: bytes) -> bool:
    """Whether a field of this name, sent as this pair, is left out. Some servers end a field at a
    `;`, too, and find another one behind it."""
    return b";" not in pair and names.fullmatch(name) is not None


def is_part(names: re.Pattern[str], part: bytes, line_end: bytes) -> bool:
    """Whether a part of a multipart body is such a field, plainly named, and no file. A head that
    servers may read in several ways says nothing: with line ends of two kinds, with a header that
    is not known here or stands twice, with parts inside."""
    head, gap, _ = part.partition(line_end * 2)
    lines = head.removeprefix(line_end).split(line_end)
    if not gap or any(b"\r" in line or b"\n" in line for line in lines):
        return False
    told: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, _ = line.partition(b":")
        if not colon or name.lower() not in _HEADERS or name.lower() in told:
            return False  # a folded line, too, may say anything
        told[name.lower()] = line
    if b"multipart/" in told.get(b"content-type", b"").lower():
        return False
    field = _FIELD.fullmatch(told.get(b"content-disposition", b""))
    if field is None:
        return False
    name = field[1] if field[1] is not None else field[2]
    return name.isascii() and names.fullmatch(name.decode("ascii")) is not None


def _names(places: Sequence[Place]) -> re.Pattern[str] | None:
    if not places:
        return None
    return re.compile("|".join(spelling(each, len(each.steps)) + _BELOW for each in places))


def _without_all(value: object, places: Sequence[Place]) -> object:
    for place in places:
        value = _without(value, place.steps)
    return value


def _without(here: object, steps: Sequence[Step]) -> object:
    (name, listed), rest = steps[0], steps[1:]
    if not isinstance(here, dict) or name not in here:
        return here
    below = here[name]
    if listed and not isinstance(below, list):
        return here
    if not rest:
        return {key: value for key, value in here.items() if key != name}
    left = [_without(item, rest) for item in below] if listed else _without(below, rest)
    return {**here, name: left}
