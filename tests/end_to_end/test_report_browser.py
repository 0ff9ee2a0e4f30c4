"""The report in a real browser that can ask nobody: what it shows, and that all can read it."""

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.report_html import page
from tests.end_to_end.browser import NAMES, Tab, browsing, installed
from tests.ledger.conftest import template, world
from tests.ledger.world import World
from tests.proxy.reported import HOSTILE, PROMPT, a_runaway, written

__all__ = ["template", "world"]

ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / ".ci" / "node" / "node_modules" / "axe-core" / "axe.min.js"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
async def tab(need: Callable[[str], str], tmp_path: Path) -> AsyncIterator[Tab]:
    program = installed() or need(NAMES[0])
    async with browsing(program, tmp_path / "browser") as made:
        yield made


@pytest.fixture
def report(world: World, tmp_path: Path) -> Path:
    a_runaway(world)
    return kept(tmp_path, page(written(world)))


def kept(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "report.html"
    file.write_text(text, "utf-8")
    return file


async def test_it_is_read_without_scripts_and_without_a_network(
    tab: Tab, report: Path, tmp_path: Path
) -> None:
    """About 3 seconds."""
    await tab.open(report, scripts=False)
    seen = str(await tab.value("document.body.innerText"))
    for words in ("Incident report", PROMPT, "Action items", "call 10", "halt:run:r1"):
        assert words in seen
    assert (
        await tab.value("document.querySelector('svg.chart').getBoundingClientRect().width") > 600
    )
    assert (await tab.picture(tmp_path / "report.png", whole=True)).startswith(PNG)
    assert (await tab.print()).startswith(b"%PDF")
    assert tab.asked == [report.as_uri()]
    assert tab.said == []


async def test_a_hostile_one_asks_for_nothing_and_runs_nothing(
    tab: Tab, world: World, tmp_path: Path
) -> None:
    """About 3 seconds."""
    a_runaway(world, hostile=HOSTILE)
    file = kept(tmp_path, page(written(world)))
    await tab.open(file)
    assert "alert(1)" in str(await tab.value("document.body.innerText"))
    assert await tab.value("document.scripts.length + document.images.length") == 0
    assert tab.asked == [file.as_uri()]
    assert tab.said == []
    assert (await tab.picture(tmp_path / "hostile.png", whole=True)).startswith(PNG)


async def test_its_policy_stops_what_would_come_to_life(tab: Tab, report: Path) -> None:
    """The check of the check: a page with a script and an image in it. About 2 seconds."""
    text = report.read_text("utf-8").replace(
        "</main>",
        "<script>document.title = 'run'</script><img src='https://evil.example/x.png'></main>",
    )
    report.write_text(text, "utf-8")
    await tab.open(report)
    assert await tab.value("document.title") != "run"
    assert tab.asked[0] == report.as_uri()
    assert len(tab.said) >= 2
    assert all("Content Security Policy" in one for one in tab.said)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_all_can_read_it(
    tab: Tab, node: str, report: Path, tmp_path: Path, scheme: str
) -> None:
    """By axe-core, which looks at what the browser made of it. About 4 seconds."""
    if not AXE.is_file():
        pytest.fail("axe-core is not installed: run .ci/clients")
    await tab.look(scheme=scheme)
    await tab.open(report)
    await tab.value(AXE.read_text("utf-8"))
    found = await tab.value(
        "axe.run().then(all => ({passed: all.passes.map(one => one.id), failed: all.violations.map("
        "one => ({id: one.id, at: one.nodes.map(node => node.html)}))}))",
        promised=True,
    )
    assert found["failed"] == []
    assert {"color-contrast", "heading-order", "region", "svg-img-alt"} <= set(found["passed"])
    await tab.picture(tmp_path / f"{scheme}.png")


async def test_on_a_telephone_nothing_hangs_out(tab: Tab, report: Path, tmp_path: Path) -> None:
    """About 2 seconds."""
    size: dict[str, Any] = {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    await tab.tell("Emulation.setDeviceMetricsOverride", **size)
    await tab.open(report)
    wide = await tab.value("document.documentElement.scrollWidth")
    assert wide <= 380
    assert re.match(rb"\x89PNG", await tab.picture(tmp_path / "telephone.png"))
