"""The policy as compiled for use: frozen, indexed so that cost does not grow with its length.

Made by `load.py` from the pydantic models of `schema.py`; read by `match.py` and `decide.py`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from policies.alerts import Alert
from policies.amounts import ToolValue
from policies.call import Effect, Identity
from policies.ceilings import Ceiling
from policies.conditions import Condition
from policies.detectors.rules import SHIPPED, Rule
from policies.pricing import Pricing, ToolCost
from policies.verdict import Pulls, Scope

UNLISTED = "unlisted"

IPNetwork = IPv4Network | IPv6Network


def covers(globs: Sequence[str], name: str) -> bool:
    """Whether one of the globs names this tool. Tool names are case-sensitive."""
    return any(_names(glob, name) for glob in globs)


def _names(glob: str, name: str) -> bool:
    """As fnmatch has it. Where `*` is the only wildcard nothing is compiled or kept: tokens have
    such globs, of whatever their runs wrote."""
    first, star, rest = glob.partition("*")
    if "?" in glob or "[" in glob:
        return fnmatchcase(name, glob)
    if not star:
        return glob == name
    *between, last = rest.split("*")
    at, end = len(first), len(name) - len(last)
    if at > end or not name.startswith(first) or not name.endswith(last):
        return False
    for part in between:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


@dataclass(frozen=True, slots=True)
class KeyRule:
    """How a tool's writes are made once. Seconds of protection for sent and for derived keys."""

    header: str | None = "idempotency-key"
    missing: Literal["derive", "require", "off"] = "derive"
    same_body: Literal["replay", "allow"] = "replay"
    same_body_seconds: int = 600
    keep_seconds: int = 86_400
    ignore: tuple[str, ...] = ()
    per: Literal["run", "tenant"] = "run"
    unauthorized: Literal["store", "release"] = "store"


@dataclass(frozen=True, slots=True)
class Redaction:
    """What the policy masks in the trace: names in lower case, and regular expressions."""

    headers: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OperatorCall:
    """A call that an operator makes, of which parts may name what is known of a call: `{...}`."""

    tool: str
    method: str | None = None
    path: str | None = None
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    auth: str | None = None


