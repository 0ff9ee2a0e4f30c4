"""identify(policy, request) -> ToolCall: which tool a request means and what it does to the world.

The first tool in file order whose host, port, method, path and protocol hold is the one. A tool
with a protocol condition owns its endpoint: what is sent there is that protocol's, or unlisted, or
refused; it never falls through to a broader tool. Whatever cannot be read is a write.

Plain calls are read from their head alone: no body is parsed unless a rule needs it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import NamedTuple

from policies import arguments, canonical, costs, ignoring, paths
from policies.call import Dialect, Effect, Request, ToolCall
from policies.content import UTF_8
from policies.head import SAFE, Head, Unclear, read_head
from policies.policy import (
    CANARY_HOST,
    CANARY_TOOL,
    UNLISTED,
    UNLISTED_TOOL,
    KeyRule,
    Policy,
    Tool,
    covers,
)
from policies.protocols import graphql, mcp, model_api
from policies.protocols.reading import Operation, Reading
from policies.verdict import Reason

DEFAULT_PORT = {"http": 80, "https": 443, "ws": 80, "wss": 443}
HOST_CHARACTERS_MAX = 255  # RFC 1035, section 2.3.4
KEY_CHARACTERS_MAX = 255
OPERATION_CHARACTERS_MAX = 200

_DODGE = Unclear("servers disagree on what its path names")
_SOCKET = Unclear("its operations would go by inside the socket", Reason.PROTOCOL_UNSUPPORTED)
_UNPRICED_SOCKET = Unclear(
    "what a model is asked inside the socket cannot be priced; "
    "where it may be opened all the same, the policy says `websocket: model`, or a `cost`",
    Reason.PROTOCOL_UNSUPPORTED,
)
_TOO_LONG = Unclear(
    "it decides what is asked, so no more of it is read than "
    f"{canonical.SORTED_BYTES_MAX >> 20} MiB and {canonical.VALUES_MAX:,} values",
    Reason.BODY_TOO_LARGE,
)
_UNREAD = "its body is streamed, so it is not read"
_MOVED = "while it began the policy changed, so that its body must be read; send it again"
_BAD_KEY = Unclear("its idempotency key is empty, too long, sent twice or named in Connection")
_READS_OF_SEVERAL = Unclear("a batch of reads of several tools; send them one by one")


class Matcher(NamedTuple):
    """A protocol that hides its operation in the body: the glob of a tool that names it, and its
    reader, which answers None when the request is not of the protocol after all."""

    dialect: Dialect
    glob: Callable[[Tool], str | None]
    read: Callable[[Request, bool], Reading | None]


MATCHERS: tuple[Matcher, ...] = (
    Matcher(Dialect.MCP, lambda tool: tool.mcp_tool, mcp.read),
    Matcher(Dialect.GRAPHQL, lambda tool: tool.graphql_operation, graphql.read),
)

# Where in a message that stands which the policy ignores: an MCP tool's arguments, the variables.
_HELD_IN = {Dialect.MCP: "params.arguments", Dialect.GRAPHQL: "variables"}


def identify(policy: Policy, request: Request) -> ToolCall:
    """Name the tool, its effect, its fingerprint, the arguments that conditions ask for, and its
    worth. Raises nothing, whatever an agent sends.

    A request that servers could understand in two ways comes back with a `fault`.
    """
    call = replace(_identified(policy, request), host=request.host, method=request.method)
    if call.fault is not None:
        return call
    if request.streamed and not policy.tool(call.tool).stream:
        return replace(call, fault=Reason.MALFORMED_REQUEST, detail=_MOVED)
    worth = costs.worth(policy, policy.tool(call.tool), request, call)
    if isinstance(worth, Unclear):
        return replace(call, fault=worth.reason, detail=worth.detail)
    return replace(call, worth=worth)


def may_stream(policy: Policy, host: str) -> bool:
    """Whether a tool at this host has its uploads flow on unread."""
    return any(tool.stream for tool in tools_of(policy, host))


def streams(policy: Policy, request: Request) -> bool:
    """Whether this request, of which only the head is there, is judged by that alone, and its body
    flows on as it comes: the tool that it means says so (`stream: true`).

    What `_method` in its body says is not seen then.
    """
    candidates = tools_of(policy, request.host)
    head = read_head(request)
    if isinstance(head, Unclear) or head.upgrades or head.is_grpc:
        return False
    if paths.has_second_reading(head.path) and _is_a_dodge(candidates, request, head.path):
        return False
    first = next(_standing(candidates, request, head.path), None)
    return first is not None and first.stream


def _identified(policy: Policy, request: Request) -> ToolCall:
    head = read_head(request)
    if isinstance(head, Unclear):
        dialect = _dialect(request, "", None)
        return _fault(UNLISTED, _label(request, request.path), dialect, head)
    if request.host == CANARY_HOST:
        return _by_head(CANARY_TOOL, request, head)
    candidates = tools_of(policy, request.host)
    if paths.has_second_reading(head.path) and _is_a_dodge(candidates, request, head.path):
        dialect = _dialect(request, head.content.media_type, None)
        return _fault(UNLISTED, _label(request, head.path), dialect, _DODGE)
    standing = _standing(candidates, request, head.path)
    for tool in standing:
        matcher = _matcher(tool)
        if matcher is None:
            return _with_fields(_by_head(tool, request, head), tool, request, head)
        if head.upgrades:
            # The operations would go by inside the socket, where no rule could name them.
            label = _label(request, head.path)
            return _fault(tool.name, label, matcher.dialect, _SOCKET)
        if request.body and (unclear := _unreadable(request, head)):
            return _fault(tool.name, _label(request, head.path), matcher.dialect, unclear)
        reading = matcher.read(request, tool.path is not None)
        if reading is not None:
            call = _by_body(matcher, [tool, *standing], reading, request, head)
            return _with_messages(call, policy.tool(call.tool), reading, request)
    return _by_head(UNLISTED_TOOL, request, head)


def tools_of(policy: Policy, host: str) -> Sequence[Tool]:
    """The tools of a host in file order; found label by label, whatever the policy's length."""
    if len(host) > HOST_CHARACTERS_MAX:
        return ()
    if ":" in host:
        try:
            host = ip_address(host).compressed
        except ValueError:
            return ()
    found = policy.by_host.get(host, ())
    if not policy.by_suffix:
        return found
    suffixed: list[Tool] = []
    _, _, suffix = host.partition(".")
    while suffix:
        suffixed += policy.by_suffix.get(suffix, ())
        _, _, suffix = suffix.partition(".")
    return sorted((*found, *suffixed), key=lambda tool: tool.order) if suffixed else found


