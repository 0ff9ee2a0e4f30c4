"""The policy file as pydantic models: the only schema. The JSON Schema for editors is made from it.

What one value may be is said here; what the file means as a whole (that a frozen tool exists, say)
is checked in `load.py`. Values stay as they are written; `load.py` converts them.
"""

import re
from ipaddress import ip_address, ip_network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from policies import paths
from policies.call import Effect
from policies.ceilings import Count
from policies.policy import UNLISTED
from policies.protocols.model_api import ModelApi
from policies.verdict import Level, Scope

COUNT_MAX = 1_000_000_000  # a bucket of a window is a 32-bit count
KEEP_SECONDS_MAX = 366 * 86_400
WINDOW_SECONDS_MAX = 366 * 86_400
NAME_CHARACTERS_MAX = 255

_TOOL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")  # RFC 9110, section 5.6.2
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_DOMAIN = re.compile(rf"(?:\*\.)?(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}")

# Fields that carry the message itself or its credentials: no tag and no key may stand in them.
_TAKEN = frozenset({
    "authorization", "connection", "content-encoding", "content-length", "content-type", "cookie",
    "host", "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade", "user-agent",
})  # fmt: skip


def duration_us(text: str) -> int:
    """Microseconds of `30s`, `1m`, `2h` or `1d`. Raises ValueError."""
    found = _DURATION.fullmatch(text)
    if not found:
        raise ValueError("must be a number and a unit, such as 30s, 1m, 2h or 1d")
    seconds = int(found[1]) * _SECONDS[found[2]]
    if seconds > WINDOW_SECONDS_MAX:
        raise ValueError("must be at most 366d; leave 'within' out for a whole life")
    return seconds * 1_000_000


def _duration(value: object) -> str:
    text = str(value)
    duration_us(text)
    return text


def _tool_name(name: str) -> str:
    if name == UNLISTED:
        raise ValueError("is taken: it stands for what no tool matches")
    if not _TOOL_NAME.fullmatch(name):
        raise ValueError("must be letters, digits, '.', '_' and '-', at most 128")
    return name


def _host(text: str) -> str:
    host = text.lower().removesuffix(".")
    if "/" in host:
        raise ValueError(f"must be a name without scheme or path, not {text!r}")
    try:
        return ip_address(host.strip("[]")).compressed
    except ValueError:
        pass
    if host == "*":
        raise ValueError("must not be every host; 'unlisted: allow' lets the others pass")
    if ":" in host:
        raise ValueError(f"must not hold a port; give it as 'port', not {text!r}")
    if not _DOMAIN.fullmatch(host) or len(host) > NAME_CHARACTERS_MAX:
        raise ValueError(f"must be a name, an address or '*.' and a name, not {text!r}")
    return host


def _method(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"must be a method such as POST, or '*', not {text!r}")
    return text.upper()


def _path(text: str) -> str:
    paths.template(text)
    return text


def _header(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"must be the name of a header, not {name!r}")
    if name.lower() in _TAKEN or name.lower().startswith(("pullcord-", "x-pullcord-")):
        raise ValueError(f"must not be {name!r}: that header has another meaning")
    return name


def _network(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError as fault:
        raise ValueError(f"must be an address block such as 10.0.0.0/8: {fault}") from None


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _short_form(value: object) -> object:
    if not isinstance(value, list | dict):
        raise ValueError("must be a list of tools or a mapping of scopes")
    return {"tools": value} if isinstance(value, list) else value


def _or_one(schema: dict[str, Any]) -> None:
    """In the JSON Schema: the list, or one item of it."""
    _either(schema, schema["items"])


def _or_tools(schema: dict[str, Any]) -> None:
    """In the JSON Schema: the mapping, or the list of its tools."""
    _either(schema, {"type": "array", "items": {"type": "string"}})


def _either(schema: dict[str, Any], other: dict[str, Any]) -> None:
    whole, description = dict(schema), schema.get("description", "")
    whole.pop("description", None)
    schema.clear()
    schema |= {"anyOf": [whole, other], "description": description}


Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS_MAX)]
Glob = Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS_MAX)]
ToolName = Annotated[str, AfterValidator(_tool_name)]
Host = Annotated[str, AfterValidator(_host)]
Method = Annotated[str, AfterValidator(_method)]
Header = Annotated[str, AfterValidator(_header)]
Duration = Annotated[
    str, BeforeValidator(_duration), Field(json_schema_extra={"pattern": f"^{_DURATION.pattern}$"})
]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


class MatchRule(_Part):
    """Which requests are calls of the tool; everything that is given must hold."""

    host: Annotated[
        list[Host], BeforeValidator(_listed), Field(min_length=1, json_schema_extra=_or_one)
    ]
    """A name, or `*.` before a name for everything under it; or a list of them."""
    method: Annotated[
        list[Method], BeforeValidator(_listed), Field(min_length=1, json_schema_extra=_or_one)
    ] = ["*"]
    """A method or a list of them; `*` is any."""
    path: Annotated[str, AfterValidator(_path)] | None = None
    """Such as `/v1/charges/{id}`; `/**` at the end is any rest. Left out: any path."""
    port: Annotated[int, Field(ge=1, le=65_535)] | None = None
    """Left out: the scheme's own, 443 or 80."""
    mcp_tool: Glob | None = None
    """A glob over the names of MCP tools, such as `contacts.*`."""
    graphql_operation: Glob | None = None
    """A glob over type and root field, such as `mutation.issue*`."""

    @model_validator(mode="after")
    def _one_protocol(self) -> "MatchRule":
        if self.mcp_tool and self.graphql_operation:
            raise ValueError("must hold 'mcp_tool' or 'graphql_operation', not both")
        return self


