"""Fields of a form or a query (application/x-www-form-urlencoded), and what stands at a path there.

`metadata.kind` is spelled `metadata[kind]`, `items[].price` is `items[0][price]`. A field that some
server might take for the one that is asked for (`Amount`, `amount[]`, `metadata.kind`, one behind a
`;`) makes it unread.
"""

import re
from collections import defaultdict
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from policies.argument_paths import Place, UnreadError, squashed

FIELDS_MAX = 1_000  # PHP reads no more, and leaves out the rest in silence
NAME_CHARACTERS_MAX = 512
PARTS_MAX = 16  # of one name, such as a[b][c]

_BROKEN = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_SPLIT = re.compile(r"[\[\].]")
_INDEX = r"\[(?:|0|[1-9][0-9]{0,3})\]"


class Field(NamedTuple):
    """`value` is None where there was no `=`."""

    name: str
    value: str | None


class Form:
    """The fields of one text. Made by `read`."""

    def __init__(self, fields: list[Field]) -> None:
        self._fields = fields
        self._ending: defaultdict[str, list[Field]] = defaultdict(list)
        self._passing: defaultdict[str, list[Field]] = defaultdict(list)
        for field in fields:
            joined = ""
            for part in _parts(field.name):
                joined += squashed(part)
                self._passing[joined].append(field)
            self._ending[joined].append(field)

    @classmethod
    def read(cls, text: bytes) -> "Form":
        """Raises UnreadError for what servers would read in several ways, or in part."""
        if text.count(b"&") + text.count(b";") >= FIELDS_MAX:
            raise UnreadError(f"more than {FIELDS_MAX} fields")
        if _BROKEN.search(text):
            raise UnreadError("a broken escape in a form")
        if text.lstrip()[:1] in (b"{", b"["):
            raise UnreadError("a form that looks like JSON")
        form = cls(_fields(text))
        if b";" in text:  # some servers split there, too
            form._check_split(_fields(text.replace(b";", b"&")))
        return form

    def _check_split(self, fields: list[Field]) -> None:
        """What stands behind a `;` is as good as a field of its own: it must be none that counts,
        so its name is kept as one that is not written as it should be."""
        known = set(self._fields)
        for field in fields:
            if field not in known:
                joined = ""
                hidden = Field(f";{field.name}", field.value)
                for part in _parts(field.name):
                    joined += squashed(part)
                    self._passing[joined].append(hidden)
                self._ending[joined].append(hidden)

    def related(self, place: Place) -> list[Field]:
        """The fields that a server may take for the one at this place, for one above or below."""
        whole = place.whole
        above = [
            field
            for form in place.alike[0]
            if form != whole
            for field in self._ending.get(form, ())
        ]
        return [*above, *self._passing.get(whole, ())]

    def values(self, place: Place) -> list[str]:
        """All values at a place, none where nothing stands there. Raises UnreadError."""
        spelled = re.compile(spelling(place, len(place.steps)))
        found: list[str] = []
        names: set[str] = set()
        for field in self.related(place):
            if not spelled.fullmatch(field.name):
                raise UnreadError("another spelling of its name stands in the form")
            if field.value is None:
                raise UnreadError("it stands there without a value")
            if field.name in names and not field.name.endswith("[]"):
                raise UnreadError("it stands there twice")  # the first, the last, or both joined
            names.add(field.name)
            found.append(field.value)
        if found:
            self._check_lists(place)
        return found

    def _check_lists(self, place: Place) -> None:
        """Every member of a list must have what is asked for, so that none goes unlooked at."""
        for end in range(1, len(place.steps)):
            if not place.steps[end - 1].listed:
                continue
            member = re.compile(spelling(place, end))
            whole = re.compile(spelling(place, len(place.steps)))
            begun = [(member.match(field.name), field) for field in self._fields]
            members = {found[0] for found, _ in begun if found}
            having = {found[0] for found, field in begun if found and whole.fullmatch(field.name)}
            if any(found.endswith("[]") for found in members):
                raise UnreadError("members of a list without their numbers cannot be told apart")
            if members != having:
                raise UnreadError("some members of the list do not have it")


def spelling(place: Place, end: int) -> str:
    """The pattern of the first steps of a place as a form spells them."""
    pattern = ""
    for number, step in enumerate(place.steps[:end]):
        name = re.escape(step.name)
        pattern += (name if number == 0 else rf"\[{name}\]") + (_INDEX if step.listed else "")
    return pattern


def _parts(name: str) -> list[str]:
    """What a name is made of, without the places in lists."""
    parts = [part for part in _SPLIT.split(name) if part.strip() and not part.strip().isdigit()]
    if len(parts) > PARTS_MAX:
        raise UnreadError("a field is nested too deeply")
    return parts


def _fields(text: bytes) -> list[Field]:
    fields = []
    for pair in text.replace(b"+", b" ").split(b"&"):
        if not pair:
            continue
        name, equals, value = pair.partition(b"=")
        fields.append(Field(_name(name), _text(value) if equals else None))
    return fields


def _name(escaped: bytes) -> str:
    name = _text(escaped)
    if len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
        raise UnreadError("the name of a field is too long, or holds what cannot be printed")
    if squashed(name) == "charset" and name.strip().startswith("_"):
        raise UnreadError("a field asks for another charset")
    return name


def _text(escaped: bytes) -> str:
    try:
        return unquote_to_bytes(escaped).decode("utf-8")
    except UnicodeDecodeError:
        raise UnreadError("a form that is not UTF-8") from None
