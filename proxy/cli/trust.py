"""`ca path|bundle`: the files that agents must trust."""

import os
from pathlib import Path

import click

from proxy.cli.places import config_option, data_directory, data_option, settings
from proxy.cli.terminal import say

# As proxy/authority.py has them; named again because that module is slow to import.
CA_FILE = Path("ca", "ca.pem")
BUNDLE_FILE = Path("ca", "bundle.pem")


def trust_files(data: str | None, config: str | None) -> tuple[Path, Path]:
    """The authority's certificate and the bundle, made if absent. Raises AuthorityError."""
    directory = data_directory(data, config)
    if not ((directory / CA_FILE).is_file() and (directory / BUNDLE_FILE).is_file()):
        from datetime import UTC, datetime

        from proxy.authority import prepare
        from proxy.clock import SystemClock

        now = datetime.fromtimestamp(SystemClock().now_us() / 1e6, UTC)
        prepare(directory, settings(data, config).upstream_ca, os.environ, now)
    return directory / CA_FILE, directory / BUNDLE_FILE


@click.group()
def ca() -> None:
    """Print where the certificates are that agents must trust."""


@ca.command()
@data_option
@config_option
def path(data: str | None, config: str | None) -> None:
    """Print the path of pullcord's own authority, for stores that it is added to."""
    say(str(trust_files(data, config)[0]))


@ca.command()
@data_option
@config_option
def bundle(data: str | None, config: str | None) -> None:
    """Print the path of the usual roots and pullcord's own, for settings that replace a store."""
    say(str(trust_files(data, config)[1]))
