"""What is remembered of runs, most of which are quiet: those are packed, and take half the room.
The few that were heard of last never are: a small fleet has no work with it.

Nothing of it is lost: a run that is heard of again is what it was, however long it was quiet. So no
pause helps an agent, and what is found does not depend on what is packed.
"""

import pickle  # noqa: TID251 - neither stored nor sent: it never leaves the memory of its process
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Any, NamedTuple, Protocol

from policies.detectors.calm import Calm

QUIET_US = 60_000_000  # whoever calls less often can wait for the tenth of a millisecond
AWAKE_MAX = 256  # so many take no room to speak of, however long they are quiet

_LEVEL = 1  # the most of it are digests, which more work makes no shorter
_RAW = -15  # without a head and a checksum


class Heard(Protocol):
    """`root` is the topmost run above it, `calm` what may come of its calls (calm.py), `heard_us`
    when it was last heard of."""

    root: str
    calm: Calm
    heard_us: int

    def rest(self, now_us: int) -> None:
        """Let go of what counts no more."""


class _Quiet(NamedTuple):
    root: str
    calm: Calm
    packed: bytes


class Resting[Run: Heard]:
    """Runs by their names, in the order in which they were last heard of. `like` is one as all of
    them begin; `shared` is what many refer to and nobody changes."""

    def __init__(self, like: Run, shared: Iterable[object]) -> None:
        self._awake: OrderedDict[str, Run] = OrderedDict()
        self._quiet: OrderedDict[str, _Quiet] = OrderedDict()
        self._shared = tuple(shared)
        self._numbers = {id(one): number for number, one in enumerate(self._shared)}
        self._common = self._pickled(like)  # what stands in each need not be packed with each

    def __len__(self) -> int:
        return len(self._awake) + len(self._quiet)

    def __iter__(self) -> Iterator[str]:
        yield from self._quiet
        yield from self._awake

    def get(self, name: str) -> Run | None:
        run = self._awake.get(name)
        if run is None:
            quiet = self._quiet.pop(name, None)
            if quiet is not None:
                run = self._awake[name] = self._unpacked(quiet.packed)
        return run

    def calm(self, name: str) -> Calm | None:
        """A run's, which stays packed if it is; None where the run is not known."""
        run = self._awake.get(name) or self._quiet.get(name)
        return None if run is None else run.calm

    def __setitem__(self, name: str, run: Run) -> None:
        """A new one."""
        self._awake[name] = run

    def move_to_end(self, name: str) -> None:
        """One that `get` has found was heard of now."""
        self._awake.move_to_end(name)

    def rest(self, now_us: int) -> None:
        """Pack the run that was heard of longest ago, if it is quiet. With every step one, and so
        no fewer than begin."""
        if len(self._awake) <= AWAKE_MAX:
            return
        name, run = next(iter(self._awake.items()), ("", None))
        if run is not None and now_us - run.heard_us > QUIET_US:
            run.rest(now_us)
            root = name if run.root == name else run.root  # mostly: one text for both
            self._quiet[name] = _Quiet(root, run.calm, self._packed(run))
            del self._awake[name]

    def pop_oldest(self) -> None:
        """Forget the run that was heard of longest ago."""
        (self._quiet or self._awake).popitem(last=False)

    def pop(self, name: str) -> None:
        self._awake.pop(name, None)
        self._quiet.pop(name, None)

    def pop_tree(self, root: str) -> None:
        """Forget the run of this name, and those below it."""
        for known in (self._awake, self._quiet):
            for name in [name for name, run in known.items() if run.root == root]:
                del known[name]
        self.pop(root)

    def clear(self) -> None:
        self._awake.clear()
        self._quiet.clear()

    def _packed(self, run: Run) -> bytes:
        pack = zlib.compressobj(_LEVEL, wbits=_RAW, zdict=self._common)
        return pack.compress(self._pickled(run)) + pack.flush()

    def _pickled(self, run: Run) -> bytes:
        out = BytesIO()
        _Pickler(out, self._numbers).dump(run)
        return out.getvalue()

    def _unpacked(self, packed: bytes) -> Any:
        unpack = zlib.decompressobj(wbits=_RAW, zdict=self._common)
        return _Unpickler(BytesIO(unpack.decompress(packed)), self._shared).load()


class _Pickler(pickle.Pickler):
    """Of what is shared only the number is told."""

    def __init__(self, out: BytesIO, numbers: dict[int, int]) -> None:
        super().__init__(out, pickle.HIGHEST_PROTOCOL)
        self._numbers = numbers

    def persistent_id(self, obj: Any) -> int | None:
        return self._numbers.get(id(obj))


class _Unpickler(pickle.Unpickler):
    def __init__(self, told: BytesIO, shared: tuple[object, ...]) -> None:
        super().__init__(told)
        self._shared = shared

    def persistent_load(self, number: int) -> object:
        return self._shared[number]
