"""The arguments of a GraphQL operation's root fields, with its variables filled in.

What a field is given in the end is what conditions are about: an agent may write a value into the
document, or send it as a variable of any name. Numbers come as `orjson.Fragment`, as in JSON.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import orjson

from policies.canonical import NotPlainJsonError, read_json

if TYPE_CHECKING:
    from graphql import FieldNode, OperationDefinitionNode, ValueNode

_UNREADABLE = None  # no object, so no condition holds of it


class _TwiceError(ValueError):
    """A name stands twice, or the variables are no object."""


def arguments(
    operation: "OperationDefinitionNode", fields: Sequence["FieldNode"], sent: object
) -> list[object]:
    """One object for each field, None where it cannot be read for certain; `sent` are the
    variables of the request."""
    try:
        variables = _variables(operation, sent)
        return [_of(field, variables) for field in fields]
    except (_TwiceError, NotPlainJsonError, RecursionError):
        return [_UNREADABLE]


def _variables(operation: "OperationDefinitionNode", sent: object) -> dict[str, object]:
    """Those that the operation declares, as sent or by their defaults; others count for nothing."""
    if isinstance(sent, str):  # in a URL it is JSON in text
        sent = read_json(sent.encode("utf-8", "surrogatepass"))
    if sent is None:
        sent = {}
    if not isinstance(sent, dict):
        raise _TwiceError
    found: dict[str, object] = {}
    declared: set[str] = set()
    for definition in operation.variable_definitions or ():
        name = definition.variable.name.value
        if name in declared:
            raise _TwiceError
        declared.add(name)
        if name in sent:
            found[name] = sent[name]
        elif definition.default_value is not None:
            found[name] = _value(definition.default_value, {})
    return found


def _of(field: "FieldNode", variables: dict[str, object]) -> dict[str, object]:
    return _pairs([(node.name.value, node.value) for node in field.arguments or ()], variables)


def _pairs(
    pairs: Sequence[tuple[str, "ValueNode"]], variables: dict[str, object]
) -> dict[str, object]:
    from graphql import VariableNode

    found: dict[str, object] = {}
    for name, node in pairs:
        if name in found:
            raise _TwiceError
        if isinstance(node, VariableNode) and node.name.value not in variables:
            continue  # a variable without a value leaves its place empty
        found[name] = _value(node, variables)
    return found


def _value(node: "ValueNode", variables: dict[str, object]) -> object:
    from graphql import (
        BooleanValueNode,
        FloatValueNode,
        IntValueNode,
        ListValueNode,
        NullValueNode,
        ObjectValueNode,
        VariableNode,
    )

    match node:
        case VariableNode():
            return variables.get(node.name.value)
        case IntValueNode() | FloatValueNode():
            return orjson.Fragment(node.value)
        case BooleanValueNode():
            return node.value
        case NullValueNode():
            return None
        case ListValueNode():
            return [_value(item, variables) for item in node.values]
        case ObjectValueNode():
            return _pairs([(item.name.value, item.value) for item in node.fields], variables)
    return str(getattr(node, "value", ""))  # a text, or the word of an enumeration
