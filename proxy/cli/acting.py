"""An operator's act, through the running proxy or, when none runs, on its ledger directly.

A cord has a third way: the file HALT, when neither the proxy nor its ledger can take it.
"""

import contextlib
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.cli.reading import DATABASE
from proxy.cli.terminal import Failure, warn
from proxy.control_client import ANSWER_SECONDS, HELD, Refused, Unreachable, ask

if TYPE_CHECKING:
    from ledger.store import Store
    from policies.policy import Policy
    from policies.verdict import Pull
    from proxy.clock import Clock

    Direct = Callable[[Store, str, int], dict[str, Any]]
    """Given the store, who acts and the time; gives what the proxy would have answered."""
    Alone = Callable[[Clock, str], dict[str, Any]]
    """The same for an act that opens the store itself."""

HELD_SECONDS = 3.0  # a decider that died is back and has recovered within that
PROBE_SECONDS = 2.0  # a proxy that lives says so at once, however much it has to do
LATCH_SECONDS = 2.0  # a proxy that lives looks into the file HALT four times a second
_LOOK_SECONDS = 0.1

# What to do next, when only the file HALT holds a cord.
_FAILING = (
    "until its ledger works again nothing new passes; calls in flight are cut within a second, and "
    "the cord is latched before anything passes again. If one goes on, end the proxy{kill}"
)
_HELD_ONLY = (
    "calls in flight are cut and nothing passes by it; should the proxy end before its ledger "
    "works again, pull it once more"
)
_DEAD = "mend the ledger, then start: pullcord up; the cord is latched before anything passes"
_MUTE = "it obeys when it wakes; to be sure, end it, and nothing passes{kill}"
_ENDLESS = "the file knows no --for, so this stands until you release it; "
_UNUSABLE, _UNREACHABLE = 2, 5
_LOCK = "ledger.lock"  # as ledger/connection.py has it, which is slow to import


def act(data: Path, path: str, body: dict[str, Any], directly: "Direct") -> dict[str, Any]:
    """POST to the proxy, or `directly` on the store. Raises what either raises, and Failure."""
    return act_alone(data, path, body, _opening(data, directly))


def act_alone(
    data: Path,
    path: str,
    body: dict[str, Any],
    alone: "Alone",
    answer_seconds: float = ANSWER_SECONDS,
    *,
    counts_later: bool = True,
) -> dict[str, Any]:
    """POST to the proxy, or `alone` when none runs. While another process holds the store the
    proxy may be starting again, and is asked once more. `counts_later` is whether it is of use only
    when a proxy starts. Raises Failure when the proxy stays mute."""
    deadline = time.monotonic() + HELD_SECONDS
    while True:
        try:
            answer: dict[str, Any] = ask(data, "POST", path, body, answer_seconds)
            return answer
        except Unreachable as dead:
            done, held = _alone(alone)
            if done is not None:
                if counts_later:
                    _warn_alone(data)
                return done
            if time.monotonic() > deadline:
                raise _mute(dead, held) from None
            time.sleep(_LOOK_SECONDS)


def on_store(data: Path, dead: Unreachable, directly: "Direct") -> dict[str, Any]:
    """Open the ledger, act once, close it. Raises Failure while a mute proxy holds it."""
    done, held = _alone(_opening(data, directly))
    if done is None:
        raise _mute(dead, held)
    return done


def pull(
    data: Path, body: dict[str, Any], wanted: "Callable[[Clock, str], Pull]"
) -> dict[str, Any]:
    """Pull a cord by whatever still works: the proxy, the store, the file HALT.

    `wanted` is the cord, given the clock and who pulls it. Raises what `operations.check` does, and
    Failure when nothing was done.
    """

    def alone(clock: "Clock", actor: str) -> dict[str, Any]:
        from proxy.operations import check
        from proxy.pulling import pull_on_store

        cord, policy = wanted(clock, actor), policy_or_none()
        check(policy, cord)
        check_place(data)
        return pull_on_store(data, cord, policy, clock)

    deadline = time.monotonic() + HELD_SECONDS
    while True:
        try:
            ask(data, "GET", "/healthz", timeout_seconds=PROBE_SECONDS)
            answer: dict[str, Any] = ask(data, "POST", "/v1/pull", body)
            return answer
        except Refused as refused:
            if refused.status < 500:  # it was understood, and cannot be
                raise
            return _by_file(data, wanted, f"the proxy cannot record: {refused}", _FAILING)
        except Unreachable as dead:
            from proxy.operations import OperationError

            try:
                done, held = _alone(alone)
            except (OperationError, Failure):
                raise
            except Exception as error:  # whatever it is, a cord has one more way
                return _by_file(data, wanted, f"no proxy runs, and {error}", _DEAD)
            if done is not None:
                _warn_alone(data)
                return done
            if time.monotonic() > deadline:
                return _by_file(data, wanted, f"{dead}; {held}", _MUTE)
            time.sleep(_LOOK_SECONDS)


