"""The upstream of upstreams/endless.py, as a test holds it: where it listens, what it read when."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.end_to_end import certificates
from tests.end_to_end.origin import HOST
from tests.end_to_end.running import ROOT

DEAF = "deaf.origin.example"

POLICY = """\
version: 1
tools:
  orders: {match: {host: api.origin.example, path: "/orders/**"}, allow_addresses: [127.0.0.0/8]}
  refunds: {match: {host: api.origin.example, path: "/refunds/**"}, allow_addresses: [127.0.0.0/8]}
  streams: {match: {host: api.origin.example}, allow_addresses: [127.0.0.0/8]}
  deaf: {match: {host: deaf.origin.example}, allow_addresses: [127.0.0.0/8]}
ceilings:
  - {per: run, count: calls, unbounded: true}
  - {per: tenant, count: calls, unbounded: true}
  - {per: run, count: in_flight, unbounded: true}
  - {per: tenant, count: in_flight, unbounded: true}
"""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request, or a WebSocket's message; `at_ns` is when its first byte was read (monotonic)."""

    at_ns: int
    method: str
    path: str
    run: str


@dataclass(frozen=True, slots=True)
class Endless:
    ca: Path
    routes: dict[str, int]
    _notes: Path

    def mark(self) -> int:
        """A place in what arrived, for `since`."""
        return self._notes.stat().st_size

    def since(self, mark: int = 0) -> list[Arrived]:
        with self._notes.open("rb") as notes:
            notes.seek(mark)
            whole = notes.read().rpartition(b"\n")[0]
        return [Arrived(**json.loads(line)) for line in whole.splitlines()]


@contextmanager
def serving(folder: Path) -> Iterator[Endless]:
    files = certificates.make(folder, [HOST, DEAF])
    command = [sys.executable, "-m", "tests.end_to_end.upstreams.endless", str(folder)]
    with (
        (folder / "endless.log").open("w") as log,
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            if process.stdout is None:
                raise RuntimeError("an upstream without an output")
            ports = json.loads(process.stdout.readline())
            routes = {
                f"{HOST}:80": ports["plain"],
                f"{HOST}:443": ports["secure"],
                f"{DEAF}:443": ports["deaf"],
            }
            yield Endless(files.ca, routes, folder / "arrived.jsonl")
        finally:
            process.kill()
