"""How writes are made once, what is kept of calls and how it is checked, compiled."""

from collections.abc import Iterable

from policies.document import Document, Mistake
from policies.mistakes import suggestion
from policies.policy import KeyRule, OperatorCall, Redaction
from policies.schema import PolicyFile, ToolRule
from policies.schema_records import OperatorCallRule, RedactRule


def key_rule(rule: ToolRule) -> KeyRule:
    key = rule.idempotency
    return KeyRule(
        header=key.header.lower(),
        missing=key.missing,
        same_body=key.same_body,
        same_body_seconds=key.same_body_seconds,
        keep_seconds=key.keep_seconds,
        ignore=tuple(key.ignore),
        per=key.per,
        unauthorized=key.unauthorized,
    )


def redaction(rule: RedactRule) -> Redaction:
    return Redaction(
        headers=tuple(name.lower() for name in rule.headers),
        keys=tuple(name.lower() for name in rule.keys),
        patterns=tuple(rule.patterns),
    )


def operator_call(rule: OperatorCallRule | None) -> OperatorCall | None:
    if rule is None:
        return None
    return OperatorCall(
        tool=rule.tool,
        method=rule.method,
        path=rule.path,
        query=tuple(rule.query.items()),
        headers=tuple((name.lower(), value) for name, value in rule.headers.items()),
        auth=rule.auth,
    )


def mistakes(file: PolicyFile, read: Document) -> Iterable[Mistake]:
    """What no part of the file can know of itself."""
    for name, rule in file.tools.items():
        if rule.verify is not None and rule.verify.tool not in file.tools:
            text = f"no tool is named {rule.verify.tool!r}"
            text += suggestion(rule.verify.tool, list(file.tools))
            yield read.at(("tools", name, "verify", "tool"), text)
