"""A report as one HTML file that needs nothing else: no script, no request, no font. Pure.

It prints, follows the reader's light or dark setting, and is read aloud in order: one h1, headings
without gaps, tables with captions and scopes. A Content-Security-Policy forbids all that it does
not need, so that nothing which the world wrote can come to life even if it were let through.
"""

import html
from collections.abc import Callable, Iterator

from proxy.report_chart import svg
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
    Section,
    Table,
    Words,
    in_cell,
    visible,
)

BYTES_MAX = 500_000  # of a file that is sent around and opened on a telephone

_WIDE = 8  # columns; a table with more is set smaller
_TOKEN = 40  # characters that are not broken over lines
_FEW = 20  # the same of several words
_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

# Each colour stands on each ground with a contrast of at least 4.5 (WCAG 2.2, 1.4.3).
_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f1f4f8; --ink: #1a2028; --quiet: #525c69; --rule: #c5ced8;
  --link: #0a4fa8; --bad: #a8181f; --good: #17632f; --money: #6b3fa0; --warm: #8a4600;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #10151b; --panel: #1a222c; --ink: #e8ecf1; --quiet: #a9b4c1; --rule: #3b4754;
    --link: #8cc0ff; --bad: #ff9a94; --good: #7edb9a; --money: #cdb2ff; --warm: #ffbf7a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 76rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.25rem 0 .6rem; padding-top: .6rem;
  border-top: 2px solid var(--rule); }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .45rem 0; overflow-wrap: anywhere; }
a { color: var(--link); }
a:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
code, pre { font: .84rem/1.5 ui-monospace, "SFMono-Regular", "DejaVu Sans Mono", monospace;
  unicode-bidi: isolate; }
code { background: var(--panel); color: var(--ink); padding: .1em .35em; border-radius: 4px;
  box-decoration-break: clone; -webkit-box-decoration-break: clone;
  overflow-wrap: anywhere; }
pre { background: var(--panel); color: var(--ink); padding: .7rem .9rem; margin: .2rem 0 .9rem;
  border-left: 3px solid var(--rule); white-space: pre-wrap; overflow-wrap: anywhere; }
.lead { font-size: 1.08rem; }
.lead a { font-size: .8rem; text-decoration: none; }
.sources { color: var(--quiet); font-size: .84rem; margin: .4rem 0; padding-left: 1.6rem; }
.sources li:target { outline: 3px solid var(--link); outline-offset: 2px; }
.source { display: block; color: var(--quiet); font-size: .88rem; margin-top: .1rem; }
.label { color: var(--quiet); font-size: .88rem; margin: .6rem 0 0; }
nav ul { columns: 14rem; margin: .3rem 0; padding-left: 1.2rem; }
.scroll { overflow-x: auto; margin: .8rem 0 1.2rem; }
table { border-collapse: collapse; min-width: 40%; font-size: .88rem; }
caption { text-align: left; font-weight: 600; padding: .2rem 0 .4rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .7rem .3rem .5rem;
  border-bottom: 1px solid var(--rule); overflow-wrap: break-word; unicode-bidi: isolate;
  max-width: 26rem; }
