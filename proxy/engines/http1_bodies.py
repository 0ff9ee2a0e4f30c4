"""A request's body that is judged whole, on its way here: what is too much of it is dropped."""

from proxy import head
from proxy.engines.arriving import Arriving
from proxy.engines.http1_framing import Chunked, Framing, Sized


def framing_of(length_bytes: int | None) -> Framing:
    """None is for chunks."""
    return Chunked() if length_bytes is None else Sized(length_bytes)


class Body:
    """Fed with what its client sends. `came_bytes` is all of its content, kept or not."""

    def __init__(self, arriving: Arriving, length_bytes: int | None, bytes_max: int) -> None:
        self.arriving = arriving
        self.came_bytes = 0
        self._bytes_max = bytes_max
        self._framing = framing_of(length_bytes)

    @property
    def has_ended(self) -> bool:
        return self._framing.has_ended

    def feed(self, data: bytes) -> bytes:
        """What follows its end. Raises BrokenChunks."""
        content, rest = self._framing.feed(data)
        if content:
            self.came_bytes += len(content)
            self._take(content)
        else:
            self.arriving.touch()
        return rest

    def _take(self, content: bytes) -> None:
        if self.came_bytes > self._bytes_max or not self.arriving.take(content):
            self.arriving.touch()
            self.arriving.release()

    def fault(self) -> head.Fault | None:
        """Why not all of it was kept; None where it was."""
        is_too_large = self.came_bytes > self._bytes_max
        return self.arriving.too_much(self._bytes_max, is_too_large=is_too_large)
