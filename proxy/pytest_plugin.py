"""The pytest plugin: the fixture `replay`, by which the exported test of an incident runs.

pytest loads this into every session where pullcord is installed, so the rest is imported when a
test asks for it. No network, no clock, no ledger: only the files beside the test.
"""

from pathlib import Path
from typing import NoReturn

import pytest


class Replay:
    """The test in one directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self) -> None:
        """Fails with what `pullcord replay` prints, unless policy.yaml keeps expect.yaml."""
        __tracebackhide__ = True
        from policies.document import MistakenFileError
        from proxy.cli.terminal import escaped
        from proxy.regression import as_lines, judged, policy_in
        from proxy.regression_files import read
        from proxy.regression_folder import RegressionError

        try:
            case = read(self.folder)
            found = judged(case, policy_in(case))
        except (MistakenFileError, RegressionError) as error:
            _fail(escaped(str(error), keep="\n"))
        if not found.kept:
            _fail("\n".join(map(escaped, as_lines(found))))


@pytest.fixture
def replay(request: pytest.FixtureRequest) -> Replay:
    """The incident in the directory of the test: `replay.check()`."""
    return Replay(request.path.parent)


def _fail(why: str) -> NoReturn:
    __tracebackhide__ = True
    pytest.fail(why, pytrace=False)