th { background: var(--panel); color: var(--ink); }
td a { white-space: nowrap; }
td.token { white-space: nowrap; }
td:has(> code) { max-width: 34rem; }
.wide { font-size: .8rem; }
td.amount { text-align: right; font-variant-numeric: tabular-nums; }
td code { white-space: pre-wrap; }
tr:target { outline: 3px solid var(--link); outline-offset: -2px; }
figure { margin: 1rem 0; overflow-x: auto; }
figcaption { color: var(--quiet); font-size: .88rem; }
.chart { width: 100%; min-width: 40rem; height: auto; background: var(--paper); }
.chart text { font: 12px system-ui, "Liberation Sans", sans-serif; fill: var(--quiet); }
.chart .name { fill: var(--ink); text-anchor: end; font-weight: 600; }
.chart .most { text-anchor: end; }
.chart .number { fill: var(--paper); text-anchor: middle; font-size: 11px; font-weight: 700; }
.chart .line { fill: none; stroke: var(--rule); }
.chart .bars { fill: var(--link); }
.chart .writes { fill: var(--warm); }
.chart .spend { fill: var(--money); }
.chart .refuse { fill: var(--bad); }
.chart .replay, .chart .hold { fill: var(--quiet); }
.chart path.mark { fill: none; stroke: var(--quiet); stroke-dasharray: 4 3; stroke-width: 1.5; }
.chart circle.mark { fill: var(--quiet); }
.chart path.pulled { stroke: var(--bad); }
.chart circle.pulled { fill: var(--bad); }
.chart path.released { stroke: var(--good); }
.chart circle.released { fill: var(--good); }
@media print {
  :root { --paper: #ffffff; --panel: #ffffff; --ink: #000000; --quiet: #333333; --rule: #888888;
    --link: #000000; --bad: #a8181f; --good: #17632f; --money: #6b3fa0; --warm: #8a4600; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  tr, figure { break-inside: avoid; }
  thead { display: table-header-group; }
  .scroll, figure { overflow: visible; }
  .chart { min-width: 0; }
  .wide { font-size: 6.5pt; }
  th, td { padding: 1.5pt 4pt 1.5pt 2pt; max-width: none; }
  td.token, td a { white-space: normal; }
  a { text-decoration: none; }
}
"""


def page(document: Document) -> str:
    """The whole file."""
    title = _text(document.title)
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        '<meta name="robots" content="noindex">',
        f"<title>{title}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        f"<header><h1>{title}</h1></header>",
        '<nav aria-label="Sections"><ul>',
        *(f'<li><a href="#{_slug(one)}">{_text(one.title)}</a></li>' for one in document.sections),
        "</ul></nav>",
        "<main>",
    ]
    for section in document.sections:
        slug = _slug(section)
        lines.append(
            f'<section aria-labelledby="{slug}"><h2 id="{slug}">{_text(section.title)}</h2>'
        )
        for part in section.parts:
            lines += _part(document, part)
        lines.append("</section>")
    return "\n".join([*lines, "</main>", "</body>", "</html>", ""])


def fitting(made: Callable[[int], Document], sizes: int) -> str:
    """The page of the largest document of those that `made` gives for 0 to `sizes` - 1, each
    smaller than the one before, that stays within BYTES_MAX; else the last."""
    text = ""
    for size in range(sizes):
        text = page(made(size))
        if len(text.encode()) <= BYTES_MAX:
            break
    return text


def _slug(section: Section) -> str:
    """Titles of sections are ours."""
    return "s-" + "-".join(section.title.lower().split())


def _text(text: str) -> str:
    return html.escape(visible(text), quote=True)


def _part(document: Document, part: Part) -> Iterator[str]:
    match part:
        case Said():
            source = _source(document, part)
            under = f' <span class="source">{source}</span>' if source else ""
            yield f"<p>{_text(part.text)}{under}</p>"
        case Paragraph():
            yield from _paragraph(document, part)
        case Heading():
            call = f" {_ref(document, part.call)}" if part.call else ""
            yield f"<h3>{_text(part.text)}{call}</h3>"
        case Words():
            words = html.escape(visible(part.text, keep="\n"), quote=True)
            yield f'<p class="label">{_text(part.title)}</p>'
            yield f"<pre>{words}</pre>"
        case Picture():
            yield f"<figure>{svg(part.chart)}"
            yield "<figcaption>Times are UTC. The tables below say the same in words.</figcaption>"
            yield "</figure>"
        case Appendix():
            yield from _table(document, part.table, is_appendix=True)
        case Table():
            yield from _table(document, part)


def _source(document: Document, said: Said) -> str:
    """The command that shows what a sentence stands on, and the calls in the appendix."""
    parts = [_ref(document, one) for one in said.calls]
    if said.command:
        parts.append(f"<code>{_text(said.command)}</code>")
    return " ".join(parts)


def _paragraph(document: Document, paragraph: Paragraph) -> Iterator[str]:
    numbered = list(enumerate(paragraph.sentences, 1))
    sentences = (
        f'{_text(said.text)} <a href="#source-{number}" aria-label="what shows sentence {number}">'
        f"[{number}]</a>"
        for number, said in numbered
    )
    yield f'<p class="lead">{" ".join(sentences)}</p>'
    yield '<ol class="sources">'
    for number, said in numbered:
        yield f'<li id="source-{number}">{_source(document, said)}</li>'
    yield "</ol>"


def _table(document: Document, table: Table, *, is_appendix: bool = False) -> Iterator[str]:
    label = html.escape(visible(table.caption), quote=True)
    yield f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">'
    kind = ' class="wide"' if len(table.titles) > _WIDE else ""
    yield f"<table{kind}>"
    yield f"<caption>{label}</caption>"
    titles = "".join(f'<th scope="col">{_text(title)}</th>' for title in table.titles)
    yield f"<thead><tr>{titles}</tr></thead><tbody>"
    for row in table.rows:
        number = 0
        if is_appendix and isinstance(row[0], Ref):
            number = document.numbers.get(row[0].id, 0)
        first = str(number) if number else _cell(document, row[0])
        anchor = f' id="call-{number}"' if number else ""
        rest = "".join(f"<td{_kind(cell)}>{_cell(document, cell)}</td>" for cell in row[1:])
        yield f'<tr{anchor}><th scope="row">{first}</th>{rest}</tr>'
    yield "</tbody></table></div>"


def _kind(cell: Cell) -> str:
    if isinstance(cell, int):
        return ' class="amount"'
    is_token = isinstance(cell, str) and len(cell) <= (_FEW if " " in cell else _TOKEN)
    return ' class="token"' if is_token else ""


def _cell(document: Document, cell: Cell) -> str:
    match cell:
        case None:
            return ""
        case int():
            return f"{cell:,}"
        case Ref():
            return _ref(document, cell.id)
        case Command():
            return f"<code>{_text(cell.text)}</code>"
        case str():
            return html.escape(in_cell(cell, document.cell_characters), quote=True)


def _ref(document: Document, call: str) -> str:
    number = document.numbers.get(call)
    if number:
        return f'<a href="#call-{number}">call {number}</a>'
    return f"call <code>{_text(call)}</code>"
