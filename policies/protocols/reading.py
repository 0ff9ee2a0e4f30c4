"""What a protocol reader makes of one request: its operations, as the policy can name them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from policies.call import Effect
from policies.verdict import Reason


def _no_arguments() -> list[object]:
    return [{}]


@dataclass(frozen=True, slots=True)
class Operation:
    """One entry of a request. `names` are held against a tool's glob, all of them.

    Without names no tool can cover it, so it is unlisted. `own` marks the protocol's own
    housekeeping, which belongs to whichever tool stands for the endpoint. `label` is for people.
    `arguments` gives the arguments of each of its names: what conditions are held against.
    """

    names: tuple[str, ...]
    effect: Effect
    label: str
    own: bool = False
    arguments: Callable[[], list[object]] = field(default=_no_arguments, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Reading:
    """`message` is what counts of the body when two calls are compared; None: the body itself."""

    operations: tuple[Operation, ...] = ()
    rpc_id: str | int | None = None
    message: object = None
    fault: Reason | None = None


AMBIGUOUS = Reading(fault=Reason.MALFORMED_REQUEST)


def looks_alike(members: Iterable[str], known: frozenset[str]) -> bool:
    """Whether a key equals a known one but for its case: some readers take it for that one."""
    folded = {key.casefold() for key in known}
    return any(key not in known and key.casefold() in folded for key in members)
