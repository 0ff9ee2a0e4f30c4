"""GraphQL over HTTP: what matters is the root fields of the operation that will run.

The document is parsed, never searched. The name that the agent gives an operation and the aliases
it gives to fields say nothing. A document that two servers could read differently is a fault; one
that is only named (a persisted query) can be anything, so no tool covers it.
"""

import hashlib
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from policies.call import Effect, Request
from policies.canonical import NotPlainJsonError, read_json
from policies.protocols.graphql_arguments import arguments
from policies.protocols.graphql_counting import what_counts
from policies.protocols.reading import AMBIGUOUS, Operation, Reading, looks_alike

if TYPE_CHECKING:
    from graphql import DocumentNode, FieldNode, OperationDefinitionNode, SelectionSetNode

# Other calls wait while a document is parsed: with these, some tens of milliseconds at the most.
TOKENS_MAX = 5_000
CHARACTERS_MAX = 100_000
FIELDS_MAX = 1_000
ENTRIES_MAX = 20  # clients send ten

_MEMBERS = frozenset({"query", "operationName", "variables", "extensions"})
# Members by which servers look up a document that they keep; beside one the text may be ignored.
_KEPT = frozenset({"documentId", "document_id", "doc_id", "queryId", "query_id"})
_ASKS = frozenset(name.casefold() for name in _MEMBERS | _KEPT)
_PERSISTED = Operation((), Effect.WRITE, "persisted query")


class _AmbiguousError(ValueError):
    """The request is not plainly one GraphQL request or a batch of them."""


def read(request: Request, _: bool) -> Reading | None:
    """Read a request to a GraphQL endpoint; None when it only looks at a page of it."""
    try:
        found = _entries(request)
        if found is None:
            return None
        entries, is_batch = found
        if not 1 <= len(entries) <= ENTRIES_MAX:
            return AMBIGUOUS
        # A batch has no more to say than one request: its tokens are shared out evenly.
        tokens_max = TOKENS_MAX // len(entries)
        read_entries = [_operation(entry, tokens_max) for entry in entries]
    except (_AmbiguousError, NotPlainJsonError, RecursionError):
        return AMBIGUOUS
    operations = tuple(operation for operation, _ in read_entries)
    counted = [counts for _, counts in read_entries]
    if None in counted or not request.body:  # a URL counts as it is
        return Reading(operations)
    return Reading(operations, message=counted if is_batch else counted[0])


def _entries(request: Request) -> tuple[list[object], bool] | None:
    """The requests, and whether they are a batch, which is answered with a list."""
    asked = _asked(request.target.partition("?")[2])
    if asked and request.body:
        raise _AmbiguousError  # some servers take the one, some the other
    if asked:
        members = dict(asked)
        if len(members) != len(asked):
            raise _AmbiguousError
        return [members], False
    if not request.body:
        if request.method in ("GET", "HEAD", "OPTIONS"):
            return None
        raise _AmbiguousError
    media_type = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if media_type == "application/graphql":
        return [{"query": _text(request.body)}], False
    message = read_json(request.body)
    return (message, True) if isinstance(message, list) else ([message], False)


def _asked(query: str) -> list[tuple[str, object]]:
    """What a URL asks. Some servers also split at `;`, some take `query[]` for `query`."""
    asked: list[tuple[str, object]] = []
    asked += (pair for pair in _pairs(query) if pair[0].casefold() in _ASKS)
    others = [name.casefold().partition("[")[0] for name, _ in _pairs(query.replace(";", "&"))]
    if sum(name in _ASKS for name in others) != len(asked):
        raise _AmbiguousError
    return asked


def _pairs(query: str) -> list[tuple[str, str]]:
    return parse_qsl(query, keep_blank_values=True)


def _text(body: bytes) -> str:
    if body.startswith(b"\xef\xbb\xbf"):
        raise _AmbiguousError  # as with JSON: some readers skip a byte order mark, some do not
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise _AmbiguousError from None


