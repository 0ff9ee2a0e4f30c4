"""A YAML text as plain data that keeps its positions, so that a mistake is told by line and column.

The YAML read here is the part of YAML 1.1 that means what it looks like: `on`, `12:30`, `010`,
dates, doubled keys, merge keys and empty values are mistakes with a hint. What the data means is
not known here.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import yaml

BYTES_MAX = 1 << 20  # a policy of thousands of tools is a quarter of this
DEPTH_MAX = 32  # the schema is six deep
VALUES_MAX = 100_000  # aliases may repeat a part, but not a million times
INTEGER_DIGITS_MAX = 18

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?")
_OPENED = {"mapping": "'{'", "sequence": "'['", "quoted": "a quote"}
_TAG = "tag:yaml.org,2002:"
NO_KEY = "this line is no 'key: value'"

Location = tuple[str | int, ...]
"""Keys and places on the way from the top of a document to one of its values."""


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """One thing wrong, at a line and column counted from 1; 0 when it has no place."""

    line: int
    column: int
    text: str


class MistakenFileError(ValueError):
    """A file cannot be used. The message has one line for each mistake."""

    def __init__(self, source: str, mistakes: list[Mistake]) -> None:
        self.source = source
        self.mistakes = sorted(set(mistakes))
        lines = (
            f"{source}:{mistake.line}:{mistake.column}: {mistake.text}"
            if mistake.line
            else f"{source}: {mistake.text}"
            for mistake in self.mistakes
        )
        super().__init__("\n".join(lines))


@dataclass(frozen=True, slots=True)
class Document:
    """`mistakes` is what is known to be wrong with it; what that concerns is not in `data`."""

    data: object
    root: yaml.Node
    mistakes: tuple[Mistake, ...] = ()

    def at(self, location: Location, text: str, *, of_key: bool = False) -> Mistake:
        """A mistake at a value of the document, or at the key that it stands under."""
        return _at((self.locate_key if of_key else self.locate)(location), text)

    def line(self, location: Location) -> int:
        return self.locate(location).start_mark.line + 1

    def locate(self, location: Location) -> yaml.Node:
        """The node at a location. Parts that lead nowhere are skipped: a list that was written
        short as its one item has the item's place."""
        node = self.root
        for part in location:
            node = next((value for key, value in _children(node) if _name(key) == part), node)
        return node

    def locate_key(self, location: Location) -> yaml.Node:
        above = self.locate(location[:-1])
        found = (key for key, _ in _children(above) if _name(key) == location[-1])
        key = next(found, above)
        return key if isinstance(key, yaml.Node) else self.locate(location)

    def keys(self, location: Location) -> list[str]:
        """The keys of a mapping as they were written, also those that are not in `data`."""
        found = (_name(key) for key, _ in _children(self.locate(location)))
        return [key for key in found if isinstance(key, str)]

    def is_mistaken(self, location: Location) -> bool:
        """Whether something is known to be wrong there, or within."""
        node = self.locate(location)
        first, last = _at(node, ""), (node.end_mark.line + 1, node.end_mark.column + 1)
        return any(
            first <= mistake and (mistake.line, mistake.column) < last for mistake in self.mistakes
        )

    def drop(self, locations: Iterable[Location]) -> bool:
        """Take values out, to see what is wrong with the rest. False when there were none."""
        found = {path for location in locations if (path := self._path(location))}
        # What is deeper goes first, and so does what stands further back in its list.
        for path in sorted(found, key=_depth, reverse=True):
            above: Any = self.data
            for part in path[:-1]:
                above = above[part]
            node = self.locate(path[:-1])
            if isinstance(node, yaml.SequenceNode) and isinstance(path[-1], int):
                del node.value[path[-1]]
            del above[path[-1]]
        return bool(found)

    def _path(self, location: Location) -> Location:
        """The parts of a location that lead somewhere."""
        here: Any = self.data
        path: list[str | int] = []
        for part in location:
            if _has(here, part):
                here = here[part]
                path.append(part)
        return tuple(path)


def read(text: str, source: str) -> Document:
    """Parse a text. Raises MistakenFileError with everything that is wrong with it as YAML."""
    document = parse(text, source)
    if document.mistakes:
        raise MistakenFileError(source, list(document.mistakes))
    return document


