"""Runs and their tokens: minted, resolved on every call, listed, revoked. Called in transactions.

A token is known here by its hash alone. A run belongs to one tenant and one parent for its whole
life; its release is that of its first token, and an operator may mint it one of another release.
Its budget, if it has one, holds for all its tokens and for all that it starts.
Nothing here widens anything: a run's own token mints narrower ones only.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from ledger.errors import LedgerError, NotGranted
from ledger.records import Bearer
from ledger.redact import check_storable
from ledger.sqlite import sqlite3
from policies.call import Identity
from policies.ceilings import usd
from policies.policy import covers
from policies.verdict import Reason

ANCESTORS_MAX = 32  # a deeper tree of runs is itself a runaway
# What a child asks for is compared with all that its parent has, while every other call waits.
TOOLS_MAX = 64
TOOL_CHARACTERS_MAX = 128
TOOL_STARS_MAX = 4


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token is minted for. `tools` are globs with `*` only; None: all of the tenant's.

    `budget_microusd` is what the run and its descendants may spend in all, from now on; None
    leaves it as it is. With `read_only` the token is good for reads and model calls alone.
    """

    run: str
    tenant: str = ""
    parent: str = ""
    agent: str = ""
    release: str = ""
    tools: tuple[str, ...] | None = None
    expires_us: int | None = None
    budget_microusd: int | None = None
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """A minted token as people see it. `id` is the start of its hash."""

    id: str
    identity: Identity
    actor: str
    created_us: int
    expires_us: int | None
    revoked_us: int | None
    hash: bytes = field(repr=False)

    @property
    def budget_microusd(self) -> int | None:
        """Its run's own budget; those of the runs above bind, too."""
        return dict(self.identity.budgets).get(self.identity.run)


Resolved = tuple[Identity | None, Reason | None]
"""An identity, and why it may not call. Both are set for a known token that is not valid now."""

Spawn = Callable[[Identity], None]
"""Counts a new run that another one started, before it is recorded. Raises LedgerError."""

# The budgets that bind a run are its own and those of the runs above it.
_BUDGETS = (
    "(SELECT json_group_array(json_array(b.name, b.budget_microusd)) FROM run b "
    "WHERE b.budget_microusd IS NOT NULL "
    "AND b.name IN (SELECT r.name UNION ALL SELECT value FROM json_each(r.ancestors)))"
)
_SELECT = (
    "SELECT t.hash, t.id, r.name, r.tenant, "  # noqa: S608 - two texts of ours
    "r.ancestors, r.agent, coalesce(t.release, r.release), "
    f"t.tools, t.read_only, {_BUDGETS}, t.actor, t.created_us, t.expires_us, t.revoked_us "
    "FROM token t JOIN run r ON r.name = t.run "
)

_FAMILY = (
    "WITH RECURSIVE family (id) AS (SELECT id FROM token WHERE id = :name OR run = :name "
    "UNION SELECT token.id FROM token JOIN family ON token.minted_by = family.id) "
)


def resolve(conn: sqlite3.Connection, bearer: Bearer, now_us: int) -> Resolved:
    """Who these credentials are, and whether they are valid now."""
    return checked(by_hash(conn, bearer.token_hash), bearer, now_us)


def checked(token: Token | None, bearer: Bearer, now_us: int) -> Resolved:
    """The same, when the token was looked up by its hash already."""
    if token is None or token.identity.run != bearer.run:
        return None, Reason.CREDENTIALS_INVALID
    if token.revoked_us is not None:
        return token.identity, Reason.TOKEN_REVOKED
    if token.expires_us is not None and token.expires_us <= now_us:
        return token.identity, Reason.TOKEN_EXPIRED
    return token.identity, None


def listed(conn: sqlite3.Connection) -> list[Token]:
    """All tokens, newest first."""
    rows = conn.execute(_SELECT + "ORDER BY t.created_us DESC, t.id").fetchall()
    return [_token(row) for row in rows]


