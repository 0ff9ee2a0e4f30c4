"""The rules of the house that no other tool checks: sizes, names, `__init__` files, the lock.

Import directions are contracts in pyproject.toml (`make contracts`); the ones here are those that
its module names cannot say.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("policies", "ledger", "proxy")
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
NAMELESS = {"base", "common", "core", "helpers", "manager", "misc", "shared", "util", "utils"}

SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), name_of(path))


def functions_in(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, Function))


def lines_of(function: Function) -> int:
    """The lines of a function without its decorators and its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def imports_of(path: Path) -> set[str]:
    """The full names of the modules that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or ".")
    return names


def requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [line for group in groups for line in group]


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name_of)
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= FILE_LINES_MAX, f"{name_of(path)} has {lines} lines: find its two subjects"


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name_of)
def test_a_function_fits_on_a_screen(path: Path) -> None:
    long = {f.name: lines_of(f) for f in functions_in(path) if lines_of(f) > FUNCTION_LINES_MAX}
    assert not long, f"{name_of(path)}: {long} lines; at most {FUNCTION_LINES_MAX}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_says_what_lives_in_it(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), f"{name_of(path)} has no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_an_init_file_holds_its_docstring_only(path: Path) -> None:
    if path.name == "__init__.py":
        assert len(tree_of(path).body) == 1, f"{name_of(path)}: nothing beside the docstring"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_safety_check_is_an_assert(path: Path) -> None:
    found = [node.lineno for node in ast.walk(tree_of(path)) if isinstance(node, ast.Assert)]
    assert not found, f"{name_of(path)}: assert on lines {found}; it vanishes under python -O"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_is_named_after_what_it_is(path: Path) -> None:
    words = set(path.stem.split("_")) | set(path.relative_to(ROOT).parent.parts)
    assert not words & NAMELESS, f"{name_of(path)}: find the noun"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    below = PACKAGES[: PACKAGES.index(path.relative_to(ROOT).parts[0]) + 1]
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert "" not in roots, f"{name_of(path)}: a relative import"
    assert "tests" not in roots, f"{name_of(path)} imports from tests"
    assert not roots & set(PACKAGES) - set(below), f"{name_of(path)} imports what stands above it"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_mitmproxy_stays_in_its_engine(path: Path) -> None:
    """Finer than the contract, which can only say `proxy.engines`: other engines are coming."""
    if not name_of(path).startswith("proxy/engines/mitm"):
        assert "mitmproxy" not in {name.split(".")[0] for name in imports_of(path)}


def test_the_three_packages_are_pullcords() -> None:
    """PyPI has packages with our top-level names: one installed over ours would replace it."""
    owners = packages_distributions()
    for package in PACKAGES:
        # An editable install lists no packages; then nobody else may own the name either.
        assert set(owners.get(package, ["pullcord"])) == {"pullcord"}


def test_the_command_is_pullcord() -> None:
    found = {(e.group, e.name, e.value) for e in distribution("pullcord").entry_points}
    command = ("console_scripts", "pullcord", "proxy.cli.main:main")
    assert found == {command, ("pytest11", "pullcord", "proxy.pytest_plugin")}


def test_the_lock_pins_every_dependency_and_names_no_place() -> None:
    pin = re.compile(r"([a-z0-9-]+)==[0-9][0-9a-z.]*( ; [A-Za-z_0-9.' <>=!()]+)?")
    locked = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    strange = [line for line in locked if not pin.fullmatch(line)]
    assert not strange, "each line is an exact version, at most with a marker"
    names = {line.split("==")[0] for line in locked}
    wanted = {re.split(r"[\[<>=;]", line)[0].lower().replace("_", "-") for line in requirements()}
    assert not wanted - names, "run: make lock"


def test_every_requirement_has_two_ends() -> None:
    for line in requirements():
        versions = line.split(";")[0]
        assert "==" in versions or (">=" in versions and "<" in versions), line
