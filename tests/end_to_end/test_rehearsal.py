"""An incident from its first call to its regression test, by the commands that people type, with
the proxy killed while it undoes: `pullcord demo --scenario NAME`. It checks itself; here it is
shown that its checks bite, and that what it leaves is what it says.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.demo import scenarios
from proxy.demo.scenarios import SCENARIOS

MAIN = "from proxy.cli.main import main; main()"
SECONDS_MAX = 240.0

pytestmark = pytest.mark.slow


def played(folder: Path, name: str) -> tuple[int, str]:
    """In a directory with a short name: it holds Unix sockets."""
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "demo", "--scenario", name],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.returncode, done.stdout


def pullcord(kept: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *words, "--data", str(kept / "data")],
        cwd=kept,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_whole_incident(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """20 to 60 seconds each."""
    code, out = played(tmp_path, name)
    with capsys.disabled():
        print(f"\n{name}:{out.partition('how long each step took')[2].partition('The books')[0]}")
    assert code == 0, out
    (kept,) = tmp_path.iterdir()
    (one,) = map(json.loads, pullcord(kept, "incident", "list", "--all", "--json").splitlines())
    assert (one["state"], one["closed_because"]) == ("closed", "rehearsed")
    told = json.loads(pullcord(kept, "incident", "show", one["id"], "--json"))
    kinds = {row["type"] for row in told["events"]}
    assert {"incident.opened", "incident.acked", "incident.noted", "incident.proven"} <= kinds
    if SCENARIOS[name].writes:
        assert "incident.notified" in kinds
        undone = pullcord(kept, "ledger", "query", "run:pullcord:undo", "--json").splitlines()
        assert len(undone) >= 10
        assert {json.loads(row)["state"] for row in undone} == {"done"}
    pullcord(kept, "ledger", "verify")
    moved = tmp_path / "alone"
    shutil.copytree(next((kept / "tests" / "incidents").iterdir()), moved)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(moved)],
        cwd=moved, capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_mend_that_mends_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """About 20 seconds. The proof is asked for before the incident is closed."""
    nothing = "per: run, count: calls, at_most: 100000, within: 1m"
    patched = tmp_path / "sitecustomize.py"
    patched.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(scenarios.__file__).parents[2])!r})\n"
        "from dataclasses import replace\n"
        "from proxy.demo import scenarios\n"
        "one = scenarios.SCENARIOS['refund-loop']\n"
        f"scenarios.SCENARIOS['refund-loop'] = replace(one, mend={nothing!r})\n"
    )
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, out = played(folder, "refund-loop")
    assert code == 1
    (wrong,) = re.findall(r"^WRONG  (.*)$", out, re.M)
    assert shlex.split(wrong)[:3] == ["pullcord", "incident", "export-test"]
    assert "ended with 3" in wrong
