"""Operators: who may act through the control port, made, listed and dismissed.

As in operations.py, each act runs inside a transaction of whoever owns the store.
"""

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger.store import Operator, Store
from ledger.tokens import Token
from proxy import operations
from proxy.control_access import Role
from proxy.control_client import TOKEN_FILE
from proxy.control_service import Service, act
from proxy.control_socket import ControlError
from proxy.identity import NAME, new_token, token_hash

LOCAL = "local"
"""The operator whose token stands in DATA/operator.token."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A new operator and the secret, which is shown once and stored nowhere."""

    operator: Operator
    secret: str = field(repr=False)


def enroll(store: Store, name: str, role: Role, actor: str, at_us: int) -> Enrolled:
    """Make an operator's token. Raises OperationError, and LedgerError for a name in use."""
    if not NAME.fullmatch(name):
        raise operations.OperationError(
            "an operator's name may hold A-Z a-z 0-9 . _ ~ - only, 256 at most"
        )
    operations.check_no_secret("the operator's name", name)
    secret = new_token()
    made = store.enroll(name, role, token_hash(secret), actor=actor, at_us=at_us)
    return Enrolled(made, secret)


def revoke(store: Store, name: str, actor: str, at_us: int) -> tuple[list[Token], list[Operator]]:
    """End what goes by this name or id: a run's tokens with what they minted, an operator's token.

    Raises NotFound when there is neither.
    """
    tokens = store.revoke(name, actor=actor, at_us=at_us)
    named = [
        each.name
        for each in store.operators()
        if each.revoked_us is None and name in (each.name, each.id)
    ]
    gone = [store.dismiss(each, actor=actor, at_us=at_us) for each in named]
    if not tokens and not gone:
        raise operations.NotFound(
            f"no valid token has the id, the run or the name {name!r}; try: pullcord token list"
        )
    return tokens, [each for each in gone if each is not None]


def operator_as_json(operator: Operator) -> dict[str, Any]:
    revoked_us = operator.revoked_us
    return {
        "id": operator.id,
        "name": operator.name,
        "role": operator.role,
        "actor": operator.actor,
        "created": operations.timestamp(operator.created_us),
        "revoked": None if revoked_us is None else operations.timestamp(revoked_us),
    }


async def ensure_one(service: Service) -> None:
    """Where no operator lives, make one for this machine's admin, with its token in DATA.

    Raises ControlError and LedgerError.
    """
    if any(each.revoked_us is None for each in await act(service, lambda store: store.operators())):
        return
    path, secret = service.settings.data / TOKEN_FILE, new_token()
    now_us = service.clock.now_us()
    # The file first: a token that nobody holds could never be replaced, one that opens nothing is
    # made again at the next start.
    try:
        await asyncio.to_thread(_write, path, secret)
    except OSError as error:
        raise ControlError(f"cannot write {path}: {error.strerror}") from error
    await act(
        service,
        lambda store: store.enroll(
            LOCAL, Role.ADMIN, token_hash(secret), actor=f"file:{TOKEN_FILE}", at_us=now_us
        ),
    )


def _write(path: Path, secret: str) -> None:
    """Whole or not at all, and for its owner only, also in place of a file that others can read."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(unfinished, flags, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{secret}\n")
            file.flush()
            os.fsync(descriptor)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
