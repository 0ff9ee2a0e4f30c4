"""What an operator does to a store: pull and release cords, mint and revoke tokens.

Each act runs inside a durable transaction of whoever owns the store: the running proxy does it for
its control socket, the command line for itself when no proxy runs. So both do the same thing.
"""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import category

from ledger.errors import OverCeiling
from ledger.records import Bearer
from ledger.redact import looks_secret
from ledger.store import Store
from ledger.tokens import Grant, Token
from policies.ceilings import usd
from policies.policy import CANARY, RESERVED, UNLISTED, Policy
from policies.verdict import Level, Pull, Scope, tool_of
from proxy import process
from proxy.identity import NAME, new_token, token_hash
from proxy.letterbox import Letterbox
from proxy.secret_keys import vault_key

DEFAULT_TENANT = "default"
FOREVER_US = 253_402_300_800_000_000 - 1  # the year 9999 ends; no later time can be written down
TEXT_CHARACTERS_MAX = 1_000  # of a reason or a subject: a sentence, not a document
CordName = tuple[Level, Scope, str]
"""What a cord is known by: its level, its scope and its subject."""

RELEASING = {Level.HALT: "resume", Level.FREEZE: "thaw", Level.THROTTLE: "thaw"}


class OperationError(Exception):
    """The act cannot be done as asked; the message says what to ask for instead."""


class NotFound(OperationError):
    """What the act is about does not exist."""


@dataclass(frozen=True, slots=True)
class Minted:
    """A new token and its secret, which is shown once and stored nowhere."""

    token: Token
    secret: str = field(repr=False)


# ---------------------------------------------------------------------------------- cords


def check(policy: Policy | None, cord: Pull) -> None:
    """Whether a cord can stop anything at all. Raises OperationError, and NotFound for a tool that
    the policy does not have: a cord on a misspelt tool would stop nothing. `policy` is None when
    none can be read.
    """
    if cord.level is Level.THROTTLE:
        raise OperationError("only a detector throttles; halt it, or freeze its writes")
    _check_subject(cord.scope, cord.subject)
    check_text("the reason", cord.reason)
    if cord.scope is Scope.TOOL and policy is not None:
        _check_tool(policy, cord.subject)
    if cord.until_us is not None and cord.until_us <= cord.at_us:
        raise OperationError("it would have ended already")


def pull(store: Store, policy: Policy | None, cord: Pull) -> tuple[Pull, bool]:
    """Pull a cord. Gives the cord, and whether it was not pulled so already; how it stands then,
    when it was and is made tighter, `store.pulls` knows after the commit. Raises as `check` does.
    """
    check(policy, cord)
    standing = store.pulls.get(cord_name(cord))
    if standing is not None and not cord.reason:
        cord = replace(cord, reason=standing.reason)  # what was said before is still why
    if store.pull(cord, tells=True):
        return cord, True
    return standing or cord, False


def release(
    store: Store,
    policy: Policy | None,
    name: CordName,
    *,
    reason: str,
    actor: str,
    at_us: int,
    releases: tuple[str, ...] = (),
    after_seq: int | None = None,
) -> Pull:
    """Release a cord and give it back. Raises OperationError, NotFound when none is pulled, and
    LedgerError when it was pulled behind the row `after_seq` of the record.

    With `releases` it stays, and calls of these pass it too: the cord as it is then. A throttle is
    lifted as a freeze is, and with the freeze of that name where both stand.
    """
    level, scope, subject = name
    _check_subject(scope, subject)
    check_text("the reason", reason)
    if not any(each.isprintable() and not each.isspace() for each in reason):
        raise OperationError("a release needs a reason that can be read: --reason TEXT")
    _check_releases(policy, level, scope, releases)
    levels = (level, Level.THROTTLE) if level is Level.FREEZE else (level,)
    store.check_unpulled([(each, scope, subject) for each in levels], after_seq)
    lift = partial(store.release, reason=reason, actor=actor, at_us=at_us, releases=releases)
    lifted = [lift(each, scope, subject) for each in levels]
    released = next((cord for cord in lifted if cord is not None), None)
    if released is not None:
        return released
    written = policy.pulls.get(name) if policy else None
    if written is not None:
        raise OperationError(
            f"{described(written)} is not an operator's but the policy's: {written.reason}; "
            "mend that file, and it ends within a second"
        )
    raise NotFound(f"no {level} is pulled for {named(scope, subject)}; pullcord status lists all")


def cord_name(cord: Pull) -> CordName:
    return cord.level, cord.scope, cord.subject


def named(scope: Scope, subject: str) -> str:
    return f"{scope} {subject}" if subject else "everything"


def described(cord: Pull) -> str:
    return f"the {cord.level} of {named(cord.scope, cord.subject)}"


