"""The HTTP/1.1 engine starts without mitmproxy, and mitmproxy's without it."""

import subprocess
import sys

import pytest

LOADED = """
import sys
from proxy import serve
engine = serve._engine(sys.argv[1])
print(engine.__name__, *sys.modules)
"""


@pytest.mark.parametrize(
    "setting, engine, others",
    [
        ("http1", "Http1Engine", {"mitmproxy", "h2", "OpenSSL"}),
        ("mitmproxy", "MitmEngine", {"httptools", "uvloop", "proxy.engines.http1"}),
    ],
)
def test_only_the_engine_that_is_chosen_is_loaded(
    setting: str, engine: str, others: set[str]
) -> None:
    named, *loaded = subprocess.run(
        [sys.executable, "-c", LOADED, setting], capture_output=True, text=True, check=True
    ).stdout.split()
    assert named == engine
    assert not others & set(loaded)
