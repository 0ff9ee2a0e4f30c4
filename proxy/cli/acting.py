"""An operator's act, through the running proxy or, when none runs, on its ledger directly."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.cli.terminal import Failure, warn
from proxy.control_client import Unreachable, ask

if TYPE_CHECKING:
    from ledger.store import Store
    from policies.policy import Policy

    Direct = Callable[[Store, str, int], dict[str, Any]]
    """Given the store, who acts and the time; gives what the proxy would have answered."""


def act(data: Path, path: str, body: dict[str, Any], directly: "Direct") -> dict[str, Any]:
    """POST to the proxy, or `directly` on the store. Raises what either raises, and Failure."""
    try:
        answer: dict[str, Any] = ask(data, "POST", path, body)
    except Unreachable as dead:
        answer = on_store(data, dead, directly)
        warn(f"no proxy runs on {data}: this is in its ledger and counts when one starts")
    return answer


def on_store(data: Path, dead: Unreachable, directly: "Direct") -> dict[str, Any]:
    """Open the ledger, act once, close it. Raises Failure while a mute proxy holds it."""
    import os

    from ledger.errors import LedgerBusy
    from proxy.clock import SystemClock
    from proxy.control_socket import user_name
    from proxy.operations import opened

    clock = SystemClock()
    try:
        with opened(data, clock.now_us) as store:
            return directly(store, user_name(os.geteuid()), clock.now_us())
    except LedgerBusy as busy:
        raise Failure(f"{dead}; and its ledger cannot be written meanwhile: {busy}", 5) from None


def policy_or_none(config: str | None = None) -> "Policy | None":
    """The policy as it stands in the file, for an act without a proxy; None when it is unusable."""
    from policies.load import PolicyError, load_file
    from proxy.cli.places import config_directory

    try:
        return load_file(config_directory(config) / "policy.yaml")
    except (Failure, PolicyError, OSError):
        return None
