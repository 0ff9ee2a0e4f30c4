"""Who may use which tools with which arguments, as it is written in the policy file."""

from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from policies import argument_paths
from policies.arguments import CHARACTERS_MAX
from policies.schema_parts import Glob, Method, Part, listed, or_one

CONDITIONS_MAX = 20  # in one place
ONE_OF_MAX = 200
HOLD_SECONDS_MAX = 3_600  # clients give up long before; a ticket that old is no longer understood
TOOL_BODY_BYTES_MAX = 1024**3  # as `body_bytes_max` of the settings


def _number(value: object) -> int | Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError("must be a number; 'equals' compares text")
    return value


def _wanted(value: object) -> str | int | Decimal | bool:
    if not isinstance(value, str | int | Decimal | bool):
        raise ValueError("must be text, a number or a boolean")
    return value


def _grant(value: object) -> object:
    if not isinstance(value, str | dict):
        raise ValueError("must be the glob of a tool, or a mapping that names it as 'tool'")
    return {"tool": value} if isinstance(value, str) else value


def _or_glob(schema: dict[str, Any]) -> None:
    """In the JSON Schema: the mapping, or the glob of its tools."""
    whole = dict(schema)
    schema.clear()
    schema |= {"anyOf": [whole, {"type": "string"}]}


# No unions: of those, one mistake would be told once for each member.
Number = Annotated[Any, AfterValidator(_number), WithJsonSchema({"type": "number"})]
Wanted = Annotated[
    Any, AfterValidator(_wanted), WithJsonSchema({"type": ["string", "number", "boolean"]})
]


class ConditionRule(Part):
    """What is asked of one argument; all that is given must hold of all values that stand there."""

    at_most: Number | None = None
    at_least: Number | None = None
    equals: Wanted | None = None
    """This text, number or boolean. Of a form all is text, and `"5000"` a number, too."""
    one_of: Annotated[list[Wanted], Field(min_length=1, max_length=ONE_OF_MAX)] | None = None
    like: Glob | None = None
    """A glob over the whole text; case counts."""
    length_at_most: Annotated[int, Field(ge=0, le=CHARACTERS_MAX)] | None = None
    """It is text, of so many characters at most."""
    absent: Literal[True] | None = None
    """It must not be there. All others ask that it is."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        given = self.model_fields_set
        if not given:
            raise ValueError("must say what is asked, such as {at_most: 5000}")
        if self.absent and len(given) > 1:
            raise ValueError("must hold nothing beside 'absent'")
        if self.equals is not None and self.one_of is not None:
            raise ValueError("must hold 'equals' or 'one_of', not both")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError("must not have 'at_least' above 'at_most'")
        return self


ArgumentPath = Annotated[str, AfterValidator(argument_paths.checked)]
Where = Annotated[dict[ArgumentPath, ConditionRule], Field(min_length=1, max_length=CONDITIONS_MAX)]


class GrantRule(Part):
    """Tools that may be used, and how."""

    tool: Glob
    method: Annotated[
        list[Method], BeforeValidator(listed), Field(min_length=1, json_schema_extra=or_one)
    ] = ["*"]
    """By these methods only. Left out: by all of the tool's."""
    where: Where | None = None
    """With such arguments only, by their dotted paths: `metadata.kind`, `items[].price`."""


Grant = Annotated[GrantRule, BeforeValidator(_grant), Field(json_schema_extra=_or_glob)]


class HolderRule(Part):
    """A tenant or an agent that is listed may use these tools only; one that is not may use all."""

    allow: list[Grant] | None = None
    """Globs of tools, or mappings that say how, too. Left out beside `read_only`: all tools."""
    read_only: bool = False
    """Its writes are refused. Reads and model calls pass."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.allow is None and not self.read_only:
            raise ValueError("must say what it may: 'allow', or 'read_only: true'")
        return self