def _standing(candidates: Sequence[Tool], request: Request, path: str) -> Iterator[Tool]:
    """The candidates whose method, port and path hold."""
    method = request.method.upper()
    default_port = DEFAULT_PORT.get(request.scheme)
    for tool in candidates:
        if (
            (tool.methods is None or method in tool.methods)
            and request.port == (tool.port or default_port)
            and (tool.path is None or tool.path.fullmatch(path))
        ):
            yield tool


def _is_a_dodge(candidates: Sequence[Tool], request: Request, path: str) -> bool:
    """Whether a server that reads the path another way would reach an earlier tool."""
    other_path = paths.second_reading(path)
    if other_path is None:
        return True
    first = next(_standing(candidates, request, path), None)
    other = next(_standing(candidates, request, other_path), None)
    return other is not None and (first is None or other.order < first.order)


def _matcher(tool: Tool) -> Matcher | None:
    if tool.mcp_tool is None and tool.graphql_operation is None:
        return None
    return next(matcher for matcher in MATCHERS if matcher.glob(tool) is not None)


def _unreadable(request: Request, head: Head) -> Unclear | None:
    """Why a body that decides what is asked must not be read: the server may see another text."""
    if why := head.content.hidden(UTF_8):
        return Unclear(why)
    if head.content.is_form:
        return Unclear("a form or its parts, where one message is expected")
    if canonical.is_too_long(request.body):
        return _TOO_LONG
    return None