def _by_file(
    data: Path, wanted: "Callable[[Clock, str], Pull]", why: str, then: str
) -> dict[str, Any]:
    """By the file HALT, which needs nothing else. Raises Failure."""
    from proxy import operations
    from proxy.clock import SystemClock
    from proxy.letterbox import post

    clock = SystemClock()
    cord = wanted(clock, _actor())
    operations.check(policy_or_none(), cord)
    try:
        path = post(data, cord)
    except OSError as error:
        if HELD in why:
            place = {"file": "", "why": why, "next": _HELD_ONLY}
            return {**_answered(cord, None), **place}
        raise Failure(
            f"NOT PULLED: {why}; and {error.filename or data} cannot be written: {error.strerror}. "
            + _last_resort(data),
            _UNUSABLE,
        ) from None
    pid, proof = _owner_pid(data), _latched(data, cord)
    nobody = {"up": False, "data": str(data)} if then == _DEAD else {}
    kill = f": kill -9 {pid}" if pid else ""
    endless = _ENDLESS if cord.until_us else ""
    following = endless + ("" if proof else then.format(kill=kill))
    place = {"file": str(path), "why": why, "next": following}
    return {**_answered(replace(cord, until_us=None), proof), **place, **nobody}


def _answered(cord: "Pull", proof: dict[str, Any] | None) -> dict[str, Any]:
    from proxy import operations

    return {
        "pulled": operations.pull_as_json(cord),
        "changed": True,
        "cut": 0,
        "undo": operations.undo_command(cord),
        "acknowledged": 0,
        "acknowledged_ms": 0,
        "killed": [],
        "proof": proof,
    }


def _latched(data: Path, cord: "Pull") -> dict[str, Any] | None:
    """The proof, once whoever holds the ledger has taken the cord out of the file; else None."""
    from ledger.connection import open_reader
    from ledger.errors import LedgerError
    from ledger.queries import pulls
    from proxy.pulling import proof_of

    deadline = time.monotonic() + LATCH_SECONDS
    try:
        with contextlib.closing(open_reader(data, busy_seconds=0)) as reader:
            while cord.rule not in {pulled.rule for pulled in pulls(reader)}:
                if time.monotonic() > deadline:
                    return None
                time.sleep(_LOOK_SECONDS)
    except LedgerError:
        return None
    return proof_of(data, cord)


def _last_resort(data: Path) -> str:
    pid = _owner_pid(data)
    touch = f"touch {shlex.quote(str(data / 'HALT'))}"
    if pid is None:
        return f"As the user that runs pullcord, or as root, halt everything: {touch}"
    return (
        f"Halt everything by a signal: kill -USR1 {pid}; or by the file, as that process's user or "
        f"root: {touch}; or end it, and nothing passes: kill {pid}"
    )


def _owner_pid(data: Path) -> int | None:
    """The process that holds the ledger, if it lives and we may know."""
    from proxy.process import started

    try:
        pid = int((data / _LOCK).read_text("ascii"))
    except (OSError, ValueError):
        return None
    return pid if started(pid) else None


def _alone(alone: "Alone") -> tuple[dict[str, Any] | None, str]:
    """What it answers, or None and who holds the ledger meanwhile."""
    from ledger.errors import LedgerBusy
    from proxy.clock import SystemClock

    try:
        return alone(SystemClock(), _actor()), ""
    except LedgerBusy as busy:
        return None, str(busy)


def _opening(data: Path, directly: "Direct") -> "Alone":
    def alone(clock: "Clock", actor: str) -> dict[str, Any]:
        from proxy.operations import opened

        with opened(data, clock.now_us) as store:
            return directly(store, actor, clock.now_us())

    return alone


def _actor() -> str:
    from proxy.control_socket import user_name

    return user_name(os.geteuid())


def check_place(data: Path) -> None:
    """Neither a proxy nor a ledger: whatever runs, it is not here. Raises Failure."""
    if not (data / DATABASE).exists():
        raise Failure(
            f"nothing was done: neither a proxy nor a ledger is in {data}; name the directory of "
            "the proxy: --data DIR",
            _UNREACHABLE,
        )


def _warn_alone(data: Path) -> None:
    with contextlib.suppress(OSError):  # it is done, whether or not anybody reads this
        warn(
            f"no proxy runs on {data}: this is in its ledger and counts when one starts; a proxy "
            "with another data directory goes on: --data DIR"
        )


def _mute(dead: Unreachable, held: str) -> Failure:
    return Failure(f"{dead}; and its ledger cannot be written meanwhile: {held}", _UNREACHABLE)


def policy_or_none(config: str | None = None) -> "Policy | None":
    """The policy as it stands in the file, for an act without a proxy; None when it is unusable."""
    from policies.load import PolicyError, load_file
    from proxy.cli.places import config_directory

    try:
        return load_file(config_directory(config) / "policy.yaml")
    except (Failure, PolicyError, OSError):
        return None
