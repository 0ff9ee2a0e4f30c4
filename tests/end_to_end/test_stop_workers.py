"""`up --workers 2` is ended by the process that `pullcord status` names, or all of it at once."""

import os
import signal
from pathlib import Path

import pytest

from proxy import control_client
from tests.end_to_end import origin
from tests.end_to_end.running import Proxy
from tests.end_to_end.test_kill_workers import POLICY, World, until


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["the one named", "everybody"])
def test_the_process_that_is_named_ends_all_and_nobody_fails(tmp_path: Path, whom: str) -> None:
    """5 seconds each. Whoever stops a service stops each of its processes, in any order. Its data
    lie deeper than the address of a socket is long."""
    folder = tmp_path / ("deep" * 30)
    for made in (tmp_path / "origin", folder):
        made.mkdir()
    with origin.serving(tmp_path / "origin") as upstream:
        proxy = Proxy(folder, POLICY, upstream.ca, upstream.routes, workers=2)
        proxy.start()
        try:
            world = World(proxy, upstream, proxy.mint())
            world.both()
            state, supervisor = world.status(), proxy.process
            assert supervisor is not None
            assert (state["proxy_pid"], state["pid"] in world.children()) == (supervisor.pid, True)
            assert f"  pid {supervisor.pid}  " in proxy.cli("status")
            for pid in world.children() if whom == "everybody" else []:
                os.kill(pid, signal.SIGTERM)
            os.kill(state["proxy_pid"], signal.SIGTERM)
            until(lambda: supervisor.poll() is not None)
            assert supervisor.returncode == 0
        finally:
            proxy.end(signal.SIGKILL)
        assert "Traceback" not in proxy.log()
    with pytest.raises(control_client.Unreachable):
        world.status()
