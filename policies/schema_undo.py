"""How the writes of a tool are undone, as it is written in the policy file."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from policies.schema_parts import Name, ToolName
from policies.schema_records import FIELDS_MAX, OperatorCallRule, Text

Word = Literal["unneeded", "impossible"]
WORDS: tuple[str, ...] = get_args(Word)


class UndoRule(OperatorCallRule):
    """The call that undoes a write, made by an operator."""

    form: Annotated[dict[Name, Text], Field(max_length=FIELDS_MAX)] | None = None
    """Its body as fields of a form."""
    json_: Annotated[dict[Name, Any], Field(max_length=FIELDS_MAX)] | None = Field(
        default=None, alias="json"
    )
    """Its body as JSON. A text that is one place alone takes the value as it is: a number stays
    one."""

    @model_validator(mode="after")
    def _one_body(self) -> Self:
        if self.form is not None and self.json_ is not None:
            raise ValueError("must hold 'form' or 'json', not both")
        return self


class NoUndo(UndoRule):
    """A word in place of a call: nothing has to be undone, or nothing can be."""

    tool: ToolName = ""
    word: Word


def _undo(value: object) -> object:
    if isinstance(value, str) and value in WORDS:
        return NoUndo.model_validate({"word": value})
    if not isinstance(value, dict):
        raise ValueError(
            "must be a call such as {tool: NAME, form: {id: '{response.id}'}}, "
            "or the word unneeded or impossible"
        )
    return value


def _or_word(schema: dict[str, Any]) -> None:
    """In the JSON Schema: the call, or a word."""
    whole, description = dict(schema), schema.get("description", "")
    whole.pop("description", None)
    schema.clear()
    schema |= {"anyOf": [whole, {"enum": list(WORDS)}], "description": description}


UndoOrWord = Annotated[UndoRule, BeforeValidator(_undo), Field(json_schema_extra=_or_word)]
