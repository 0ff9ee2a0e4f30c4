"""The policy file as pydantic models: the only schema. The JSON Schema for editors is made from it.

What one value may be is said in `schema_parts.py`; what the file means as a whole (that a frozen
tool exists, say) is checked in `load.py`. Values stay as they are written; `load.py` converts them.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from policies.call import Effect
from policies.protocols.model_api import ModelApi
from policies.schema_bounds import CeilingRule
from policies.schema_costs import CostRule, PricesRule, Usd
from policies.schema_detectors import DetectorsRule
from policies.schema_grants import (
    HOLD_SECONDS_MAX,
    TOOL_BODY_BYTES_MAX,
    ArgumentPath,
    HolderRule,
    Where,
)
from policies.schema_parts import (
    KEEP_SECONDS_MAX,
    Glob,
    Header,
    Host,
    Method,
    Name,
    Part,
    ToolName,
    listed,
    network,
    or_one,
    or_tools,
    path_template,
    short_form,
)
from policies.schema_records import FIELDS_MAX, OperatorCallRule, RedactRule, Trace
from policies.schema_undo import UndoOrWord
from policies.schema_value import ValueRule
from policies.verdict import Scope


class MatchRule(Part):
    """Which requests are calls of the tool; everything that is given must hold."""

    host: Annotated[
        list[Host], BeforeValidator(listed), Field(min_length=1, json_schema_extra=or_one)
    ]
    """A name, or `*.` before a name for everything under it; or a list of them."""
    method: Annotated[
        list[Method], BeforeValidator(listed), Field(min_length=1, json_schema_extra=or_one)
    ] = ["*"]
    """A method or a list of them; `*` is any."""
    path: Annotated[str, AfterValidator(path_template)] | None = None
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


class KeyRule(Part):
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
    ignore: Annotated[list[ArgumentPath], Field(max_length=FIELDS_MAX)] = []
    """Fields of the body, by their dotted paths, in which two requests may differ and still ask for
    the same thing: a time, a nonce."""
    per: Literal["run", "tenant"] = "run"
    """Whose requests are compared by their bodies: those of one run, or of a whole tenant."""
    unauthorized: Literal["store", "release"] = "store"
    """After 401 and 407: the answer is kept and given again, or the write may be tried again."""


class ToolRule(Part):
    """One tool. The first in the file that matches a request is the one."""

    match: MatchRule
    effect: Annotated[Effect, Field(strict=False)] | None = None
    """Left out: told from the request. Whatever cannot be read is a write."""
    websocket: Annotated[Effect, Field(strict=False)] = Effect.WRITE
    """What opening a WebSocket is, whatever `effect` says: one write, unless it only reads."""
    model_api: ModelApi | None = None
    """Whose model API this is; its inference calls then have the effect `model`."""
    idempotency: KeyRule = KeyRule()
    where: Where | None = None
    """Arguments that every call must have, by their dotted paths: `amount`, `metadata.kind`."""
    body_bytes_max: Annotated[int, Field(ge=0, le=TOOL_BODY_BYTES_MAX)] | None = None
    """Longer request bodies are refused unread. Left out: the proxy's own limit."""
    stream: bool = False
    """Whether its request bodies flow on as they come: judged by their heads, hashed on the way.
    Its writes then need an idempotency key, unless `missing: off` says otherwise."""
    trace: Trace | None = None
    """What is kept of its bodies for people: all of it redacted, digests, or nothing. Left out: as
    the setting `trace` says."""
    verify: OperatorCallRule | None = None
    """A read that shows what the upstream knows of one of its writes."""
    undo: UndoOrWord | None = None
    """The call that undoes one of its writes; or `unneeded`, or `impossible`. Left out: nobody
    knows."""
    hold: bool = False
    """Whether each of its writes waits for a person."""
    hold_seconds: Annotated[int, Field(ge=1, le=HOLD_SECONDS_MAX)] | None = None
    """How long a write waits before it is refused. Left out: five minutes."""
    allow_addresses: list[Annotated[str, AfterValidator(network)]] = []
    """Private address blocks that this tool may be at, such as `10.0.0.0/8`."""
    cost: CostRule | None = None
    """What a call costs beside the tokens of a model."""
    cost_usd: Usd | None = None
    """Short for `cost: {usd: ...}`."""
    value: ValueRule | None = None
    """How much one of its writes moves, for the scope of an incident. Left out: nobody knows."""
    tags: bool = True
    """Whether its requests carry the run and tenant headers."""

    @model_validator(mode="after")
    def _one_cost(self) -> "ToolRule":
        if self.cost is not None and self.cost_usd is not None:
            raise ValueError("must hold 'cost' or 'cost_usd', not both")
        return self

    @model_validator(mode="after")
    def _something_to_stream(self) -> "ToolRule":
        if self.stream:
            self._body_is_not_read()
        return self

    def _body_is_not_read(self) -> None:
        match, cost, key = self.match, self.cost, self.idempotency
        asked = {
            "where": self.where,
            "hold": self.hold,
            "model_api": self.model_api,
            "effect: model": self.effect is Effect.MODEL,
            "mcp_tool": match.mcp_tool,
            "graphql_operation": match.graphql_operation,
            "cost: {from: request...}": cost and (cost.source or "").startswith("request."),
            "idempotency: {ignore}": key.ignore,
            "value": self.value,
        }
        wrong = next((name for name, asks in asked.items() if asks), None)
        if wrong:
            raise ValueError(f"must not hold {wrong!r} beside 'stream': its body is not read")
        if key.missing == "derive" and "missing" in key.model_fields_set:
            raise ValueError(
                "must not derive a key beside 'stream', since its body is not read: "
                "say 'missing: require', or 'missing: off' where nothing protects"
            )

    @model_validator(mode="after")
    def _something_to_hold(self) -> "ToolRule":
        if self.hold and self.effect not in (None, Effect.WRITE):
            raise ValueError(f"must not hold 'hold' where its effect is {self.effect}")
        if self.hold_seconds is not None and not self.hold:
            raise ValueError("must hold 'hold: true' beside 'hold_seconds'")
        return self