class KeyRule(_Part):
    """How the tool's writes are made once."""

    header: Header = "Idempotency-Key"
    """The header in which an agent sends its key."""
    missing: Literal["derive", "require", "off"] = "derive"
    """Without a key: derive one from the body, require one, or go unprotected."""
    same_body: Literal["replay", "allow"] = "replay"
    """The same body under another key: replay the first answer, or allow it as a new write."""
    same_body_seconds: Annotated[int, Field(ge=1, le=KEEP_SECONDS_MAX)] = 600
    keep_seconds: Annotated[int, Field(ge=1, le=KEEP_SECONDS_MAX)] = 86_400
    """How long a key that was sent protects."""


class ToolRule(_Part):
    """One tool. The first in the file that matches a request is the one."""

    match: MatchRule
    effect: Annotated[Effect, Field(strict=False)] | None = None
    """Left out: told from the request. Whatever cannot be read is a write."""
    websocket: Annotated[Effect, Field(strict=False)] = Effect.WRITE
    """What opening a WebSocket is, whatever `effect` says: one write, unless it only reads."""
    model_api: ModelApi | None = None
    """Whose model API this is; its inference calls then have the effect `model`."""
    idempotency: KeyRule = KeyRule()
    allow_addresses: list[Annotated[str, AfterValidator(_network)]] = []
    """Private address blocks that this tool may be at, such as `10.0.0.0/8`."""
    tags: bool = True
    """Whether its requests carry the run and tenant headers."""


class TenantRule(_Part):
    """A tenant that is listed may use these tools only; one that is not may use all."""

    allow: list[Glob]


class CeilingRule(_Part):
    """A bound on calls or writes."""

    per: Literal[Scope.GLOBAL, Scope.TENANT, Scope.RUN, Scope.TOOL]
    tool: Glob | None = None
    """Only calls of these tools count. Left out: all."""
    count: Annotated[Count, Field(strict=False)]
    at_most: Annotated[int, Field(ge=0, le=COUNT_MAX)]
    within: Duration | None = None
    """A sliding window such as `1m`. Left out: a whole life."""
    then: Literal["throttle", "freeze", "halt"] = "throttle"
    """What the ceiling does when it is met: refuse this call, or pull the cord for its scope."""


class PulledRule(_Part):
    """Cords pulled by the file: they hold for as long as their lines stand in it."""

    all: bool = Field(default=False, alias="global")
    tenants: list[Name] = []
    runs: list[Name] = []
    releases: list[Name] = []
    tools: list[Glob] = []


class ReleaseLists(_Part):
    """What is known of releases, by the stamp that a run was started with."""

    known_good: list[Name] = []
    """A resume may be narrowed to these. One that is taken off is stopped again."""
    refused: list[Name] = []
    """Nothing passes, whatever is resumed."""


class AlertRule(_Part):
    """Which alerts may pull which cord. The first in the file that matches an alert decides."""

    match: Annotated[dict[Name, Name], Field(min_length=1)]
    """Labels of the alert with their exact values; all of them must be there."""
    pull: Annotated[Level, Field(strict=False)]
    scope: Annotated[Scope, Field(strict=False)]
    label: Name | None = None
    """The label of the alert that names the run, tenant, release or tool."""
    subject: Name | None = None
    """Or its name, where it is always the same."""

    @model_validator(mode="after")
    def _one_subject(self) -> "AlertRule":
        if self.scope is Scope.GLOBAL and (self.label or self.subject):
            raise ValueError("must not name a 'label' or 'subject' where the scope is global")
        if self.label and self.subject:
            raise ValueError("must hold 'label' or 'subject', not both")
        if self.scope is not Scope.GLOBAL and not (self.label or self.subject):
            raise ValueError(
                f"must say which {self.scope}: by a 'label', or by its name as 'subject'"
            )
        return self


class TagNames(_Part):
    """Under which names the run and the tenant are told to the tools."""

    run: Header = "X-Run-Id"
    tenant: Header = "X-Tenant-Id"

    @model_validator(mode="after")
    def _two_names(self) -> "TagNames":
        if self.run.lower() == self.tenant.lower():
            raise ValueError("must be two different names")
        return self


class PolicyFile(_Part):
    """What agents may do. An edit takes effect within a second."""

    version: Literal[1]
    unlisted: Literal["refuse", "read_only", "allow"] = "refuse"
    """Destinations that no tool matches."""
    frozen: Annotated[
        PulledRule, BeforeValidator(_short_form), Field(json_schema_extra=_or_tools)
    ] = PulledRule()
    """Writes stop here: a list of tools, or a mapping of scopes."""
    halted: PulledRule = PulledRule()
    """Nothing passes here."""
    releases: ReleaseLists = ReleaseLists()
    tools: dict[ToolName, ToolRule] = {}
    tenants: dict[Name, TenantRule] = {}
    ceilings: list[CeilingRule] = []
    alerts: list[AlertRule] = []
    """Which alerts of Alertmanager may pull a cord. Left out: none."""
    tags: TagNames = TagNames()


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the policy file, for editors."""
    schema = PolicyFile.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_tidied(schema)}


def _tidied(part: Any) -> Any:
    """Without made-up titles and empty defaults, and without null: a key has a value or is not."""
    if isinstance(part, list):
        return [_tidied(item) for item in part]
    if not isinstance(part, dict):
        return part
    kept = {
        key: _tidied(value)
        for key, value in part.items()
        if not (key == "title" and isinstance(value, str))
        and not (key == "default" and not isinstance(value, str | int))
    }
    options = [option for option in kept.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1:
        del kept["anyOf"]
        kept |= options[0]
    return kept
