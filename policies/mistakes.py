"""What pydantic found wrong with a document, told as mistakes that its author can mend."""

import re
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from policies.document import Document, Location, Mistake
from policies.schema_parts import AtKeyError

REPAIRS = 10  # values are nested six deep, and each level may have to go

_KINDS: dict[type, str] = {
    str: "text", bool: "a boolean", int: "a number", Decimal: "a number", list: "a list",
    dict: "a mapping",
}  # fmt: skip
_ITEMS = {"ceilings": "this ceiling", "alerts": "this alert"}
_HINTS = {
    "output_usd_per_million_tokens": "; write 0 where a model answers with no tokens, as one of "
    "embeddings does"
}
_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def validated[M: BaseModel](
    model: type[M], document: Document, needed: dict[str, object]
) -> tuple[M | None, list[Mistake]]:
    """The document as the model, and all that is wrong with it.

    What is wrong is taken out of the document, as often as it takes to see the rest as the model;
    `needed` stands in at the top where that leaves a gap. None when nothing is left.
    """
    told: list[Mistake] | None = None
    for _ in range(REPAIRS):
        try:
            return model.model_validate(document.data), told or []
        except ValidationError as found:
            errors = found.errors(include_url=False)
        if told is None:  # what is wrong later follows from what was taken out
            schema = model.model_json_schema(by_alias=True)
            true = [error for error in errors if not _follows(document, error)]
            told = [_mistake(document, schema, error) for error in true]
        gone = document.drop([_culprit(error) for error in errors])
        if not isinstance(document.data, dict) or not (gone or needed.keys() - document.data):
            break
        document.data.update({key: needed[key] for key in needed.keys() - document.data})
    return None, told or []


def _culprit(error: ErrorDetails) -> Location:
    location: Location = error["loc"]
    return location[:-1] if error["type"] == "missing" or location[-1:] == ("[key]",) else location


def _follows(document: Document, error: ErrorDetails) -> bool:
    """Whether an error follows from a mistake of the YAML, which is told already."""
    location: Location = error["loc"]
    if error["type"] == "missing" and len(location) == 1:
        return location[0] in document.keys(())
    location = _culprit(error)
    return error["type"] != "extra_forbidden" and document.is_mistaken(location)


def suggestion(word: str, words: list[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no known word is near."""
    near = get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _mistake(document: Document, schema: dict[str, Any], error: ErrorDetails) -> Mistake:
    location: Location = error["loc"]
    if error["type"] == "extra_forbidden":
        known = _keys(schema, location[:-1])
        hint = suggestion(str(location[-1]), known) or f"; known here: {', '.join(known)}"
        return document.at(location, f"unknown key {location[-1]!r}{hint}", of_key=True)
    if error["type"] == "missing":
        hint = _HINTS.get(str(location[-1]), "")
        return document.at(location[:-1], f"{location[-1]!r} is missing{hint}")
    if location[-1:] == ("[key]",):
        text = f"the name {location[-2]!r} {_sentence(error)}"
        return document.at(location[:-1], text, of_key=True)
    fault = error.get("ctx", {}).get("error")
    if isinstance(fault, AtKeyError):
        location = (*location, fault.key)
    return document.at(location, f"{_subject(location)} {_sentence(error)}")


def _subject(location: Location) -> str:
    """What is mistaken: a key, an item of a list that is a thing of its own, or all of it."""
    names = [part for part in location if isinstance(part, str)]
    if not names:
        return "the file"
    return (isinstance(location[-1], int) and _ITEMS.get(names[-1])) or repr(names[-1])


def _sentence(error: ErrorDetails) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind in _WANTED:
        quotes = kind == "string_type" and isinstance(value, bool | int | Decimal)
        hint = "; put it in quotes" if quotes else ""
        return f"must be {_WANTED[kind]}, not {_shown(value)}{hint}"
    if kind in ("literal_error", "enum"):
        words = re.findall(r"[\w]+", re.sub(r"<[^>]*: |>|\bor\b", " ", str(context["expected"])))
        words = ["true" if word == "True" else word for word in words]
        wanted = " or ".join([", ".join(words[:-1]), words[-1]] if words[:-1] else words)
        if not isinstance(value, str) or len(words) == 1:
            return f"must be {wanted}, not {_shown(value)}"
        return f"must be {wanted}, not {value[:40]!r}{suggestion(value, words)}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "greater_than_equal":
        return f"must be at least {context['ge']}, not {value}"
    if kind == "less_than_equal":
        return f"must be at most {context['le']}, not {value}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if kind == "string_too_long":
        return f"must be at most {context['max_length']} characters"
    return error["msg"]


def _shown(value: object) -> str:
    kind = _KINDS.get(type(value), "this")
    if isinstance(value, list | dict):
        return kind
    text = repr(value) if isinstance(value, str) else str(value)
    text = text.lower() if isinstance(value, bool) else text
    return f"the {kind.removeprefix('a ')} {text[:60]}"


def _keys(schema: dict[str, Any], location: Location) -> list[str]:
    """The keys that a mapping of the document may have, by the JSON Schema of the whole."""
    here = _choices(schema, schema)
    for part in location:
        below = [found for choice in here if (found := _below(choice, part)) is not None]
        here = [choice for found in below for choice in _choices(schema, found)] or here
    return [key for choice in here for key in choice.get("properties", ())]


def _choices(schema: dict[str, Any], part: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in part:
        return _choices(schema, schema["$defs"][part["$ref"].rpartition("/")[2]])
    if "anyOf" in part:
        return [choice for option in part["anyOf"] for choice in _choices(schema, option)]
    return [part]


def _below(choice: dict[str, Any], part: str | int) -> dict[str, Any] | None:
    if isinstance(part, int):
        return choice.get("items")
    found: dict[str, Any] | None = choice.get("properties", {}).get(part)
    rest = choice.get("additionalProperties")
    return found if found is not None else rest if isinstance(rest, dict) else None
