"""Small builders that every test may use; each is a fixture that gives back a function."""

import signal
from collections.abc import Callable, Iterator
from textwrap import dedent
from typing import Any

import pytest
import structlog
from hypothesis import settings

from policies.call import Effect, Identity, ToolCall
from policies.load import load
from policies.policy import Policy
from proxy.process import HEEDED
from tests.engine import skip_of_another_engine

# The same examples on every machine, however slow it is.
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_of_another_engine(items)


@pytest.fixture(autouse=True)
def _log_as_at_the_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command that sets up the log leaves nothing of it to the tests behind it."""
    configure = structlog.configure

    def for_this_test(**settings: Any) -> None:
        configure(**{**settings, "cache_logger_on_first_use": False})

    monkeypatch.setattr(structlog, "configure", for_this_test)
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _signals_as_at_the_start() -> Iterator[None]:
    """A service that ended in a test has ignored its signals for the rest of its process; what a
    later test starts would inherit that."""
    before = {number: signal.getsignal(number) for number in HEEDED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)


@pytest.fixture
def a_policy() -> Callable[[str], Policy]:
    """A policy from its text; `version: 1` is put before a text that has none."""

    def build(text: str = "") -> Policy:
        text = dedent(text)
        return load(text if "version:" in text else f"version: 1\n{text}", "policy.yaml")

    return build


@pytest.fixture
def a_call() -> Callable[..., ToolCall]:
    """A tool call, a write unless told otherwise."""

    def build(tool: str = "payments.create", effect: str = "write", **rest: Any) -> ToolCall:
        rest.setdefault("operation", "POST /payments")
        rest.setdefault("fingerprint", b"f" * 32)
        return ToolCall(tool, Effect(effect), **rest)

    return build


@pytest.fixture
def an_identity() -> Callable[..., Identity]:
    """Run `r1` of tenant `acme` unless told otherwise."""

    def build(run: str = "r1", tenant: str = "acme", **rest: Any) -> Identity:
        return Identity(run, tenant, **rest)

    return build
