"""A report as Markdown (CommonMark 0.31 with the tables of GitHub's form). Pure.

What the world wrote is inert in it: no markup, link, mention, HTML or formula comes to life, here
or where the text is pasted into a chat.
"""

import re
from collections.abc import Iterator

from proxy.report_parts import (
    Appendix,
    Cell,
    Command,
    Document,
    Heading,
    Paragraph,
    Part,
    Picture,
    Ref,
    Said,
    Table,
    Words,
    in_cell,
    visible,
)

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "`": "&#96;", "{": "&#123;", "}": "&#125;"}
_MARKUP = re.compile(r"[\\*_\[\]|~$]")
# What makes a line a heading, a list, a rule or a quotation.
_LINE_START = re.compile(r"^(\s*)(?:([#+=-])|(\d{1,9})([.)])(?=\s|$))", re.ASCII)
# Where an address would become a link by itself; a backslash there is not seen.
_LINK = re.compile(r"(?i)(?<=:)(?=//)|(?<=\bwww)(?=\.)|(?<=\bmailto)(?=:)|(?<=\bxmpp)(?=:)")
_MENTION = re.compile(r"@+")


def inert(text: str) -> str:
    """One line of text of the world that means nothing but itself."""
    shown = visible(text)
    shown = "".join(_ENTITIES.get(each, each) for each in shown)
    shown = _MARKUP.sub(lambda found: f"\\{found[0]}", shown)
    shown = _LINK.sub(r"\\", shown)
    # Nobody is called by a name that stands partly in a code span.
    shown = _MENTION.sub(lambda found: f"`{found[0]}`", shown)
    return _LINE_START.sub(_started, shown)


def _started(found: re.Match[str]) -> str:
    if found[2]:
        return f"{found[1]}\\{found[2]}"
    return f"{found[1]}{found[3]}\\{found[4]}"


def markdown(document: Document) -> str:
    """The whole page, ending in a line break."""
    lines = [f"# {inert(document.title)}", ""]
    for section in document.sections:
        lines += [f"## {section.title}", ""]
        for part in section.parts:
            lines += [*_part(document, part), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _part(document: Document, part: Part) -> Iterator[str]:
    match part:
        case Said():
            yield _said(document, part)
        case Paragraph():
            yield from _paragraph(document, part)
        case Heading():
            call = f" {_ref(document, part.call)}" if part.call else ""
            yield f"### {inert(part.text)}{call}"
        case Words():
            yield f"{inert(part.title)}:"
            yield ""
            for line in part.text.split("\n") or [""]:
                yield f"> {_kept_blanks(inert(line))}  "
        case Picture():
            yield "(The chart is in the HTML report; the tables below say the same.)"
        case Appendix():
            yield from _table(document, part.table, is_appendix=True)
        case Table():
            yield from _table(document, part)


def _said(document: Document, said: Said) -> str:
    return f"{inert(said.text)} {_source(document, said)}".rstrip()


def _source(document: Document, said: Said) -> str:
    """The calls that a sentence is about, and the command that shows what it stands on."""
    calls = ", ".join(_ref(document, one) for one in said.calls)
    return " ".join(filter(None, (calls, _code(said.command) if said.command else "")))


def _paragraph(document: Document, paragraph: Paragraph) -> Iterator[str]:
    numbered = list(enumerate(paragraph.sentences, 1))
    yield " ".join(f"{inert(said.text)} \\[{number}\\]" for number, said in numbered)
    yield ""
    for number, said in numbered:
        yield f"{number}. {_source(document, said)}"


def _table(document: Document, table: Table, *, is_appendix: bool = False) -> Iterator[str]:
    yield f"**{inert(table.caption)}**"
    yield ""
    yield f"| {' | '.join(inert(title) for title in table.titles)} |"
    yield f"|{'---|' * len(table.titles)}"
    for row in table.rows:
        cells = [_cell(document, cell) for cell in row]
        if is_appendix and isinstance(row[0], Ref):
            number = document.numbers.get(row[0].id, 0)
            cells[0] = f'<a id="call-{number}"></a>{number}'
        yield f"| {' | '.join(cells)} |"


def _cell(document: Document, cell: Cell) -> str:
    match cell:
        case None:
            return ""
        case int():
            return f"{cell:,}"
        case Ref():
            return _ref(document, cell.id)
        case Command():
            return _code(cell.text).replace("|", "\\|")
        case str():
            return inert(in_cell(cell, document.cell_characters))


def _ref(document: Document, call: str) -> str:
    number = document.numbers.get(call)
    return f"[call {number}](#call-{number})" if number else f"call {_code(call)}"


def _code(text: str) -> str:
    """A code span: nothing in it is markup; its ends are longer than any run of ends in it."""
    shown = visible(text)
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    ends = "`" * (longest + 1)
    blank = " " if "`" in shown else ""
    return f"{ends}{blank}{shown}{blank}{ends}"


def _kept_blanks(line: str) -> str:
    """Blanks that a line begins with are seen."""
    bare = line.lstrip(" ")
    return "&nbsp;" * (len(line) - len(bare)) + bare
