"""`policy check|explain|schema|simulate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli import simulating
from proxy.cli.places import config_directory, config_option, data_directory, data_option
from proxy.cli.reading import standing
from proxy.cli.terminal import counted, escaped, loud, say, say_json
from proxy.cli.tokens import DEFAULT_TENANT

if TYPE_CHECKING:
    from policies.call import Identity, Request, ToolCall
    from policies.ceilings import Ceiling
    from policies.policy import Policy
    from policies.verdict import Verdict

    Drawn = list[tuple[Ceiling, str, int]]

Asked = list[tuple[str, str]]

FOUND_PROBLEMS = 3
ANY_RUN = "any-run"


@click.group()
def policy() -> None:
    """Check the policy, and see what it makes of a call."""


policy.add_command(simulating.simulate)


@policy.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@config_option
def check(file: Path | None, config: str | None) -> None:
    """Read FILE (the policy in force, if left out) and print every mistake by line and column.

    Exits with 3 when there are any.
    """
    from policies.load import PolicyError, load_file

    try:
        read = load_file(file or config_directory(config) / "policy.yaml")
    except PolicyError as error:
        say(escaped(str(error), keep="\n"))
        raise click.exceptions.Exit(FOUND_PROBLEMS) from None
    own = [ceiling for ceiling in read.ceilings if not ceiling.shipped]
    shipped = len(read.ceilings) - len(own)
    parts = (
        (len(read.tools), "tool"),
        (len(own), "ceiling"),
        (shipped, "shipped ceiling"),
        (len(read.tenants), "tenant"),
        (len(read.agents), "agent"),
    )
    counts = ", ".join(counted(*part) for part in parts)
    say(f"{escaped(read.source)}: OK  {read.digest[:12]}  {counts}")
    for cord in read.pulls.values():
        say(f"{loud(cord.level)} {escaped(f'{cord.scope} {cord.subject}'.strip())} ({cord.reason})")
    for removed in read.unbounded:
        say(f"{loud('unbounded')} {removed}")


@policy.command()
def schema() -> None:
    """Print the JSON Schema of the policy file, for editors."""
    from policies.schema import json_schema

    say(json.dumps(json_schema(), indent=2))


@policy.command()
@click.argument("method")
@click.argument("url")
@click.option("--tenant", default=DEFAULT_TENANT, metavar="T", help="Whom the call is for.")
@click.option("--run", default=ANY_RUN, metavar="R", help="The run that makes it.")
@click.option("--release", default="", metavar="L", help="The release of that run.")
@click.option("--agent", default="", metavar="A", help="The agent of that run.")
@click.option("--read-only", is_flag=True, help="As a run that may only read.")
@click.option("--body", type=click.File("rb"), metavar="FILE", help="The request body; - is stdin.")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Repeat it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@config_option
@data_option
def explain(
    method: str,
    url: str,
    tenant: str,
    run: str,
    release: str,
    agent: str,
    read_only: bool,
    body: Any,
    headers: tuple[str, ...],
    as_json: bool,
    config: str | None,
    data: str | None,
) -> None:
    """Say which tool METHOD URL is, its effect, and which line decides.

    Judged with the cords that are pulled now, and as if nothing had been called before: no
    window is filled and no write is claimed. What MCP and GraphQL do stands in the --body, and so
    do the arguments that conditions ask for.
    """
    from policies.bounds import drawn_on
    from policies.call import Facts, Identity
    from policies.decide import decide
    from policies.load import load_file
    from policies.match import identify
    from policies.standing import throttled
    from proxy import own
    from proxy.clock import SystemClock
    from proxy.operations import pull_from_json

    read = load_file(config_directory(config) / "policy.yaml")
    request = _request(method, url, headers, body.read() if body else b"")
    if request.host == own.HOST:
        _say_own(read, request, as_json)
        return
    call = identify(read, request)
    identity = Identity(run=run, tenant=tenant, agent=agent, release=release, read_only=read_only)
    cords = [pull_from_json(cord) for cord in standing(data_directory(data, config))]
    stored = [cord for cord in cords if not cord.actor.startswith("policy:")]
    pulls = {(cord.level, cord.scope, cord.subject): cord for cord in stored}
    now_us = SystemClock().now_us()
    verdict = decide(read, call, Facts(now_us=now_us, identity=identity, pulls=pulls))
    drawn = [*drawn_on(read, call, identity), *throttled(read, call, identity, pulls)]
    asked = _asked(read, call, identity)
    if as_json:
        say_json(_as_json(read, call, verdict, drawn, asked))
    else:
        _say(read, call, verdict, drawn, asked)
        _say_cure(request, call, verdict)


def _say_own(read: "Policy", request: "Request", as_json: bool) -> None:
    """What is asked of pullcord itself is not judged by the policy."""
    from policies.verdict import Action, Reason

    words = "pullcord answers it itself: a run's view of itself, to whoever has its token"
    if as_json:
        judged = {"decision": Action.ALLOW, "reason": Reason.ALLOWED, "rule": "pullcord"}
        say_json({"tool": None, **judged, "detail": words, "policy": read.digest})
    else:
        say(f"tool       none; {request.host} is no destination")
        say(f"verdict    {Action.ALLOW}: {words}")


def _say_cure(request: "Request", call: "ToolCall", verdict: "Verdict") -> None:
    """What the refused caller would be told to add, or what is missing here to tell more."""
    from policies.call import Dialect
    from proxy.sentences import entry_for

    entry = entry_for(verdict.reason, request)
    if entry:
        say("to allow it, add:")
        say(escaped(entry, keep="\n"))
    if call.fault and not request.body and call.dialect in (Dialect.MCP, Dialect.GRAPHQL):
        say(f"without a body nobody can tell what {call.dialect} call it is: --body FILE")


def _request(method: str, url: str, headers: tuple[str, ...], body: bytes) -> "Request":
    """Raises click.BadParameter."""
    from urllib.parse import urlsplit

    from policies.call import Request

    parts = urlsplit(url)
    try:
        port = parts.port or {"https": 443, "http": 80}[parts.scheme]
    except (ValueError, KeyError):
        raise click.BadParameter(f"{url!r} is no http or https URL") from None
    if not parts.hostname:
        raise click.BadParameter(f"{url!r} names no host")
    named = [tuple(part.strip() for part in header.partition(":")[::2]) for header in headers]
    return Request(
        method=method.upper(),
        scheme=parts.scheme,
        host=parts.hostname.rstrip("."),
        port=port,
        target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        headers=(("host", parts.netloc), *((name.lower(), value) for name, value in named)),
        body=body,
    )


def _asked(read: "Policy", call: "ToolCall", identity: "Identity") -> list[tuple[str, str]]:
    """The conditions that stand over the call: who asks, and what."""
    from policies.policy import covers

    asked = [(f"tool:{call.tool}", str(one)) for one in read.tool(call.tool).where]
    holders = (
        (f"tenant:{identity.tenant}", read.tenants.get(identity.tenant)),
        (f"agent:{identity.agent}", read.agents.get(identity.agent)),
    )
    for rule, holder in holders:
        for grant in (holder.allow or ()) if holder else ():
            if grant.where and covers((grant.tool,), call.tool):
                by = f", by {', '.join(sorted(grant.methods))}" if grant.methods else ""
                told = " and ".join(map(str, grant.where))
                asked.append((rule, f"{told}{by}"))
    return asked


def _say(
    read: "Policy", call: "ToolCall", verdict: "Verdict", drawn: "Drawn", asked: Asked
) -> None:
    from policies.ceilings import spelled

    tool = read.tool(call.tool)
    line = read.tools[call.tool].line if call.tool in read.tools else None
    where = f"{read.source}:{line}" if line else f"{read.source}, unlisted: {read.unlisted}"
    say(f"tool       {escaped(call.tool)}  ({escaped(where)})")
    say(f"effect     {call.effect}")
    say(f"operation  {escaped(call.operation)}")
    action = verdict.action if verdict.action == "allow" else loud(verdict.action)
    detail = f"  {escaped(verdict.detail)}" if verdict.detail else ""
    say(f"verdict    {action}: {verdict.reason}, by {escaped(verdict.rule)}{detail}")
    for rule, condition in asked:
        say(f"condition  {escaped(condition)} ({escaped(rule)})")
    if tool.body_bytes_max is not None:
        say(f"body       at most {tool.body_bytes_max} bytes")
    if tool.hold:
        waits = spelled(tool.hold_seconds * 1_000_000)
        say(f"hold       each write waits {waits} for a person")
    for ceiling, subject, amount in drawn:
        say(f"ceiling    {escaped(_ceiling_words(ceiling, subject, amount))}")
    if not drawn:
        say("ceiling    none applies")


def _ceiling_words(ceiling: "Ceiling", subject: str, amount: int) -> str:
    whose = "(any run)" if subject == ANY_RUN else f"({ceiling.per} {subject})"
    whose = f" {whose}" if subject else ""
    shipped = ", shipped" if ceiling.shipped else ""
    takes = f"takes {ceiling.told(amount)}"
    return f"{ceiling}{whose}, then {ceiling.then}; {takes} ({ceiling.id}{shipped})"


def _as_json(
    read: "Policy", call: "ToolCall", verdict: "Verdict", drawn: "Drawn", asked: Asked
) -> dict[str, Any]:
    tool = read.tool(call.tool)
    return {
        "tool": call.tool,
        "line": read.tools[call.tool].line if call.tool in read.tools else None,
        "effect": call.effect,
        "operation": call.operation,
        "decision": verdict.action,
        "reason": verdict.reason,
        "rule": verdict.rule,
        "detail": verdict.detail,
        "conditions": [{"rule": rule, "asks": condition} for rule, condition in asked],
        "hold_seconds": tool.hold_seconds if tool.hold else None,
        "body_bytes_max": tool.body_bytes_max,
        "ceilings": [
            {
                "id": ceiling.id,
                "per": ceiling.per,
                "of": subject,
                "count": ceiling.count,
                "at_most": _amount(ceiling, ceiling.at_most),
                "within_seconds": ceiling.within_us and ceiling.within_us / 1e6,
                "then": ceiling.then,
                "takes": _amount(ceiling, amount),
                "shipped": ceiling.shipped,
            }
            for ceiling, subject, amount in drawn
        ],
        "policy": read.digest,
    }


def _amount(ceiling: "Ceiling", amount: int) -> int | str:
    """Money is a text of dollars, exactly."""
    from policies.ceilings import Count, usd

    return usd(amount) if ceiling.count is Count.SPEND else amount
