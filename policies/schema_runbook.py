"""The runbook file as pydantic models. What its words mean is checked in load_runbook.py."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from policies.schema_parts import Part, listed

STEPS_MAX = 100  # nobody walks more at night
_STEP_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def _branches(value: object) -> object:
    found = value if isinstance(value, list) else [value]
    return [{"step": item} if isinstance(item, str) else item for item in found]


def _step_name(name: str) -> str:
    if not _STEP_NAME.fullmatch(name):
        raise ValueError("must be small letters, digits and '_', at most 64")
    return name


Sentence = Annotated[str, Field(min_length=1, max_length=500)]
StepName = Annotated[str, AfterValidator(_step_name)]


class BranchRule(Part):
    step: str
    """The step that follows."""
    when: Any = None
    """Facts and what each has to be; a list: one of these. Left out: always."""


class StepRule(Part):
    title: Sentence
    why: Sentence
    when: Any = None
    """It is to be done where these facts are so; left out: always."""
    until: Any = None
    """It is done when these facts are so; left out: when somebody says that it is."""
    show: Annotated[list[str], BeforeValidator(listed)] = []
    """What it shows of the ledger."""
    run: Annotated[str, Field(max_length=1_000)] = ""
    """The recommended command, with places such as {incident}."""
    next: Annotated[list[BranchRule], BeforeValidator(_branches)] = []
    """The step that follows, or a list of them: the first whose condition holds is taken."""


class RunbookFile(Part):
    version: Literal[1]
    start: Annotated[list[BranchRule], BeforeValidator(_branches), Field(min_length=1)]
    steps: Annotated[dict[StepName, StepRule], Field(min_length=1, max_length=STEPS_MAX)]
