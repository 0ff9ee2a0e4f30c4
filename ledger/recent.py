"""What was asked for lately, so that it is not read again. It is no more than what the database
holds, and so what nobody asks for is given back.
"""

KEPT_US = 60_000_000  # at the least, and twice that at the most


class Recent[Key, Value]:
    """At most `size_max` values; beyond that those go sooner that were not asked for lately."""

    def __init__(self, size_max: int) -> None:
        self._part_max = size_max // 2
        self._newer: dict[Key, Value] = {}
        self._older: dict[Key, Value] = {}  # not asked for since `_turned_us`
        self._turned_us = 0

    def __len__(self) -> int:
        return len(self._newer) + len(self._older)

    def get(self, key: Key) -> Value | None:
        value = self._newer.get(key)
        if value is None:
            value = self._older.get(key)
            if value is not None:
                self[key] = value
        return value

    def __setitem__(self, key: Key, value: Value) -> None:
        if len(self._newer) >= self._part_max and key not in self._newer:
            self._turn()
        self._newer[key] = value
        self._older.pop(key, None)

    def turn(self, now_us: int) -> None:
        """Give back what nobody asked for for so long, also where a clock was set back. The calls
        of one moment come in any order."""
        if abs(now_us - self._turned_us) >= KEPT_US:
            self._turned_us = now_us
            self._turn()

    def _turn(self) -> None:
        self._older, self._newer = self._newer, {}

    def clear(self) -> None:
        self._newer.clear()
        self._older.clear()