def _by_head(tool: Tool, request: Request, head: Head) -> ToolCall:
    """A call that its head explains: plain HTTP, gRPC, a model API, a WebSocket."""
    effect = tool.websocket if head.upgrades else tool.effect or _effect(tool, request, head)
    dialect = _dialect(request, head.content.media_type, tool)
    label = _label(request, head.path)
    if too_large := _too_large(tool, request):
        return _fault(tool.name, label, dialect, too_large)
    if head.upgrades and effect is Effect.WRITE and tool.hold:
        return _fault(tool.name, label, dialect, _SOCKET)
    if head.upgrades and _is_unpriced(tool):
        return _fault(tool.name, label, dialect, _UNPRICED_SOCKET)
    if effect is Effect.MODEL and tool.model_api and (why := head.content.hidden(UTF_8)):
        return _fault(tool.name, label, dialect, Unclear(why))
    if effect is not Effect.WRITE or head.upgrades:
        # A WebSocket is a write that no stored answer can stand for: it is never deduplicated.
        return ToolCall(tool.name, effect, label, b"", dialect=dialect)
    key, key_is_faulty = _key(tool.key, request, head)
    if key_is_faulty:
        return _fault(tool.name, label, dialect, _BAD_KEY)
    if request.streamed:
        fingerprint = canonical.fingerprint_of_head(request, head.path, head.content)
        return ToolCall(tool.name, effect, label, fingerprint, key, dialect, streamed=True)
    ignored = ignoring.of_request(tool.key.ignore) if tool.key.ignore else ignoring.NOTHING
    fingerprint = canonical.fingerprint(request, head.path, head.content, ignored=ignored)
    return ToolCall(tool.name, effect, label, fingerprint, key, dialect)


def _is_unpriced(tool: Tool) -> bool:
    """Whether a socket to it leads to a model, and the policy says nothing of it."""
    is_model = tool.model_api is not None or tool.effect is Effect.MODEL
    return is_model and tool.cost is None and tool.websocket is not Effect.MODEL


def _with_fields(call: ToolCall, tool: Tool, request: Request, head: Head) -> ToolCall:
    """The call with the arguments that conditions ask for. Where none do, nothing is read."""
    if call.fault is not None or not tool.reads:
        return call
    if request.streamed:
        return replace(call, unread=tuple((path, _UNREAD) for path in tool.reads))
    found = arguments.of_request(tool.reads, request, head)
    return replace(call, arguments=found.values, unread=found.unread)


def _with_messages(call: ToolCall, tool: Tool, reading: Reading, request: Request) -> ToolCall:
    """As `_with_fields`, of a protocol's messages; its housekeeping has no arguments."""
    if call.fault is not None:
        return call
    if too_large := _too_large(tool, request):  # only what was sent said which tool it is
        return _fault(call.tool, call.operation, call.dialect, too_large, call.rpc_id)
    asked = [operation for operation in reading.operations if not operation.own]
    if not asked and call.effect is not Effect.WRITE:
        return replace(call, own=True)
    several = sum(len(operation.names) or 1 for operation in asked)
    if several > 1:
        call = replace(call, operations=several)
    if not tool.reads:
        return call
    messages = [message for operation in asked for message in operation.arguments()]
    found = arguments.of_messages(tool.reads, messages)
    return replace(call, arguments=found.values, unread=found.unread)


def _too_large(tool: Tool, request: Request) -> Unclear | None:
    most, size = tool.body_bytes_max, request.body_bytes
    if most is None or size <= most:
        return None
    where = f"; line {tool.line} of the policy" if tool.line else ""
    return Unclear(f"{size} bytes, at most {most} for {tool.name}{where}", Reason.BODY_TOO_LARGE)


def _effect(tool: Tool, request: Request, head: Head) -> Effect:
    if head.is_grpc:
        return Effect.WRITE
    if request.method in SAFE:
        return Effect.READ
    if tool.model_api and model_api.infers(tool.model_api, request.method, head.path):
        return Effect.MODEL
    return Effect.WRITE


