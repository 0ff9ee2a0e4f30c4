"""What tests change inside an engine, by names that both engines have."""

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest

from proxy import engines
from proxy.settings import Settings
from tests.engine import ENGINE, Engine

PREFIXES: dict[Engine, tuple[str, ...]] = {
    "mitmproxy": ("mitm",),
    "http1": ("http1",),
    "auto": ("mitm", "http1", "auto"),
}


def setting(engine: Engine) -> dict[str, Any]:
    """What Settings are told to run it."""
    return {"engine": engine} if "engine" in Settings.model_fields else {}


def modules(engine: Engine = ENGINE) -> list[ModuleType]:
    """Those of the engine, and those that no engine has for itself."""
    others = tuple({each for all in PREFIXES.values() for each in all} - {*PREFIXES[engine]})
    names = [each.name for each in pkgutil.iter_modules(engines.__path__)]
    return [
        importlib.import_module(f"{engines.__name__}.{name}")
        for name in names
        if not name.startswith(others)
    ]


@contextmanager
def constant(name: str, value: Any, engine: Engine = ENGINE) -> Iterator[None]:
    """A constant is another while this lasts, in all modules of the engine that have it."""
    having = [module for module in modules(engine) if hasattr(module, name)]
    if not having:
        raise LookupError(f"no module of the {engine} engine has {name}")
    with ExitStack() as patches:
        for module in having:
            patches.enter_context(patch.object(module, name, value))
        yield


def set_constant(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    """The same for the rest of a test, of the engine that the tests run over."""
    having = [module for module in modules() if hasattr(module, name)]
    if not having:
        raise LookupError(f"no module of the {ENGINE} engine has {name}")
    for module in having:
        monkeypatch.setattr(module, name, value)


def constant_of(name: str) -> Any:
    """Its value in the engine that the tests run over."""
    return next(getattr(module, name) for module in modules() if hasattr(module, name))


@contextmanager
def sweeping_often(engine: Engine) -> Iterator[None]:
    """A deadline is late by little."""
    with constant("SWEEP_SECONDS", 0.05, engine):
        yield


def transports(proxy: Any) -> list[Any]:
    """Of the one call that is under way: its client's and its upstream's."""
    (live,) = proxy.gate.live.values()
    exchange = live.engine.exchanges[live.call_id]
    if ENGINE == "mitmproxy":
        return [side.writer.transport for side in exchange.handler.transports.values()]
    return [exchange.client.transport, exchange.upstream._transport]
