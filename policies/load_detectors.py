"""What the policy says of each detector, compiled; the shipped rule for what it does not name."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from policies.detectors import novelty
from policies.detectors.rules import SHIPPED, Rule
from policies.detectors.runs import DETECTORS
from policies.document import Document, Mistake
from policies.schema import PolicyFile
from policies.schema_detectors import read, written


def rules(file: PolicyFile) -> Mapping[str, Rule]:
    """One for each detector."""
    return {name: _rule(file, name) for name in DETECTORS}


def _rule(file: PolicyFile, name: str) -> Rule:
    stated = getattr(file.detectors, name)
    if stated is None:
        return SHIPPED[name]
    return Rule(stated.mode, _limits(name, stated.limits), stated.then)


def _limits(name: str, stated: Any) -> Any:
    shipped = DETECTORS[name].limits
    changed = {
        one.name: read(name, one.name, value)
        for one in fields(shipped)
        if (value := getattr(stated, written(one.name))) is not None
    }
    return replace(shipped, **changed) if changed else shipped


def mistakes(file: PolicyFile, document: Document) -> Iterable[Mistake]:
    """What no single limit can know of itself."""
    limits = _rule(file, novelty.NAME).limits
    if limits.calls_min > limits.calls_max:
        here = ("detectors", novelty.NAME, "limits")
        key = "calls_min" if "calls_min" in document.keys(here) else "calls_max"
        text = f"'calls_min' ({limits.calls_min}) must be at most 'calls_max' ({limits.calls_max})"
        yield document.at((*here, key), text)
