"""How writes are made once, what is kept of calls and how it is checked, compiled."""

import re
from collections.abc import Iterable

from policies.call import Effect
from policies.document import Document, Location, Mistake
from policies.mistakes import suggestion
from policies.policy import KeyRule, OperatorCall, Redaction
from policies.schema import PolicyFile, ToolRule
from policies.schema_records import OperatorCallRule, RedactRule

PLACES = ("call", "run", "tenant", "at", "at_seconds", "key")
"""What an operator's call may name of the call that it is about, beside `request.PATH`."""
LOOKING = {"GET", "HEAD"}
"""Methods that look and change nothing."""
PLACE = re.compile(r"\{([^{}]*)\}")


def key_rule(rule: ToolRule) -> KeyRule:
    key = rule.idempotency
    return KeyRule(
        header=key.header.lower(),
        # Without a body there is nothing to derive a key from.
        missing="require" if rule.stream and key.missing == "derive" else key.missing,
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
        if rule.verify is not None:
            yield from _of_verify(rule.verify, file, read, ("tools", name, "verify"))


def _of_verify(
    rule: OperatorCallRule, file: PolicyFile, read: Document, here: Location
) -> Iterable[Mistake]:
    if rule.tool not in file.tools:
        text = f"no tool is named {rule.tool!r}{suggestion(rule.tool, list(file.tools))}"
        yield read.at((*here, "tool"), text)
    elif file.tools[rule.tool].effect not in (None, Effect.READ):
        effect = file.tools[rule.tool].effect
        yield read.at((*here, "tool"), f"{rule.tool} is a {effect}, and only a read verifies")
    else:
        yield from _of_method(rule, file, read, here)
    if rule.method is not None and rule.method not in LOOKING:
        yield read.at((*here, "method"), f"'method' must be GET or HEAD, not {rule.method}")
    if rule.path is not None and ("?" in rule.path or "#" in rule.path):
        yield read.at((*here, "path"), "'path' must hold no query; it has a 'query' beside it")
    texts: list[tuple[Location, str]] = [(("path",), rule.path or "")]
    texts += [(("query", key), text) for key, text in rule.query.items()]
    texts += [(("headers", key), text) for key, text in rule.headers.items()]
    for where, text in texts:
        for place in PLACE.findall(text):
            if place not in PLACES and not place.startswith("request."):
                known = f"there are {', '.join(PLACES)} and request.PATH"
                yield read.at((*here, *where), f"{{{place}}} is unknown; {known}")


def _of_method(
    rule: OperatorCallRule, file: PolicyFile, read: Document, here: Location
) -> Iterable[Mistake]:
    """By its method no read: that is seen here, and not only when a person has to ask."""
    methods = set(file.tools[rule.tool].match.method)
    wanted = LOOKING if rule.method is None else {rule.method}
    if rule.method in (None, *LOOKING) and "*" not in methods and not methods & wanted:
        line = read.at(("tools", rule.tool), "", of_key=True).line
        told = f"{rule.tool} (line {line}) is only for {', '.join(sorted(methods))}"
        needs = "a read, by GET or HEAD" if rule.method is None else f"a tool for {rule.method}"
        yield read.at((*here, "tool"), f"{told}, and 'verify' needs {needs}")