def parse(text: str, source: str) -> Document:
    """As `read`, but with what can be read beside the mistakes, if anything can.

    Raises MistakenFileError when nothing can.
    """
    if len(text) > BYTES_MAX:
        raise MistakenFileError(source, [Mistake(0, 0, "is larger than 1 MiB")])
    try:
        root = yaml.compose(text, Loader=_Composer)
    except yaml.MarkedYAMLError as fault:
        raise MistakenFileError(source, [_syntax_mistake(fault, text)]) from None
    except yaml.reader.ReaderError as fault:
        raise MistakenFileError(source, [_character_mistake(fault, text)]) from None
    if root is None:
        raise MistakenFileError(source, [Mistake(0, 0, "is empty; it starts with 'version: 1'")])
    reader = _Reader()
    data = reader.value(root, 0)
    if reader.mistakes and (data is None or reader.values > VALUES_MAX):
        raise MistakenFileError(source, reader.mistakes)
    return Document(data, root, tuple(reader.mistakes))


class _Composer(yaml.SafeLoader):
    """Builds nodes only, no objects, and stops before its own recursion can hurt."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.depth > DEPTH_MAX:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            problem = f"nested more than {DEPTH_MAX} deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _at(node: yaml.Node, text: str) -> Mistake:
    return Mistake(node.start_mark.line + 1, node.start_mark.column + 1, text)


def _children(node: yaml.Node) -> Iterator[tuple[yaml.Node | int, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        yield from node.value
    elif isinstance(node, yaml.SequenceNode):
        yield from enumerate(node.value)


def _join(first: yaml.Node, second: yaml.Node) -> None:
    """A section that stands twice is read as one, so that all of it is looked at."""
    kinds = (yaml.MappingNode, yaml.SequenceNode)
    if isinstance(first, kinds) and type(first) is type(second) and first is not second:
        first.value.extend(second.value)


def _has(here: object, part: str | int) -> bool:
    if isinstance(here, list):
        return isinstance(part, int) and part < len(here)
    return isinstance(here, dict) and part in here


def _depth(path: Location) -> tuple[int, list[tuple[int, str]]]:
    return len(path), [(part, "") if isinstance(part, int) else (0, part) for part in path]


def _name(key: yaml.Node | int) -> object:
    return key.value if isinstance(key, yaml.Node) else key


class _Reader:
    """Turns nodes into dicts, lists, texts, numbers and booleans, and collects mistakes."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self.values = 0

    def value(self, node: yaml.Node, depth: int) -> object:
        self.values += 1
        if self.values > VALUES_MAX or depth > DEPTH_MAX:
            # Only aliases lead here; one mistake says it all.
            if self.values <= VALUES_MAX + 1:
                self.values = VALUES_MAX + 1
                self.wrong(node, "aliases repeat too much; write it out")
            return None
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self.mapping(node, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            items = [(item, self.value(item, depth + 1)) for item in node.value]
            node.value[:] = [item for item, value in items if value is not None]
            return [value for _, value in items if value is not None]
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        self.wrong(node, f"the tag {node.tag.replace(_TAG, '!!')!r} is not known here")
        return None

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, object]:
        first: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            name = self.key(key)
            if name is None:
                continue
            if value.tag == f"{_TAG}null":
                self.wrong(key, f"{name!r} has no value; give it one or leave it out")
            if name not in first:
                first[name] = key, value
                continue
            line = first[name][0].start_mark.line + 1
            self.wrong(key, f"the key {name!r} stands twice; first on line {line}")
            if depth == 0:
                _join(first[name][1], value)
        data: dict[str, object] = {}
        for name, (_, value) in first.items():
            read = None if value.tag == f"{_TAG}null" else self.value(value, depth + 1)
            if read is not None:
                data[name] = read
        return data

    def key(self, key: yaml.Node) -> str | None:
        if key.tag == f"{_TAG}merge":
            self.wrong(key, "merge keys ('<<') are not known here; repeat the lines")
            return None
        if not isinstance(key, yaml.ScalarNode):
            self.wrong(key, "a key is one word, not a list or mapping")
            return None
        told = len(self.mistakes)
        name = self.scalar(key)
        if isinstance(name, str):
            return name
        if len(self.mistakes) == told:
            self.wrong(key, f"the key {key.value!r} is not text; put it in quotes")
        return None

    def scalar(self, node: yaml.ScalarNode) -> object:
        tag, text = node.tag.removeprefix(_TAG), node.value
        if tag in ("str", "value"):
            return text
        if tag == "bool" and text in ("true", "false"):
            return text == "true"
        if tag == "int" and _INTEGER.fullmatch(text) and len(text) <= INTEGER_DIGITS_MAX:
            return int(text)
        if tag == "float" and _DECIMAL.fullmatch(text):
            return Decimal(text)
        self.wrong(node, _surprise(tag, text))
        return None

    def wrong(self, node: yaml.Node, text: str) -> None:
        self.mistakes.append(_at(node, text))