def undo_command(cord: Pull) -> str:
    """What a person types to release a cord."""
    words = [RELEASING[cord.level], cord.scope]
    if cord.subject.startswith("-"):  # else the shell's program takes it for an option
        return f'pullcord {shlex.join(words)} --reason "..." -- {shlex.quote(cord.subject)}'
    return f'pullcord {shlex.join([*words, *filter(None, [cord.subject])])} --reason "..."'


def halt_command(scope: Scope, subject: str) -> str:
    """What a person types to stop this."""
    words = ["halt", scope.value, *(["--"] if subject.startswith("-") else [])]
    return f"pullcord {shlex.join([*words, *filter(None, [subject])])}"


def _check_subject(scope: Scope, subject: str) -> None:
    if scope is Scope.GLOBAL:
        if subject:
            raise OperationError(f"global covers everything, so it takes no name ({subject!r})")
        return
    if not subject:
        raise OperationError(f"name the {scope}: {scope} NAME")
    if scope in (Scope.RUN, Scope.TENANT) and not NAME.fullmatch(subject):
        raise OperationError(f"{subject!r} can be no {scope}: A-Z a-z 0-9 . _ ~ - only")
    run, tool = tool_of(subject) if scope is Scope.TOOL else ("", subject)
    if (run or tool != subject) and not (NAME.fullmatch(run) and tool):
        raise OperationError(
            f"{subject!r} can be no tool: name it, or RUN/TOOL for one run's calls"
        )
    check_name(f"the {scope}", subject)


def _check_releases(
    policy: Policy | None, level: Level, scope: Scope, releases: tuple[str, ...]
) -> None:
    """A resume is narrowed to what the policy knows as good, so that no orchestrator that resumes
    a run brings a bad release back."""
    if not releases:
        return
    if scope is Scope.RELEASE:
        raise OperationError(f"a {level} of a release is lifted whole; leave --release out")
    if policy is None:
        raise OperationError(
            "no policy can be read, so no release is known to be good; lift it whole, or go to "
            "where config/policy.yaml is"
        )
    for release_ in releases:
        if release_ not in policy.known_good:
            known = ", ".join(sorted(policy.known_good)) or "none yet"
            raise OperationError(
                f"release {release_!r} is not known to be good; write it into {policy.source} "
                f"under releases: known_good (there: {known})"
            )


def check_text(what: str, text: str) -> None:
    if len(text) > TEXT_CHARACTERS_MAX:
        raise OperationError(f"{what} is longer than {TEXT_CHARACTERS_MAX} characters")


def check_name(what: str, name: str) -> None:
    """No call is known by a name with such characters in it."""
    check_text(what, name)
    if any(category(each) in ("Cc", "Cs") for each in name):
        raise OperationError(f"{what} may hold no control characters: {name!r}")


def has_tool(policy: Policy, tool: str) -> bool:
    """Whether any call can be of this tool."""
    return tool in (UNLISTED, CANARY) or tool in policy.tools


def _check_tool(policy: Policy, subject: str) -> None:
    _, tool = tool_of(subject)
    if has_tool(policy, tool):
        return
    near = get_close_matches(tool, policy.tools, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(policy.tools)}"
    raise NotFound(f"{policy.source} has no tool {tool!r}; {hint}")


# ---------------------------------------------------------------------------------- tokens


def mint(
    store: Store,
    grant: Grant,
    actor: str,
    at_us: int,
    policy: Policy | None = None,
    *,
    by: Bearer | None = None,
) -> Minted:
    """Make a token. A new run without a tenant or a parent is of the tenant `default`. `by` is the
    run's own token when a run mints for a child; the `policy` says how many children it may have.

    Raises OperationError, also for names that look like secrets, LedgerError when the run exists
    and is another's, and OverCeiling.
    """
    names = ("run", "tenant", "parent")
    taken = [*(getattr(grant, name) for name in names), grant.release, *(grant.tools or ())]
    if any(name.startswith(RESERVED) for name in taken):
        raise OperationError(f"names that begin with {RESERVED!r} are pullcord's own")
    wrong = [name for name in names if not _fits(name, getattr(grant, name))]
    if wrong:
        raise OperationError(f"the {wrong[0]} may hold A-Z a-z 0-9 . _ ~ - only, 256 at most")
    for name in ("agent", "release"):
        check_name(f"the {name}", getattr(grant, name))
    _check_no_secret(store, grant, by)
    if grant.expires_us is not None and grant.expires_us <= at_us:
        raise OperationError("the token would have expired already")
    if grant.expires_us is not None and grant.expires_us > FOREVER_US:
        raise OperationError("the token would outlive the year 9999; without a time it never ends")
    if by is None and not grant.tenant and not grant.parent and not store.has_run(grant.run):
        grant = replace(grant, tenant=DEFAULT_TENANT)
    secret = new_token()
    token = store.mint(grant, token_hash(secret), actor=actor, at_us=at_us, by=by, policy=policy)
    return Minted(token, secret)