class Reversibility(StrEnum):
    """What becomes of a write that should not have been made: nothing has to be undone, a call
    undoes it, nothing can, or nobody has said."""

    REVERSIBLE = "reversible"
    COMPENSABLE = "compensable"
    IRREVERSIBLE = "irreversible"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Undo(OperatorCall):
    """The call that undoes a write, with the fields of a form or the text of a JSON body, if it
    has one."""

    form: tuple[tuple[str, str], ...] | None = None
    json: str | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """Tools by a glob, how they may be used, and what is asked of the arguments of their calls."""

    tool: str
    methods: frozenset[str] | None = None
    where: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Holder:
    """What a tenant or an agent may do. `allow` None means that it may use all tools."""

    allow: tuple[Grant, ...] | None = None
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool of the policy. `order` is its place in the file: the first that matches wins.

    `hosts` are exact names or `*.suffix`; `path` is a compiled template; the globs `mcp_tool` and
    `graphql_operation` apply to JSON-RPC `tools/call` names and to `query.field` pairs. `where` is
    asked of every call, `reads` are the arguments that any condition may ask for. Its writes wait
    `hold_seconds` for a person; 0: they need none. `undo` is what undoes one, or that nothing has
    to, or can; None: nobody has said. `value` is how much a write moves.
    """

    name: str
    order: int = 0
    hosts: tuple[str, ...] = ()
    port: int | None = None
    methods: frozenset[str] | None = None
    path: re.Pattern[str] | None = None
    mcp_tool: str | None = None
    graphql_operation: str | None = None
    model_api: Literal["openai", "anthropic", "google"] | None = None
    effect: Effect | None = None
    websocket: Effect = Effect.WRITE
    key: KeyRule = field(default_factory=KeyRule)
    allow_addresses: tuple[IPNetwork, ...] = ()
    tags: bool = True
    cost: ToolCost | None = None
    line: int = 0
    where: tuple[Condition, ...] = ()
    reads: tuple[str, ...] = ()
    body_bytes_max: int | None = None
    hold: bool = False
    hold_seconds: int = 0
    stream: bool = False
    trace: Literal["full", "digest", "none"] | None = None
    verify: OperatorCall | None = None
    undo: Undo | Reversibility | None = None
    value: ToolValue | None = None

    @property
    def reversibility(self) -> Reversibility:
        if isinstance(self.undo, Undo):
            return Reversibility.COMPENSABLE
        return self.undo or Reversibility.UNKNOWN


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole policy. `digest` is the SHA-256 of its text in hex; `source` the file it came from.

    `pulls` are its `frozen:` and `halted:` lines and the releases that it refuses; `known_good` are
    the releases to which a resume may be narrowed; `windows` the ceilings by what they count;
    `unbounded` what its author left without a bound, for people.
    """

    digest: str
    source: str
    text: str = field(repr=False)
    unlisted: Literal["refuse", "read_only", "allow"]
    tools: Mapping[str, Tool]
    by_host: Mapping[str, tuple[Tool, ...]] = field(repr=False)
    by_suffix: Mapping[str, tuple[Tool, ...]] = field(repr=False)
    pulls: Pulls
    tenants: Mapping[str, Holder]
    ceilings: tuple[Ceiling, ...]
    ceilings_of: Mapping[str, tuple[Ceiling, ...]] = field(repr=False)
    tag_headers: tuple[str, str] = ("X-Run-Id", "X-Tenant-Id")
    known_good: frozenset[str] = frozenset()
    alerts: tuple[Alert, ...] = ()
    windows: Mapping[str, tuple[Ceiling, ...]] = field(default_factory=dict, repr=False)
    unbounded: tuple[str, ...] = ()
    agents: Mapping[str, Holder] = field(default_factory=dict)
    prices: Pricing = field(default_factory=Pricing)
    redaction: Redaction = Redaction()
    detectors: Mapping[str, Rule] = field(default_factory=lambda: SHIPPED)

    def tool(self, name: str) -> Tool:
        """The tool of this name; the unlisted one when the policy has none."""
        return CANARY_TOOL if name == CANARY else self.tools.get(name, UNLISTED_TOOL)


UNLISTED_TOOL = Tool(name=UNLISTED, tags=False)

RESERVED = "pullcord."  # tools of a policy may not begin so
CANARY = "pullcord.canary"
CANARY_HOST = "canary.pullcord.invalid"  # reserved (RFC 6761, section 6.4) and never resolved
DRILL_TENANT = "pullcord.drill"
UNDO_RUN = "pullcord:undo"  # of operators who undo writes; no run of an agent can be named so

# Every policy has it, for `pullcord drill`. Its writes are never deduplicated: a replay, too, would
# look like a cord that holds.
CANARY_TOOL = Tool(
    name=CANARY,
    hosts=(CANARY_HOST,),
    key=KeyRule(header=None, missing="off", same_body="allow"),
    allow_addresses=(IPv4Network("127.0.0.0/8"),),
    tags=False,
    trace="none",
)


def subjects(identity: Identity, tool: str) -> list[tuple[Scope, str]]:
    """Every scope a call stands in, widest first; a cord pulled on any of them applies to it."""
    runs = (*reversed(identity.ancestors), identity.run)
    scopes = [(Scope.GLOBAL, ""), (Scope.TENANT, identity.tenant)]
    if identity.release:
        scopes.append((Scope.RELEASE, identity.release))
    scopes += [(Scope.RUN, run) for run in runs]
    scopes.append((Scope.TOOL, tool))
    scopes += [(Scope.TOOL, f"{run}/{tool}") for run in runs]
    return scopes
