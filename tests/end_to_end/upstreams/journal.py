"""What the upstreams were asked: one line of JSON a request, written before it is answered.

The upstreams run in processes of their own and append; the tests read. This is the count that
every "reached the upstream" of the tests rests on.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it arrived. Header names are lower case."""

    host: str
    method: str
    path: str
    headers: dict[str, str]

    @property
    def run(self) -> str | None:
        return self.headers.get("x-run-id")

    @property
    def tenant(self) -> str | None:
        return self.headers.get("x-tenant-id")


@dataclass(frozen=True, slots=True)
class Journal:
    path: Path

    def note(self, host: str, method: str, path: str, headers: Iterable[tuple[str, str]]) -> None:
        """One write, so that lines of several processes do not mix."""
        named = {name.lower(): value for name, value in headers}
        line = json.dumps({"host": host, "method": method, "path": path, "headers": named})
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)

    def read(self, start: int = 0) -> Iterator[Seen]:
        """Every request from the line `start` on."""
        for line in self._lines()[start:]:
            yield Seen(**json.loads(line))

    def __len__(self) -> int:
        return len(self._lines())

    def _lines(self) -> list[str]:
        """Those that are whole: who reads while another process writes may see half of the last."""
        return self.path.read_text().split("\n")[:-1] if self.path.exists() else []
