"""What a page must be, so that everybody can read it and nothing in it comes to life: checks on its
HTML alone, in the manner of axe.
"""

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "link", "input"}
# What asks a browser for something, or runs something.
LOADING = {"src", "srcset", "poster", "data", "action", "formaction", "background", "ping", "style"}
ALIVE = {"script", "iframe", "object", "embed", "link", "base", "form", "input", "button", "img"}


class Page(HTMLParser):
    """Reads a page, strictly: every element that is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[int, str]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.style = ""
        self.faults: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        if self._open:
            self.faults.append(f"not closed: {self._open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag not in VOID:
            self._open.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag == "a":
            self.links.append(str(values.get("href")))
        for name, value in attrs:
            if name in LOADING or name.startswith("on"):
                self.faults.append(f"{tag} has {name}={value!r}")
        if tag in ALIVE:
            self.faults.append(f"there is a {tag}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"{tag} is closed where it is not open")

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "style":
            self.style += data
        elif self.headings and re.fullmatch(r"h[1-6]", inside):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)
        if inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def with_tag(self, tag: str) -> list[dict[str, str | None]]:
        return [values for name, values in self.tags if name == tag]


def faults(text: str) -> list[str]:
    """All that is wrong with a page; empty for one that is well."""
    page = Page(text)
    return [*page.faults, *_headings(page), *_names(page), *_tables(text), *_requests(page, text)]


def _headings(page: Page) -> list[str]:
    levels = [level for level, _ in page.headings]
    found = (
        [] if levels.count(1) == 1 and levels[0] == 1 else [f"h1 is not the one first: {levels}"]
    )
    found += [
        f"h{after} {text!r} follows h{before}"
        for before, (after, text) in zip(levels, page.headings[1:], strict=False)
        if after > before + 1
    ]
    return found + [f"an h{level} is empty" for level, text in page.headings if not text.strip()]


def _names(page: Page) -> list[str]:
    """What has to have a name has one, and every place that is named is there once."""
    found = []
    if page.with_tag("html")[0].get("lang") != "en":
        found.append("the page has no language")
    if "title" not in {tag for tag, _ in page.tags}:
        found.append("the page has no title")
    for values in page.with_tag("svg"):
        named = str(values.get("aria-labelledby") or "").split()
        if values.get("role") != "img" or not named or set(named) - set(page.ids):
            found.append(f"an image has no name: {values}")
    regions = [v.get("aria-label") for _, v in page.tags if v.get("role") == "region"]
    found += ["a region has no name" for name in regions if not name]
    found += [f"two regions are {one!r}" for one in set(regions) if regions.count(one) > 1]
    found += [f"the id {one} is there twice" for one in set(page.ids) if page.ids.count(one) > 1]
    places = [link[1:] for link in page.links if link.startswith("#")]
    found += [f"#{one} leads nowhere" for one in set(places) - set(page.ids)]
    return found + [f"a link leads out: {one}" for one in page.links if not one.startswith("#")]


def _tables(text: str) -> list[str]:
    found = []
    for table in re.findall(r"<table.*?</table>", text, re.DOTALL):
        heads = re.findall(r"<th\b[^>]*>", table)
        if not heads or any("scope=" not in head for head in heads):
            found.append(f"a table has heads without a scope: {table[:80]}")
        if "<caption>" not in table:
            found.append(f"a table has no caption: {table[:80]}")
        widths = {
            len(re.findall(r"<t[hd]\b", row))
            for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        }
        if len(widths) > 1:
            found.append(f"the rows of a table are of several lengths: {widths}")
    return found


def _requests(page: Page, text: str) -> list[str]:
    found = []
    policy = [v for v in page.with_tag("meta") if v.get("http-equiv") == "Content-Security-Policy"]
    wanted = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    if [one.get("content") for one in policy] != [wanted]:
        found.append("the page has no strict Content-Security-Policy")
    if re.search(r"@import|url\(|expression\(|@font-face", page.style):
        found.append("the style asks for something")
    if text.index("Content-Security-Policy") > text.index("<title>"):
        found.append("the Content-Security-Policy comes late")
    return found


# ---------------------------------------------------------------------------------- colours


def palettes(style: str) -> list[dict[str, str]]:
    """The colours by name, of each block that sets them: light, dark, print."""
    blocks = re.findall(r":root\s*\{([^}]*)\}", style)
    return [dict(re.findall(r"--([a-z]+):\s*(#[0-9a-f]{6})", block)) for block in blocks]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, 1.4.3."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
