"""Of mitmproxy's addons an engine loads the two that it uses."""

import subprocess
import sys

import pytest

LOADED = "import sys, proxy.engines.mitm; print(*sys.modules)"


@pytest.mark.mitmproxy("the addons are mitmproxy's")
def test_a_start_loads_no_addon_that_is_not_used() -> None:
    """What the others need (a web framework, LDAP) would be a third of the time of a start."""
    loaded = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"mitmproxy.addons.proxyserver", "mitmproxy.addons.tlsconfig"} <= set(loaded)
    assert not {"flask", "ldap3", "mitmproxy.addons.onboarding"} & set(loaded)
