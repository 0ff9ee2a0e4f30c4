"""The 3 a.m. card of README, typed beside a real proxy: it prints what the card says."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ledger.states import CallState
from policies.call import Effect
from policies.verdict import Action, Reason
from proxy import environment
from proxy.cli.main import cli
from tests.manual import ROOT, blocks, section
from tests.test_readme import transcript

PROGRAM = (sys.executable, "-c", "from proxy.cli.main import main; main()")
START_SECONDS = 30.0
CARD = section("The 3 a.m. card")


@pytest.fixture
def pullcord(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CliRunner]:
    """A shell where the shipped policy is, beside a real proxy in a process of its own."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    for name in list(os.environ):
        if name.startswith("PULLCORD_") or name in environment.NAMES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("PULLCORD_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    runner = CliRunner()
    with (tmp_path / "log").open("w") as log:
        proxy = subprocess.Popen(
            [*PROGRAM, "up", "--listen", "127.0.0.1:0"], env=environ, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while "  127.0.0.1:" not in runner.invoke(cli, ["status"]).stdout:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        yield runner
    finally:
        proxy.terminate()
        proxy.wait(START_SECONDS)


def told(lines: list[str]) -> list[str]:
    """Without what differs from one night to the next."""
    changing = (
        (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
        (r" by \w+ since", " by WHO since"),
        (r"up \d+s  pid \d+  127\.0\.0\.1:\d+  policy [0-9a-f]{12} \(\S+/config/", "up config/"),
        (r" \(\d+ writes?: outcome unknown: [^)]*\)", ""),
        (r"\d+ calls? (cut|refused)|\d+ in flight", "SOME"),
        (r"after [\d:.]+Z; 1 engine acknowledged in \d+ ms", "after TIME"),
        (r"runs \d+  calls \d+/min  refused \d+/min", "RATES"),
        (r"tool calls \d+/min  writes \d+/min  \$[\d.]+/h  progress [\d.]+", "SIGNALS"),
        (r"\(\d+ active runs?\)", "(RUNS)"),
    )
    for pattern, plain in changing:
        lines = [re.sub(pattern, plain, line) for line in lines]
    return [line.rstrip() for line in lines]


@pytest.mark.slow
def test_the_3_am_card_prints_what_it_says(pullcord: CliRunner) -> None:
    """About 4 seconds. The rows of calls are from another night: here nobody calls."""
    compared = set()
    for block in blocks("console", CARD):
        for typed, expected in transcript(block):
            words = shlex.split(typed)[1:]
            if words[:2] == ["ledger", "tail"]:
                continue  # it follows the record without end
            result = pullcord.invoke(cli, words)
            assert result.exit_code == 0, result.output
            printed = result.stdout.splitlines()
            if words[0] == "status":
                expected = expected[: len(printed)]
            if words[0] == "ledger":
                printed, expected = printed[0].split(), "".join(expected[:1]).split()
            if expected:
                assert told(printed) == told(expected), typed
                compared.add(words[0])
    assert compared == {"status", "halt", "freeze", "ledger", "resume"}


def test_the_rows_of_calls_on_the_card_are_in_the_ledgers_words() -> None:
    rows = [line.split()[5:9] for line in CARD.splitlines() if line.startswith("01a20")]
    effects, decisions, reasons, states = map(set, zip(*rows, strict=True))
    assert effects <= set(Effect)
    assert decisions <= set(Action)
    assert reasons <= set(Reason)
    assert states <= set(CallState)
