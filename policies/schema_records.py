"""What is kept of calls, and how their record is checked, as it is written in the policy file."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from policies.schema_parts import Header, Method, Name, Part, ToolName

PATTERNS_MAX = 50  # each is looked for in every body that is kept
PATTERN_CHARACTERS_MAX = 500
FIELDS_MAX = 100
TEXT_CHARACTERS_MAX = 2_048

TraceRule = Literal["full", "digest", "none"]


def _pattern(text: str) -> str:
    try:
        found = re.compile(text)
    except re.error as error:
        raise ValueError(f"must be a regular expression: {error}") from None
    if found.match(""):
        raise ValueError("must not match the empty text, or it would be found everywhere")
    return text


def _trace(value: object) -> object:
    """YAML reads a bare `none` as text, and `~` as nothing; nothing is what was meant by it."""
    if value is False or value == "off":  # YAML reads a bare `off` as false
        raise ValueError("must be full, digest or none; to keep nothing write none")
    return "none" if value is None else value


def _no_credential(value: object) -> object:
    if isinstance(value, dict) and any(str(name).lower() == "authorization" for name in value):
        raise ValueError(
            "must hold no Authorization; write `auth: NAME`, an entry of DATA/credentials.yaml"
        )
    return value


Trace = Annotated[TraceRule, BeforeValidator(_trace)]
Pattern = Annotated[
    str, Field(min_length=1, max_length=PATTERN_CHARACTERS_MAX), AfterValidator(_pattern)
]
Text = Annotated[str, Field(min_length=1, max_length=TEXT_CHARACTERS_MAX)]


class RedactRule(Part):
    """What is masked in the trace, beside what pullcord always masks."""

    headers: Annotated[list[Header], Field(max_length=FIELDS_MAX)] = []
    """Headers whose whole value is masked."""
    keys: Annotated[list[Name], Field(max_length=FIELDS_MAX)] = []
    """Members of JSON, fields of forms and of queries whose whole value is masked; case and the
    signs between words do not count."""
    patterns: Annotated[list[Pattern], Field(max_length=PATTERNS_MAX)] = []
    """Regular expressions; what they match is masked wherever it stands."""


class OperatorCallRule(Part):
    """A call that an operator makes through pullcord: to see what an upstream says of a write."""

    tool: ToolName
    """Which tool of this policy it calls; its host is where it goes."""
    method: Method | None = None
    """Left out: the tool's own."""
    path: Text | None = None
    """Left out: the tool's own, where that has no variables."""
    query: dict[Name, Text] = {}
    headers: Annotated[dict[Header, Text], BeforeValidator(_no_credential)] = {}
    auth: Name | None = None
    """The entry of DATA/credentials.yaml that it carries. Left out: none."""

    @model_validator(mode="after")
    def _plain(self) -> Self:
        if self.path is not None and not self.path.startswith("/"):
            raise ValueError("must hold a 'path' that begins with /")
        return self