def _surprise(tag: str, text: str) -> str:
    """What YAML 1.1 would have made of a word that looks like something else."""
    shown = repr(text[:40])
    if tag == "bool" and text.lower() == "off":
        cure = "for trace write none, else false, or put it in quotes"
        return f"{shown} is a boolean in YAML; {cure}"
    if tag == "bool":
        return f"{shown} is a boolean in YAML; write true or false, or put it in quotes"
    if tag == "timestamp":
        return f"{shown} is a date in YAML; put it in quotes"
    if tag == "null":
        return "an empty value; give it one or leave it out"
    if tag not in ("int", "float"):
        return f"the tag {tag!r} is not known here"
    if ":" in text:
        kind = "a number to base 60"
    elif "x" in text.lower() and tag == "int":
        kind = "a hexadecimal number"
    elif "b" in text.lower() and tag == "int":
        kind = "a binary number"
    elif "_" in text:
        kind = "a number with underscores"
    elif tag == "int" and text.lstrip("+-").startswith("0"):
        kind = "an octal number"
    else:
        kind = "not a plain number" if tag == "float" else "too large a number"
        return f"{shown} is {kind}; put it in quotes if it is text"
    return f"{shown} is {kind} in YAML; put it in quotes if it is text"


def _syntax_mistake(fault: yaml.MarkedYAMLError, text: str) -> Mistake:
    mark, problem, context = fault.problem_mark, fault.problem or "", fault.context or ""
    opened = next((sign for word, sign in _OPENED.items() if word in context), "something")
    if problem.startswith("expected '<document start>'"):
        # What stands above was taken for the whole document.
        found = enumerate(text.splitlines(), 1)
        line = next((number for number, said in found if _content(said)), 1)
        return Mistake(line, 1, f"{NO_KEY}; if it is a remark, begin it with '#'")
    if mark is None:
        return Mistake(0, 0, problem)
    if "end of stream" in problem or "'<stream end>'" in problem:
        # The end of the file says little; what was never closed began at the context.
        mark, problem = fault.context_mark or mark, f"{opened} is never closed"
    elif problem.startswith("could not find expected ':'"):
        mark = fault.context_mark or mark  # where the key began that is none
        problem = _colonless(text.splitlines()[mark.line])
    elif problem.startswith("mapping values are not allowed"):
        before = [number for number in range(mark.line) if _content(text.splitlines()[number])]
        above = text.splitlines()[before[-1]] if before else "a: b"
        if not re.search(r":(\s|$)|^\s*-\s", above):
            # It was taken for the beginning of the key on the marked line.
            column = len(above) - len(above.lstrip()) + 1
            return Mistake(before[-1] + 1, column, _colonless(above))
    elif problem.startswith("expected ',' or ") and fault.context_mark:
        begun = f"the {opened} of line {fault.context_mark.line + 1}"
        problem = f"a ',' is missing before this, or {begun} is not closed"
    return Mistake(mark.line + 1, mark.column + 1, _plainly(problem))


def _content(line: str) -> str:
    return line.partition("#")[0].strip()


def _colonless(line: str) -> str:
    return "a ':' needs a space after it" if ":" in _content(line) else NO_KEY


def _plainly(problem: str) -> str:
    """The parser's words about its state, as words about the file."""
    if problem.startswith("found character '\\t'"):
        return "a tab; indent with spaces"
    if problem.startswith("found character"):
        character = problem.removeprefix("found ").partition(" that ")[0]
        return f"the {character} begins no value; put the text in quotes"
    if problem.startswith("found unknown escape character"):
        escape = problem.rpartition(" ")[2].strip("'")
        return f"'\\{escape}' is no escape; use single quotes, or write the '\\' twice"
    if problem.startswith(("expected alphabetic or numeric character", "found undefined alias")):
        return "text that starts with '*' or '&' must be in quotes"
    if problem.startswith("mapping values are not allowed"):
        return "a ':' is not expected here; check the indentation, or put the text in quotes"
    if problem.startswith("expected chomping or indentation indicators"):
        return "after '|' or '>' the text begins on the next line; else put it in quotes"
    if problem.startswith(("expected <block end>", "expected the node content")):
        found = problem.rpartition(" found ")[2]
        misplaced = found == "'-'" or "block" in found
        return (
            "the indentation does not fit the lines above"
            if misplaced
            else f"{found} is not expected here"
        )
    if problem.startswith("but found another document"):
        return "a second document begins here; remove the '---'"
    return problem


def _character_mistake(fault: yaml.reader.ReaderError, text: str) -> Mistake:
    before = text[: fault.position]
    column = fault.position - (before.rfind("\n") + 1) + 1
    shown = f"U+{ord(text[fault.position]):04X}"
    return Mistake(before.count("\n") + 1, column, f"the character {shown} is not allowed in YAML")