def mint(
    conn: sqlite3.Connection,
    grant: Grant,
    token_hash: bytes,
    *,
    actor: str,
    at_us: int,
    by: Bearer | None,
    spawn: Spawn,
) -> Token:
    """Record a token, and its run when that is new. `by` is the run's own token when a run mints.

    Raises LedgerError before anything is written.
    """
    minter = None if by is None else _minter(conn, by, at_us)
    _check_tools(grant.tools)  # what a child has of its parent was looked at there
    if minter is not None:
        grant = _narrowed(conn, grant, minter)
    check_storable(grant.run, grant.tenant, grant.agent, grant.release, *(grant.tools or ()))
    if not grant.run:
        raise LedgerError("a token is minted for a run: name it")
    if by_hash(conn, token_hash) is not None:
        raise LedgerError("this token exists already; make a new random one")
    known = _known_run(conn, grant.run)
    if known is None:
        # A child is recorded with its parent run's release, whatever token the parent has now.
        known = _new_run(conn, grant if minter is None else replace(grant, release=""))
        if known.ancestors:
            spawn(known)
        _insert_run(conn, known, at_us)
    else:
        _check_same_run(conn, grant, known, minter)
    if grant.budget_microusd is not None:
        set_budget(conn, grant.run, grant.budget_microusd)
    release = grant.release or known.release
    conn.execute(
        "INSERT INTO token (hash, id, run, minted_by, tools, actor, created_us, expires_us, "
        "release, read_only) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            token_hash,
            token_hash.hex()[:16],
            grant.run,
            None if minter is None else minter.id,
            None if grant.tools is None else orjson.dumps(grant.tools).decode(),
            actor,
            at_us,
            grant.expires_us,
            None if release == known.release else release,
            grant.read_only,
        ),
    )
    made = by_hash(conn, token_hash)
    if made is None:
        raise LedgerError("the token that was just made is gone")
    return made


def revoke(conn: sqlite3.Connection, name: str, at_us: int) -> list[Token]:
    """Revoke a token by its id, or all of a run by its name, and all that they minted.

    Returns those that were valid until now.
    """
    rows = conn.execute(
        _FAMILY + _SELECT + "WHERE t.id IN family AND t.revoked_us IS NULL",
        {"name": name},
    ).fetchall()
    tokens = [_token(row) for row in rows]
    conn.executemany(
        "UPDATE token SET revoked_us = ? WHERE hash = ?", [(at_us, token.hash) for token in tokens]
    )
    return tokens


def by_hash(conn: sqlite3.Connection, token_hash: bytes) -> Token | None:
    row = conn.execute(_SELECT + "WHERE t.hash = ?", (token_hash,)).fetchone()
    return None if row is None else _token(row)


def budget(conn: sqlite3.Connection, run: str) -> int | None:
    """A run's own budget in micro-dollars; None where it has none, or is not known."""
    row = conn.execute("SELECT budget_microusd FROM run WHERE name = ?", (run,)).fetchone()
    return None if row is None or row[0] is None else int(row[0])


def set_budget(conn: sqlite3.Connection, run: str, budget_microusd: int | None) -> None:
    conn.execute("UPDATE run SET budget_microusd = ? WHERE name = ?", (budget_microusd, run))


def is_run(conn: sqlite3.Connection, name: str) -> bool:
    return _known_run(conn, name) is not None


def _token(row: tuple[Any, ...]) -> Token:
    token_hash, token_id, run, tenant, above, agent, release, tools, read_only, *rest = row
    ancestors = tuple(orjson.loads(above))
    budgets, actor, created_us, expires_us, revoked_us = rest
    known = dict(orjson.loads(budgets))
    identity = Identity(
        run=run,
        tenant=tenant,
        ancestors=ancestors,
        agent=agent,
        release=release,
        tools=None if tools is None else tuple(orjson.loads(tools)),
        read_only=bool(read_only),
        budgets=tuple((name, known[name]) for name in (run, *ancestors) if name in known),
    )
    return Token(token_id, identity, actor, created_us, expires_us, revoked_us, token_hash)


def _minter(conn: sqlite3.Connection, by: Bearer, now_us: int) -> Token:
    token = by_hash(conn, by.token_hash)
    _, refused = checked(token, by, now_us)
    if refused is not None or token is None:
        raise LedgerError("the run's own token is not valid, so it mints none")
    return token


def _narrowed(conn: sqlite3.Connection, grant: Grant, minter: Token) -> Grant:
    """What a run may grant: to its children, of its tenant, release and tools, no longer, and to
    read only where that is all that it may."""
    own = minter.identity
    if grant.tenant not in ("", own.tenant) or grant.parent not in ("", own.run):
        raise LedgerError("a run mints tokens for its own children only")
    if grant.run == own.run:
        raise LedgerError("a run mints tokens for its children; name a new run")
    if grant.release not in ("", own.release):
        raise LedgerError("a child runs the release of its parent")
    if grant.agent not in ("", own.agent):
        # Another agent may be allowed other tools, and has ceilings of its own.
        raise LedgerError("a child is of its parent's agent; ask an operator for another one")
    # With `*` as the only wildcard, a glob that is matched as text is matched in all it names.
    if own.tools is not None and not all(covers(own.tools, glob) for glob in grant.tools or ()):
        raise NotGranted(f"a child may use only what its parent may: {', '.join(own.tools)}")
    asked, has = grant.budget_microusd, budget(conn, grant.run)
    if asked is not None and has is not None and asked > has:
        raise LedgerError(
            f"run {grant.run} has a budget of {usd(has)} USD, and its parent may only lower it"
        )
    ends = [end for end in (grant.expires_us, minter.expires_us) if end is not None]
    return replace(
        grant,
        tenant=own.tenant,
        parent=own.run,
        agent=own.agent,
        release=own.release,
        tools=own.tools if grant.tools is None else grant.tools,
        expires_us=min(ends, default=None),
        read_only=grant.read_only or own.read_only,
    )


