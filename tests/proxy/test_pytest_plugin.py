"""The exported directory in an empty folder, under pytest, where pullcord is all there is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proxy.exporting import exported
from tests.proxy.runaway import BEFORE, FEW, refunded

# Nobody makes a socket.
ALONE = """\
import socket


class _None(socket.socket):
    def __init__(self, *_, **__):
        raise OSError("a test of an incident has no network")


socket.socket = _None
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty one, with a copy of the test."""
    made = tmp_path_factory.mktemp("made")
    out = exported(made / "data", refunded(made / "data"), FEW, made / "out")
    empty = tmp_path_factory.mktemp("empty")
    shutil.copytree(out, empty / "refunds")
    (empty / "conftest.py").write_text(ALONE, "utf-8")
    shutil.rmtree(made)
    return empty


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "refunds"],
        cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_it_passes_with_the_mend_and_fails_without(folder: Path) -> None:
    """About 6 seconds: pytest starts three times."""
    good = run(folder)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "1 passed" in good.stdout
    (folder / "refunds" / "policy.yaml").write_text(BEFORE, "utf-8")
    bad = run(folder)
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert "contained  never: 43 of 43 calls" in bad.stdout
    assert "BROKEN     contained by call: at most 4; it is never contained" in bad.stdout
    assert "Traceback" not in bad.stdout
    (folder / "refunds" / "policy.yaml").write_text("version: 1\ntols: {}\n", "utf-8")
    mistaken = run(folder)
    assert mistaken.returncode == 1
    assert "policy.yaml:2:1" in mistaken.stdout
