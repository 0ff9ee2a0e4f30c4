"""What counts of a GraphQL request when two are compared: the operation that runs, the fragments
that it uses and the variables, whatever the text looks like and whatever it names the operation.

Tokens are compared, not characters, so comments, blanks and commas do not count. The order of
fields and arguments does: mutations run in their order.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphql import DocumentNode, Node, OperationDefinitionNode, Token


def what_counts(
    entry: dict[str, object], document: "DocumentNode", operation: "OperationDefinitionNode"
) -> dict[str, object]:
    """The request as one value. Members that the protocol does not know count, too: a server may.

    Variables that are missing, null or none at all are alike, as extensions are. The hash of a kept
    document says nothing that the operation does not say, and changes with a blank.
    """
    counted = {key: value for key, value in entry.items() if key != "operationName"}
    counted["query"] = _printed(document, operation)
    counted["variables"] = _or_empty(entry.get("variables"))
    extensions = _or_empty(entry.get("extensions"))
    if isinstance(extensions, dict):
        extensions = {key: each for key, each in extensions.items() if key != "persistedQuery"}
    counted["extensions"] = extensions
    return counted


def _or_empty(value: object) -> object:
    return {} if value is None else value


def _printed(document: "DocumentNode", operation: "OperationDefinitionNode") -> list[str]:
    """The tokens of the operation, and of each fragment in the order in which they are used."""
    from graphql import FragmentDefinitionNode

    nodes = document.definitions
    left = {node.name.value: node for node in nodes if isinstance(node, FragmentDefinitionNode)}
    words = list(_words(operation))
    if words[0] == "{":  # a query without its word
        words.insert(0, operation.operation.value)
    elif operation.name is not None:
        del words[1]
    at = 0
    while at < len(words):  # what is used is appended, so that it is looked through, too
        if words[at] == "..." and (used := left.pop(words[at + 1], None)) is not None:
            words += _words(used)
        at += 1
    return words


def _words(node: "Node") -> Iterator[str]:
    """A text begins with a quote, as no other token does; how it was quoted does not count."""
    from graphql import TokenKind

    if node.loc is None:
        raise ValueError("parsed without places")
    token: Token | None = node.loc.start_token
    while token is not None:
        if token.kind in (TokenKind.STRING, TokenKind.BLOCK_STRING):
            yield f'"{token.value}'
        elif token.kind is not TokenKind.COMMENT:
            yield token.value or token.kind.value
        token = token.next if token is not node.loc.end_token else None
