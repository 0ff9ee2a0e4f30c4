"""Keys with what is known under each, up to a number of them: the stalest go first."""

from collections import OrderedDict
from collections.abc import Callable


def kept[K, V](known: OrderedDict[K, V], key: K, make: Callable[[], V], size_max: int) -> V:
    """What is known under the key, made if nothing is, and now the newest."""
    value = known.get(key)
    if value is None:
        value = known[key] = make()
        if len(known) > size_max:
            known.popitem(last=False)
    known.move_to_end(key)
    return value