def _by_body(
    matcher: Matcher, tools: Sequence[Tool], reading: Reading, request: Request, head: Head
) -> ToolCall:
    """A call that its body explains. `tools` stand at the endpoint, its owner first."""
    owner, label = tools[0], _label(request, head.path)
    if reading.fault is not None:
        unclear = Unclear("its body can be read in two ways, or not at all", reading.fault)
        return _fault(owner.name, label, matcher.dialect, unclear, reading.rpc_id)
    label = _text(reading.operations[0].label)
    touched: dict[str, Tool] = {}
    writes = 0
    for operation in reading.operations:
        covering = [] if operation.own else _covering(matcher, tools, operation)
        touched |= {tool.name: tool for tool in covering}
        writes += _writes(operation, covering)
    tool = next(iter(touched.values()), owner)
    if len(touched) > 1 or writes > 1:
        # Reads of several tools have no one tool whose cords and permissions would apply.
        unclear = Unclear("", Reason.BATCH_OF_WRITES) if writes else _READS_OF_SEVERAL
        return _fault(tool.name, label, matcher.dialect, unclear, reading.rpc_id)
    if not writes:
        effect = (tool.effect if touched else None) or Effect.READ
        return ToolCall(tool.name, effect, label, b"", None, matcher.dialect, reading.rpc_id)
    ignored = ignoring.of_messages(tool.key.ignore, _HELD_IN[matcher.dialect])
    try:
        message = ignored.in_json(reading.message)
        payload = None if message is None else canonical.write_json(message)
    except canonical.NotPlainJsonError:
        if matcher.dialect is not Dialect.GRAPHQL:
            return _fault(tool.name, label, matcher.dialect, Unclear("its text is no Unicode"))
        payload = None  # the bytes themselves can be compared
    key, key_is_faulty = _key(tool.key, request, head)
    if key_is_faulty:
        return _fault(tool.name, label, matcher.dialect, _BAD_KEY, reading.rpc_id)
    fingerprint = canonical.fingerprint(request, head.path, head.content, payload, ignored)
    return ToolCall(
        tool.name, Effect.WRITE, label, fingerprint, key, matcher.dialect, reading.rpc_id
    )


def _covering(matcher: Matcher, tools: Sequence[Tool], operation: Operation) -> list[Tool]:
    """For each name of the operation, the first tool that covers it."""
    if not operation.names:
        return [UNLISTED_TOOL]
    globs = [(tool, glob) for tool in tools if (glob := matcher.glob(tool)) is not None]
    return [
        next((tool for tool, glob in globs if covers((glob,), name)), UNLISTED_TOOL)
        for name in operation.names
    ]


def _writes(operation: Operation, covering: Sequence[Tool]) -> int:
    """How many writes an operation makes; the policy's word on the tools counts most."""
    if operation.own:
        return int(operation.effect is Effect.WRITE)
    writes = sum((tool.effect or operation.effect) is Effect.WRITE for tool in covering)
    return writes if operation.effect is Effect.WRITE else min(writes, 1)


def _key(rule: KeyRule, request: Request, head: Head) -> tuple[str | None, bool]:
    """The idempotency key that was sent, and whether what was sent cannot be one.

    One that `Connection` names would not reach the server: there the write had no key.
    """
    if rule.header in head.dropped:
        return None, True
    values = [value.strip() for name, value in request.headers if name == rule.header]
    if not values:
        return None, False
    return values[0], len(values) > 1 or not 1 <= len(values[0]) <= KEY_CHARACTERS_MAX


def _dialect(request: Request, media_type: str, tool: Tool | None) -> Dialect:
    if media_type.startswith("application/grpc"):
        return Dialect.GRPC
    if tool is not None and tool.model_api is not None:
        return model_api.DIALECT[tool.model_api]
    if request.host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return Dialect.AWS
    return Dialect.HTTP


def _label(request: Request, path: str) -> str:
    return _text(f"{request.method} {path}")


def _text(label: str) -> str:
    """A label as it can be stored: short, and without the halves of characters."""
    label = label[:OPERATION_CHARACTERS_MAX]
    return label if label.isascii() else label.encode("utf-8", "backslashreplace").decode()


def _fault(
    tool: str,
    label: str,
    dialect: Dialect,
    unclear: Unclear,
    rpc_id: str | int | None = None,
) -> ToolCall:
    """A call that can only be refused; it counts as a write."""
    return ToolCall(
        tool, Effect.WRITE, label, b"", None, dialect, rpc_id, unclear.reason, unclear.detail
    )
