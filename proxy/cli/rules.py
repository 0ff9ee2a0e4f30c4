"""`policy check|explain|schema`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.places import config_directory, config_option, data_directory, data_option
from proxy.cli.reading import standing
from proxy.cli.terminal import counted, escaped, loud, say, say_json
from proxy.cli.tokens import DEFAULT_TENANT

if TYPE_CHECKING:
    from policies.call import Request, ToolCall
    from policies.ceilings import Ceiling
    from policies.policy import Policy
    from policies.verdict import Verdict

FOUND_PROBLEMS = 3
ANY_RUN = "any-run"


@click.group()
def policy() -> None:
    """Check the policy, and see what it makes of a call."""


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
    parts = ((read.tools, "tool"), (read.ceilings, "ceiling"), (read.tenants, "tenant"))
    counts = ", ".join(counted(len(part), word) for part, word in parts)
    say(f"{escaped(read.source)}: OK  {read.digest[:12]}  {counts}")
    for cord in read.pulls.values():
        say(f"{loud(cord.level)} {escaped(f'{cord.scope} {cord.subject}'.strip())} ({cord.reason})")


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
    body: Any,
    headers: tuple[str, ...],
    as_json: bool,
    config: str | None,
    data: str | None,
) -> None:
    """Say which tool METHOD URL is, its effect, and which line decides.

    Judged with the cords that are pulled now, and as if nothing had been called before: no
    window is filled and no write is claimed. What MCP and GraphQL do stands in the --body.
    """
    from policies.call import Facts, Identity
    from policies.decide import decide
    from policies.load import load_file
    from policies.match import identify
    from proxy import own
    from proxy.clock import SystemClock
    from proxy.operations import pull_from_json

    read = load_file(config_directory(config) / "policy.yaml")
    request = _request(method, url, headers, body.read() if body else b"")
    if request.host == own.HOST:
        _say_own(read, request, as_json)
        return
    call = identify(read, request)
    identity = Identity(run=run, tenant=tenant, release=release)
    cords = [pull_from_json(cord) for cord in standing(data_directory(data, config))]
    stored = [cord for cord in cords if not cord.actor.startswith("policy:")]
    pulls = {(cord.level, cord.scope, cord.subject): cord for cord in stored}
    now_us = SystemClock().now_us()
    verdict = decide(read, call, Facts(now_us=now_us, identity=identity, pulls=pulls))
    ceilings = [ceiling for ceiling, _ in read.bounds(call, identity)]
    if as_json:
        say_json(_as_json(read, call, verdict, ceilings))
    else:
        _say(read, call, verdict, ceilings)
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


def _say(read: "Policy", call: "ToolCall", verdict: "Verdict", ceilings: "list[Ceiling]") -> None:
    line = read.tools[call.tool].line if call.tool in read.tools else None
    where = f"{read.source}:{line}" if line else f"{read.source}, unlisted: {read.unlisted}"
    say(f"tool       {escaped(call.tool)}  ({escaped(where)})")
    say(f"effect     {call.effect}")
    say(f"operation  {escaped(call.operation)}")
    action = verdict.action if verdict.action == "allow" else loud(verdict.action)
    detail = f"  {escaped(verdict.detail)}" if verdict.detail else ""
    say(f"verdict    {action}: {verdict.reason}, by {escaped(verdict.rule)}{detail}")
    for ceiling in ceilings:
        say(f"ceiling    {_ceiling_words(ceiling)}")
    if not ceilings:
        say("ceiling    none applies")


def _ceiling_words(ceiling: "Ceiling") -> str:
    within = "" if ceiling.within_us is None else f" within {ceiling.within_us / 1e6:g} s"
    tools = "" if ceiling.tools == ("*",) else f" of {', '.join(ceiling.tools)}"
    bound = f"{ceiling.count}{tools} per {ceiling.per} at most {ceiling.at_most}{within}"
    return f"{bound}, then {ceiling.then or 'throttle'} ({ceiling.id})"


def _as_json(
    read: "Policy", call: "ToolCall", verdict: "Verdict", ceilings: "list[Ceiling]"
) -> dict[str, Any]:
    return {
        "tool": call.tool,
        "line": read.tools[call.tool].line if call.tool in read.tools else None,
        "effect": call.effect,
        "operation": call.operation,
        "decision": verdict.action,
        "reason": verdict.reason,
        "rule": verdict.rule,
        "detail": verdict.detail,
        "ceilings": [
            {
                "id": ceiling.id,
                "per": ceiling.per,
                "count": ceiling.count,
                "at_most": ceiling.at_most,
                "within_seconds": ceiling.within_us and ceiling.within_us / 1e6,
                "then": ceiling.then or "throttle",
            }
            for ceiling in ceilings
        ],
        "policy": read.digest,
    }