def _operation(entry: object, tokens_max: int) -> tuple[Operation, dict[str, object] | None]:
    """What an entry does, and what counts of it; None where only the body can tell."""
    if not isinstance(entry, dict) or looks_alike(entry, _MEMBERS):
        raise _AmbiguousError
    text, name = entry.get("query"), entry.get("operationName")
    if not text or "id" in entry or not _KEPT.isdisjoint(entry):
        return _PERSISTED, None
    if not isinstance(text, str) or len(text) > CHARACTERS_MAX:
        raise _AmbiguousError
    if not (name is None or isinstance(name, str)):
        raise _AmbiguousError
    _check_hash(text, entry.get("extensions"))
    document, operation, fields = _root_fields(text, name, tokens_max)
    kind = operation.operation.value
    names = tuple(f"{kind}.{field.name.value}" for field in fields)
    effect = Effect.WRITE if kind == "mutation" else Effect.READ
    sent = entry.get("variables")
    read_arguments = partial(arguments, operation, fields, sent)
    asked = Operation(names, effect, " ".join(names), arguments=read_arguments)
    return asked, what_counts(entry, document, operation)


def _check_hash(text: str, extensions: object) -> None:
    """A text sent with the hash of a kept document must be that document."""
    if isinstance(extensions, str):  # in a URL it is JSON in text
        extensions = read_json(extensions.encode("utf-8", "surrogatepass"))
    if not isinstance(extensions, dict) or "persistedQuery" not in extensions:
        return
    kept = extensions["persistedQuery"]
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    if not isinstance(kept, dict) or kept.get("sha256Hash") != digest:
        raise _AmbiguousError


def _root_fields(
    text: str, name: str | None, tokens_max: int
) -> tuple["DocumentNode", "OperationDefinitionNode", list["FieldNode"]]:
    # Imported late: it takes 60 ms, and most processes never see a GraphQL call.
    from graphql import GraphQLSyntaxError, parse

    try:
        document = parse(text, max_tokens=tokens_max)
    except GraphQLSyntaxError:
        raise _AmbiguousError from None
    operation = _chosen(document, name)
    fields = _fields(document, operation.selection_set)
    # Introspection beside real fields changes nothing about what they do.
    asked = [field for field in fields if not field.name.value.startswith("__")]
    return document, operation, asked or fields


def _chosen(document: "DocumentNode", name: str | None) -> "OperationDefinitionNode":
    from graphql import OperationDefinitionNode

    nodes = document.definitions
    operations = [node for node in nodes if isinstance(node, OperationDefinitionNode)]
    if name is not None:
        operations = [node for node in operations if node.name and node.name.value == name]
    if len(operations) != 1:
        raise _AmbiguousError
    return operations[0]


def _fields(document: "DocumentNode", root: "SelectionSetNode") -> list["FieldNode"]:
    """The root fields, also those that fragments bring in; each fragment counts once."""
    from graphql import FieldNode, FragmentDefinitionNode, FragmentSpreadNode, InlineFragmentNode

    parts = [node for node in document.definitions if isinstance(node, FragmentDefinitionNode)]
    fragments = {part.name.value: part.selection_set for part in parts}
    if len(fragments) != len(parts):
        raise _AmbiguousError
    fields: list[FieldNode] = []
    waiting = [root]
    while waiting:
        for node in waiting.pop().selections:
            if isinstance(node, FieldNode):
                fields.append(node)
            elif isinstance(node, FragmentSpreadNode):
                # Taken out, so that a fragment that spreads itself ends.
                if (spread := fragments.pop(node.name.value, None)) is not None:
                    waiting.append(spread)
            elif isinstance(node, InlineFragmentNode):
                waiting.append(node.selection_set)
    if not fields or len(fields) > FIELDS_MAX:
        raise _AmbiguousError
    return fields
