"""`pullcord up` where it must not serve: how it ended, and what it said."""

import subprocess
import sys
import threading

from tests.end_to_end.running import PULLCORD, Proxy

ENDS_WITHIN_SECONDS = 30.0
UNUSABLE = 2


def sentence_of(proxy: Proxy, *flags: str) -> str:
    """The one line that `up` says when something is unusable. Fails when it serves."""
    with subprocess.Popen(
        [sys.executable, "-c", PULLCORD, "up", *flags],
        cwd=proxy.folder,
        env=proxy._environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        watchdog = threading.Timer(ENDS_WITHIN_SECONDS, process.kill)
        watchdog.start()
        serves = process.stdout.readline() if process.stdout else ""
        if serves:
            process.kill()
        said = process.communicate()[1]
        watchdog.cancel()
    assert not serves, f"it serves: {serves}"
    lines = said.splitlines()
    assert process.returncode == UNUSABLE, lines[-5:]
    assert len(lines) == 1, lines
    assert lines[0].startswith("pullcord: ")
    return lines[0].removeprefix("pullcord: ")
