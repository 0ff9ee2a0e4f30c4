"""The filters that several commands of the ledger take: `tool:stripe.* -run:r1 since:2h`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ledger.filters import Filter
    from proxy.traces import Traces

# `-run:r1` is a filter, not a handful of options; `_no_options` tells the one from the other.
SETTINGS = {"ignore_unknown_options": True, "help_option_names": ["--help"]}


def _no_options(
    ctx: click.Context, parameter: click.Parameter, filters: tuple[str, ...]
) -> tuple[str, ...]:
    """What looks like an option and has no `:` was meant as one."""
    from difflib import get_close_matches

    for term in filters:
        if term == "-h":
            click.echo(ctx.get_help())
            ctx.exit()
        if term.startswith("-") and ":" not in term:
            name, known = term.partition("=")[0], [o for p in ctx.command.params for o in p.opts]
            near = get_close_matches(name, [option for option in known if option[0] == "-"])
            raise click.NoSuchOption(name, possibilities=near, ctx=ctx)
    return filters


def column(ctx: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    """A field by which calls are summed."""
    from ledger.sums import BY

    if name is not None and name not in BY:
        raise click.BadParameter(f"no field {name!r}; there are {', '.join(sorted(BY))}")
    return name


argument = click.argument("filters", nargs=-1, metavar="[FILTER]...", callback=_no_options)


def parsed(filters: Sequence[str], traces: "Traces | None" = None) -> "Filter":
    """`traces` are where `text:` looks. Raises FilterError, and LedgerError where those cannot be
    searched."""
    from ledger.filters import parse
    from proxy.clock import SystemClock

    return parse(filters, SystemClock().now_us(), traces.found if traces is not None else None)


def searches(filters: Sequence[str]) -> bool:
    """Whether any of them looks into the trace."""
    return any(term.removeprefix("-").startswith("text:") for term in filters)