class PulledRule(Part):
    """Cords pulled by the file: they hold for as long as their lines stand in it."""

    all: bool = Field(default=False, alias="global")
    tenants: list[Name] = []
    runs: list[Name] = []
    releases: list[Name] = []
    tools: list[Glob] = []


class ReleaseLists(Part):
    """What is known of releases, by the stamp that a run was started with."""

    known_good: list[Name] = []
    """A resume may be narrowed to these. One that is taken off is stopped again."""
    refused: list[Name] = []
    """Nothing passes, whatever is resumed."""


class AlertRule(Part):
    """Which alerts may pull which cord. The first in the file that matches an alert decides."""

    match: Annotated[dict[Name, Name], Field(min_length=1)]
    """Labels of the alert with their exact values; all of them must be there."""
    pull: Literal["freeze", "halt"]
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


class TagNames(Part):
    """Under which names the run and the tenant are told to the tools."""

    run: Header = "X-Run-Id"
    tenant: Header = "X-Tenant-Id"

    @model_validator(mode="after")
    def _two_names(self) -> "TagNames":
        if self.run.lower() == self.tenant.lower():
            raise ValueError("must be two different names")
        return self


class PolicyFile(Part):
    """What agents may do. An edit takes effect within a second."""

    version: Literal[1]
    unlisted: Literal["refuse", "read_only", "allow"] = "refuse"
    """Destinations that no tool matches."""
    frozen: Annotated[
        PulledRule, BeforeValidator(short_form), Field(json_schema_extra=or_tools)
    ] = PulledRule()
    """Writes stop here: a list of tools, or a mapping of scopes."""
    halted: PulledRule = PulledRule()
    """Nothing passes here."""
    releases: ReleaseLists = ReleaseLists()
    tools: dict[ToolName, ToolRule] = {}
    tenants: dict[Name, HolderRule] = {}
    agents: dict[Name, HolderRule] = {}
    """By the agent that a token is bound to; of a call its tenant and its agent must both allow."""
    ceilings: list[CeilingRule] = []
    detectors: DetectorsRule = DetectorsRule()
    alerts: list[AlertRule] = []
    """Which alerts of Alertmanager may pull a cord. Left out: none."""
    prices: PricesRule = PricesRule()
    tags: TagNames = TagNames()
    redact: RedactRule = RedactRule()


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
