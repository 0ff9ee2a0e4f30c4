"""Whether a call of the record would be the same call under another policy, as far as its row says.

Its body is not there, so a protocol that hides its operation in the body cannot be read again.
Where the tools of its host are as they were, it is the same; where the head alone names them, they
are matched again by host, method and path; else nobody can tell. Pure.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from policies import paths
from policies.call import Dialect, Effect, ToolCall
from policies.head import SAFE
from policies.match import tools_of
from policies.policy import CANARY, UNLISTED, UNLISTED_TOOL, KeyRule, Policy, Tool
from policies.verdict import Reason

KNOWN_MAX = 10_000  # hosts and tools that were compared; beyond it they are compared anew

NO_PATH = "its path is masked"
BY_BODY = "which tool it is stands in its body"
NOT_READ = "how its tool is matched has changed, and it was not read for certain then"
OTHER_API = "its model API has changed"
OTHER_SIZE = "how large a body may be has changed, and it was too large then"
UPGRADED = "it may have opened a WebSocket"
NO_POLICY = "the policy of that time cannot be read"


@dataclass(slots=True)
class Recognizing:
    """`before` gives a policy by its digest; None where it cannot be read any more."""

    policy: Policy
    before: Callable[[str], Policy | None]
    _same_hosts: dict[tuple[str, str], bool] = field(default_factory=dict)
    _same_keys: dict[tuple[str, str], bool] = field(default_factory=dict)

    def again(self, call: ToolCall, path: str | None, digest: str) -> ToolCall | str:
        """The call under the new policy, or why nobody can tell. `path` is None where the record
        does not hold it as it was; `digest` names the policy under which it was judged."""
        if digest == self.policy.digest or call.tool == CANARY:
            return call
        if self._is_same_host(digest, call.host):
            return self._of_size(call, digest)
        found = self._matched(call, path, digest)
        return found if isinstance(found, str) else self._of_size(found, digest)

    def keeps_keys(self, tool: str, digest: str) -> bool:
        """Whether the writes of this tool are told apart as they were."""
        if digest == self.policy.digest:
            return True
        key = (digest, tool)
        if key not in self._same_keys:
            before = self.before(digest)
            same = before is not None and _rule(before, tool) == _rule(self.policy, tool)
            _kept(self._same_keys, key, same)
        return self._same_keys[key]

    def _is_same_host(self, digest: str, host: str) -> bool:
        key = (digest, host)
        if key not in self._same_hosts:
            before = self.before(digest)
            _kept(
                self._same_hosts,
                key,
                before is not None and _matching(before, host) == _matching(self.policy, host),
            )
        return self._same_hosts[key]

    def _of_size(self, call: ToolCall, digest: str) -> ToolCall | str:
        """What the policy says of a body's size is part of matching."""
        most = self.policy.tool(call.tool).body_bytes_max
        if call.fault is Reason.BODY_TOO_LARGE:
            before = self.before(digest)
            same = before is not None and before.tool(call.tool).body_bytes_max == most
            return call if same else OTHER_SIZE
        if call.fault is None and most is not None and call.worth.bytes_up > most:
            return replace(call, fault=Reason.BODY_TOO_LARGE)
        return call

    def _matched(self, call: ToolCall, path: str | None, digest: str) -> ToolCall | str:
        """Matched again by its head."""
        before = self.before(digest)
        tools = tools_of(self.policy, call.host)
        olds = tools_of(before, call.host) if before is not None else ()
        if call.fault is not None:
            return NOT_READ
        if call.dialect in (Dialect.MCP, Dialect.GRAPHQL) or any(map(_hides, (*tools, *olds))):
            return BY_BODY
        normal = None if path is None else paths.normal(path)
        if normal is None or paths.has_second_reading(normal):
            return NO_PATH
        if any(tool.port is not None for tool in (*tools, *olds)):
            return NOT_READ  # the record does not say which port
        first = next((tool for tool in tools if _stands(tool, call.method, normal)), UNLISTED_TOOL)
        effect = self._effect(call, first, before)
        if not isinstance(effect, Effect):
            return effect
        return replace(call, tool=first.name, effect=effect)

    def _effect(self, call: ToolCall, tool: Tool, before: Policy | None) -> Effect | str:
        if before is None:
            return NO_POLICY
        was = before.tool(call.tool)
        if tool.model_api != was.model_api:
            return OTHER_API
        if tool.effect == was.effect and tool.websocket == was.websocket:
            return call.effect
        if call.method in SAFE and call.effect is Effect.WRITE:
            return UPGRADED
        if tool.effect is not None:
            return tool.effect
        if tool.model_api is not None:
            return OTHER_API
        by_method = Effect.READ if call.method in SAFE else Effect.WRITE
        return Effect.WRITE if call.dialect is Dialect.GRPC else by_method


def _stands(tool: Tool, method: str, path: str) -> bool:
    return (tool.methods is None or method.upper() in tool.methods) and (
        tool.path is None or tool.path.fullmatch(path) is not None
    )


def _hides(tool: Tool) -> bool:
    return tool.mcp_tool is not None or tool.graphql_operation is not None


def _rule(policy: Policy, tool: str) -> KeyRule | None:
    """None for one that the policy does not have."""
    known = tool == UNLISTED or tool in policy.tools
    return policy.tool(tool).key if known else None


def _matching(policy: Policy, host: str) -> list[tuple[Any, ...]]:
    """All of the tools at a host that says what a request to it is."""
    return [
        (
            *(tool.name, tool.hosts, tool.port, tool.methods, tool.mcp_tool),
            *(tool.graphql_operation, tool.model_api, tool.effect, tool.websocket, tool.stream),
            tool.path.pattern if tool.path is not None else None,
        )
        for tool in tools_of(policy, host)
    ]


def _kept(known: dict[tuple[str, str], bool], key: tuple[str, str], value: bool) -> None:
    if len(known) >= KNOWN_MAX:
        known.clear()
    known[key] = value
