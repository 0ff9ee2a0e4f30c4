"""README and the pages of docs/, as the tests read them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = {path: path.read_text("utf-8") for path in (README, *sorted(ROOT.glob("docs/*.md")))}
MANUAL = "\n".join(PAGES.values())


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", MANUAL, re.M | re.S)
    assert found, f"neither README nor docs/ has a section {title!r}"
    return found[1]


def blocks(language: str, text: str = MANUAL) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def table(title: str) -> list[list[str]]:
    """The cells of a section's table, without its titles."""
    rows = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def outside(text: str) -> str:
    """Without what stands in blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def code(text: str) -> list[str]:
    """What stands in backticks within lines."""
    return re.findall(r"`([^`\n]+)`", outside(text))


def anchors(text: str) -> set[str]:
    """Where a link into a page may lead."""
    titles = re.findall(r"^#+ (.*)$", outside(text), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