def _check_tools(tools: tuple[str, ...] | None) -> None:
    if len(tools or ()) > TOOLS_MAX:
        raise LedgerError(f"a token names at most {TOOLS_MAX} tools; `*` covers several at once")
    for glob in tools or ():
        if len(glob) > TOOL_CHARACTERS_MAX or glob.count("*") > TOOL_STARS_MAX:
            raise LedgerError(
                f"a token's tool has at most {TOOL_CHARACTERS_MAX} characters and "
                f"{TOOL_STARS_MAX} `*`; {glob[:40]!r} has more"
            )
        if any(char in glob for char in "?[]") or not glob:
            raise LedgerError(f"a token's tool {glob!r} is no name; `*` is the only wildcard")


def _check_same_run(
    conn: sqlite3.Connection, grant: Grant, known: Identity, minter: Token | None
) -> None:
    """Raises LedgerError for a grant that is at odds with the run as it is recorded.

    Another release is for an operator to give, or for the parent's token where the run has its
    parent's: a child that an operator gave a release of its own keeps it.
    """
    fixed = ["parent", "tenant", "agent"]
    if minter is not None:
        parent = _known_run(conn, minter.identity.run)
        if parent is None or parent.release != known.release:
            fixed.append("release")
    for field_name in fixed:
        asked, has = getattr(grant, field_name), getattr(known, field_name)
        if field_name == "parent" and has and not asked:
            # Who mints it may not know whose child it is: a run names its children as it likes.
            raise LedgerError(
                f"run {grant.run} is a child of run {has}, under its limits and its cords; if "
                f"that is meant, name the parent: --parent {has}; if not, choose another run name"
            )
        # What a run leaves out is not what it may have: an operator may have given its child more.
        if asked != has and (asked or (minter is not None and field_name == "agent")):
            raise LedgerError(
                f"run {grant.run} has the {field_name} {has or 'none'}, not {asked or 'none'}; "
                "choose another run name"
            )


def _insert_run(conn: sqlite3.Connection, run: Identity, at_us: int) -> None:
    conn.execute(
        "INSERT INTO run (name, tenant, ancestors, agent, release, created_us) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (
            run.run,
            run.tenant,
            orjson.dumps(run.ancestors).decode(),
            run.agent,
            run.release,
            at_us,
        ),
    )


def _new_run(conn: sqlite3.Connection, grant: Grant) -> Identity:
    """The run of a grant as it is to be recorded."""
    ancestors: tuple[str, ...] = ()
    if grant.parent:
        parent = _known_run(conn, grant.parent)
        if parent is None:
            raise LedgerError(f"there is no run {grant.parent} to be the parent of {grant.run}")
        if grant.tenant not in ("", parent.tenant):
            raise LedgerError(f"run {grant.parent} is of tenant {parent.tenant}, so is its child")
        ancestors = (parent.run, *parent.ancestors)
        if len(ancestors) > ANCESTORS_MAX:
            raise LedgerError(f"runs nest at most {ANCESTORS_MAX} deep")
        grant = replace(
            grant,
            tenant=parent.tenant,
            agent=grant.agent or parent.agent,
            release=grant.release or parent.release,
        )
    if not grant.tenant:
        raise LedgerError(f"run {grant.run} is new: name its tenant")
    return Identity(grant.run, grant.tenant, ancestors, grant.agent, grant.release, grant.tools)


def _known_run(conn: sqlite3.Connection, name: str) -> Identity | None:
    row = conn.execute(
        "SELECT name, tenant, ancestors, agent, release FROM run WHERE name = ?", (name,)
    ).fetchone()
    if row is None:
        return None
    run, tenant, ancestors, agent, release = row
    return Identity(run, tenant, tuple(orjson.loads(ancestors)), agent, release)
