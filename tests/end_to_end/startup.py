"""`pullcord up` where it must not serve: how it ended, and what it said."""

import subprocess
import sys

from tests.end_to_end.running import PULLCORD, Proxy

ENDS_WITHIN_SECONDS = 30.0
UNUSABLE = 2


def sentence_of(proxy: Proxy, *flags: str) -> str:
    """The one line that `up` says when something is unusable. Fails when it serves."""
    ended = subprocess.run(
        [sys.executable, "-c", PULLCORD, "up", *flags],
        cwd=proxy.folder,
        env=proxy._environment,
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_SECONDS,
        check=False,
    )
    lines = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout) == (UNUSABLE, ""), lines[-5:]
    assert len(lines) == 1, lines
    assert lines[0].startswith("pullcord: ")
    return lines[0].removeprefix("pullcord: ")
