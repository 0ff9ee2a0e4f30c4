"""Where things are: the configuration and the data directory. Quick, because `halt` asks it too.

The full settings need pydantic; they are read here only when the file says something about data.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.terminal import Failure

if TYPE_CHECKING:
    from proxy.settings import Settings

DEFAULT_DATA = "~/.pullcord"
_SAYS_DATA = re.compile(r"^[^#\n]*\bdata\b", re.MULTILINE)

Command = Callable[..., Any]


def data_option(command: Command) -> Command:
    return click.option(
        "--data", metavar="DIR", help="The data directory (PULLCORD_DATA, else ~/.pullcord)."
    )(command)


def config_option(command: Command) -> Command:
    return click.option(
        "--config", metavar="DIR", help="Where policy.yaml is (PULLCORD_CONFIG, else ./config)."
    )(command)


def config_directory(given: str | None) -> Path:
    """The directory that holds policy.yaml. Raises Failure when none is named and none is here."""
    named = given or os.environ.get("PULLCORD_CONFIG")
    directory = Path(named).expanduser() if named else Path("config")
    if os.path.lexists(directory / "policy.yaml"):  # what it is, its reader tells
        return directory
    if named:
        raise Failure(f"there is no {directory / 'policy.yaml'}; name another --config DIR", 2)
    raise Failure(
        "there is no config/policy.yaml here; go to where it is, or name its directory: "
        "--config DIR, or PULLCORD_CONFIG",
        2,
    )


def config_or_none(given: str | None = None) -> Path | None:
    """The same for what also works without one. Raises Failure for one that was typed."""
    try:
        return config_directory(given)
    except Failure:
        if given is not None:
            raise
        return None


def data_directory(given: str | None, config: str | None = None) -> Path:
    """As the settings have it: the flag, PULLCORD_DATA, the file, the default. Absolute."""
    named = given or os.environ.get("PULLCORD_DATA")
    if named is None:
        path = _file_directory(config) / "pullcord.yaml"
        if path.is_file() and _SAYS_DATA.search(path.read_text("utf-8", "replace")):
            return settings(None, config).data
    return Path(named or DEFAULT_DATA).expanduser().absolute()


def settings(data: str | None, config: str | None = None) -> "Settings":
    """All settings, for commands that need more; defaults where no file is found."""
    from proxy.settings import load

    return load(_file_directory(config), {"data": data}, os.environ)


def _file_directory(config: str | None) -> Path:
    return Path(config or os.environ.get("PULLCORD_CONFIG") or "config").expanduser()