def revoke(store: Store, name: str, actor: str, at_us: int) -> list[Token]:
    """Revoke a token by its id, or all of a run, and what they minted. Raises NotFound."""
    revoked = store.revoke(name, actor=actor, at_us=at_us)
    if not revoked:
        raise NotFound(f"no valid token has the id or the run {name!r}; try: pullcord token list")
    return revoked


_UUID = re.compile(r"(?<![0-9a-f])[0-9a-f]{12}[1-8][0-9a-f]{3}[89ab][0-9a-f]{15}(?![0-9a-f])")
"""Without its dashes (RFC 9562): so are runs named where nobody chooses a name."""


def check_no_secret(what: str, *texts: str, known_only: bool = True) -> None:
    """Names are recorded as they are, so none may be a secret. Raises OperationError, without it.

    An operator's may look drawn: runs, tenants and releases are known by such ids elsewhere.
    """
    if any(looks_secret(text, known_only=known_only) for text in texts):
        hint = "" if known_only else ", a UUID, say"
        raise OperationError(
            f"{what} looks like a secret, and names are recorded in the clear; take another{hint}"
        )


def _check_no_secret(store: Store, grant: Grant, by: Bearer | None) -> None:
    """A run's child has no other tenant, agent and release than the run."""
    check_no_secret("the tool", *(grant.tools or ()), known_only=by is None)
    check_no_secret("the agent", grant.agent)
    check_no_secret("the release", grant.release)
    if not store.has_run(grant.run):  # else it is recorded, and may need another token
        check_no_secret("the run", _UUID.sub("", grant.run), known_only=by is None)
        check_no_secret("the tenant", grant.tenant)


def _fits(name: str, value: str) -> bool:
    return bool(NAME.fullmatch(value)) or (name != "run" and not value)


# ---------------------------------------------------------------------------------- as JSON


def timestamp(at_us: int) -> str:
    """RFC 3339, UTC, with milliseconds."""
    moment = datetime.fromtimestamp(at_us // 1_000 / 1_000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def pull_as_json(cord: Pull) -> dict[str, Any]:
    return {
        "level": cord.level,
        "scope": cord.scope,
        "subject": cord.subject,
        "reason": cord.reason,
        "actor": cord.actor,
        "at": timestamp(cord.at_us) if cord.at_us else None,  # a line of the policy tells no time
        "rule": cord.rule,
        "until": None if cord.until_us is None else timestamp(cord.until_us),
        "but_releases": list(cord.but_releases),
        **({"trial": asdict(cord.trial)} if cord.trial else {}),
    }


def pull_from_json(cord: Mapping[str, Any]) -> Pull:
    """What `pull_as_json` made, to the millisecond; not which runs go first."""
    return Pull(
        level=Level(cord["level"]),
        scope=Scope(cord["scope"]),
        subject=cord["subject"],
        reason=cord["reason"],
        actor=cord["actor"],
        at_us=0 if cord["at"] is None else _moment_us(cord["at"]),
        until_us=None if cord.get("until") is None else _moment_us(cord["until"]),
        but_releases=tuple(cord.get("but_releases", ())),
    )


def _moment_us(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1_000) * 1_000


def token_as_json(token: Token) -> dict[str, Any]:
    who = token.identity

    def moment(at_us: int | None) -> str | None:
        return None if at_us is None else timestamp(at_us)

    return {
        "id": token.id,
        "run": who.run,
        "tenant": who.tenant,
        "parent": who.parent or None,
        "agent": who.agent or None,
        "release": who.release or None,
        "tools": who.tools,
        "read_only": who.read_only,
        "budget_usd": None if token.budget_microusd is None else usd(token.budget_microusd),
        "actor": token.actor,
        "created": moment(token.created_us),
        "expires": moment(token.expires_us),
        "revoked": moment(token.revoked_us),
    }


# ---------------------------------------------------------------------------------- the store


@contextmanager
def opened(data: Path, now_us: Callable[[], int]) -> Iterator[Store]:
    """The store in one durable transaction, for a process that runs no proxy.

    Cords that wait in the file HALT are latched first; what engines that live still hold stays
    open. Raises LedgerBusy while a proxy owns it, and LedgerError.
    """
    over: OverCeiling | None = None
    store = Store.open(data, vault_key(data), now_us, alive=process.lives)
    try:
        with store.transaction(durable=True):
            for cord in Letterbox(data).waiting(now_us()):
                store.pull(cord)
            try:
                yield store
            except OverCeiling as refused:  # its cord stands
                over = refused
        if over is not None:
            raise over
    finally:
        store.close()
