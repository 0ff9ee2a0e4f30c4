"""What stands at the paths that the policy's conditions name: in a body, a query or a message.

Of plain HTTP calls `query.NAME` is of the URL's query and `body.NAME` of the body, as is whatever
begins with neither; what MCP tools and GraphQL fields are given has one kind of argument alone.

Servers differ in which spelling of a name they take for an argument (other case, `amount[]`,
`unit.amount`), in which of two they believe, and in whether the query counts, too. Where they could
differ nothing is guessed: the argument is then unread, and no condition on it holds.
"""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple

import orjson

from policies.argument_paths import Place, UnreadError, check_spellings, squashed
from policies.call import Argument, Request
from policies.canonical import NotPlainJsonError, is_json, read_json, write_json
from policies.conditions import number
from policies.content import FORM, UTF_8
from policies.form import Form
from policies.head import Head

VALUES_MAX = 100  # that stand at one path
CHARACTERS_MAX = 16_384  # of all that is read of one call, since it is recorded

Values = tuple[Argument, ...]


class Found(NamedTuple):
    """Each path with its values (none: nothing stands there), or with why it cannot be read."""

    values: tuple[tuple[str, Values], ...]
    unread: tuple[tuple[str, str], ...]


def of_request(paths: Iterable[str], request: Request, head: Head) -> Found:
    """Of a plain HTTP call."""
    return _found(paths, _Plain(request, head).values)


def of_messages(paths: Iterable[str], messages: Iterable[object]) -> Found:
    """Of what MCP tools or GraphQL fields are given, one object for each call of one. What is asked
    of an argument is asked of it in each."""
    readers = [_Json(message) for message in messages]

    def values(path: str) -> list[Argument]:
        place = Place.of(path)
        return _together([reader.values(place) for reader in readers])

    return _found(paths, values)


def _found(paths: Iterable[str], values: Callable[[str], list[Argument]]) -> Found:
    found: list[tuple[str, Values]] = []
    unread: list[tuple[str, str]] = []
    left = CHARACTERS_MAX
    for path in paths:
        try:
            read = tuple(values(path))
            if len(read) > VALUES_MAX:
                raise UnreadError(f"more than {VALUES_MAX} values stand there")
            left -= sum(len(value) if isinstance(value, str) else 1 for value in read)
            if left < 0:
                raise UnreadError(f"it is longer than {CHARACTERS_MAX} characters")
            found.append((path, read))
        except UnreadError as why:
            unread.append((path, str(why)))
    return Found(tuple(found), tuple(unread))


def _together(found: list[list[Argument]]) -> list[Argument]:
    """Of several things what is asked of each. Raises UnreadError where only some have it."""
    if any(found) and not all(found):
        raise UnreadError("some have it and some do not")
    return [value for values in found for value in values]


class _Plain:
    """A plain HTTP call. Its parts are read when they are first asked for, and once."""

    def __init__(self, request: Request, head: Head) -> None:
        self._request = request
        self._head = head

    def values(self, path: str) -> list[Argument]:
        """Raises UnreadError."""
        if self._head.upgrades:
            raise UnreadError("it would go by inside the socket")
        part, dot, rest = path.partition(".")
        if not dot or part not in ("query", "body"):
            part, rest = "body", path
        place = Place.of(rest)
        if part == "query":
            self._check_body(place)
            return [*_certain(self._query).values(place)]
        if _certain(self._query).related(place):
            raise UnreadError("the query of the URL names it, too")
        body = _certain(self._body)
        return [] if body is None else [*body.values(place)]

    def _check_body(self, place: Place) -> None:
        """A body of fields must not name what is read of the query: some servers join the two."""
        if not self._may_hold_fields:
            return
        body = _certain(self._body)
        if body is not None and body.related(place):
            raise UnreadError("the body names it, too")

    @property
    def _may_hold_fields(self) -> bool:
        media_type = self._head.content.media_type
        kind = media_type.partition("/")[0]
        return kind in ("", "text", "multipart") or media_type == FORM or is_json(media_type)

    @cached_property
    def _query(self) -> "Form | UnreadError":
        _, _, query = self._request.target.partition("?")
        return _tried(Form.read, query.encode("utf-8", "surrogatepass"))

    @cached_property
    def _body(self) -> "Form | _Json | UnreadError | None":
        """None for no body, an error for one that is not plainly JSON or a form."""
        body, content = self._request.body, self._head.content
        if not body:
            return None
        if why := content.hidden(UTF_8):
            return UnreadError(why)
        if content.media_type == FORM:
            return _tried(Form.read, body)
        if not is_json(content.media_type):
            return UnreadError("the body is neither JSON nor a form by its content type")
        return _tried(_Json.read, body)


def _tried[T](read: Callable[[bytes], T], text: bytes) -> T | UnreadError:
    """What cannot be read is not read again for each path."""
    try:
        return read(text)
    except UnreadError as why:
        return why


def _certain[T](part: T | UnreadError) -> T:
    """Raises UnreadError."""
    if isinstance(part, UnreadError):
        raise UnreadError(str(part))
    return part


class _Json:
    """One JSON object as `canonical.read_json` gives it."""

    def __init__(self, message: object) -> None:
        self._message = message
        self._names: dict[int, dict[str, list[str]]] = {}

    @classmethod
    def read(cls, text: bytes) -> "_Json":
        """Raises UnreadError."""
        try:
            return cls(read_json(text))
        except NotPlainJsonError as why:
            raise UnreadError(f"the body is not plain JSON: {why}") from None

    def values(self, place: Place) -> list[Argument]:
        """Raises UnreadError."""
        return self._below(self._message, place, 0)

    def related(self, place: Place) -> list[str]:
        """The members that a server may take for the field at this place, or for one above it."""
        if not isinstance(self._message, dict):
            return []
        names = self._spelled(self._message)
        return [name for form in place.alike[0] for name in names.get(form, ())]

    def _below(self, here: object, place: Place, depth: int) -> list[Argument]:
        if depth == len(place.steps):
            return [_single(here)]
        if not isinstance(here, dict):
            raise UnreadError("what holds it is no object")
        name, listed = place.steps[depth]
        check_spellings(self._spelled(here), name, place.alike[depth])
        if name not in here:
            return []
        if not listed:
            return self._below(here[name], place, depth + 1)
        if not isinstance(here[name], list):
            raise UnreadError("what holds it is no list")
        return _together([self._below(item, place, depth + 1) for item in here[name]])

    def _spelled(self, here: dict[str, object]) -> dict[str, list[str]]:
        """The members of an object by what their names come to, made once for all paths."""
        if id(here) not in self._names:
            names: dict[str, list[str]] = {}
            for name in here:
                names.setdefault(squashed(name), []).append(name)
            self._names[id(here)] = names
        return self._names[id(here)]


def _single(value: object) -> Argument:
    if isinstance(value, orjson.Fragment):
        read = number(write_json(value).decode())
        if read is None:
            raise UnreadError("a number that is too long to mean anything")
        return read
    if value is None or isinstance(value, str | bool):
        return value
    raise UnreadError("a list or an object stands there, and no single value")
