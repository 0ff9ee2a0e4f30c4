"""`token mint|list|revoke`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.acting import act, on_store, policy_or_none
from proxy.cli.budget import dollars
from proxy.cli.places import config_option, data_directory, data_option
from proxy.cli.terminal import counted, escaped, say, say_json, say_table, warn
from proxy.control_client import Unreachable, ask

if TYPE_CHECKING:
    from ledger.store import Store

# As proxy/operations.py and proxy/control_access.py have them, which are slow to import.
DEFAULT_TENANT = "default"
ROLES = ("view", "pull", "release", "admin")
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds(text: str, option: str = "--expires") -> int:
    """`90s`, `30m`, `8h`, `7d` of an option in seconds. Raises click.BadParameter, naming it."""
    match = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", text)
    if match is None:
        raise click.BadParameter(
            f"{text!r} is no length of time; write 90s, 30m, 8h or 7d", param_hint=f"'{option}'"
        )
    return int(match[1]) * _UNITS[match[2]]


def minted(data: Path, grant: dict[str, Any], config: str | None = None) -> dict[str, Any]:
    """A new token as JSON, `secret` in it. `grant` is the body of POST /v1/tokens."""

    def directly(store: "Store", actor: str, at_us: int) -> dict[str, Any]:
        from ledger.tokens import Grant
        from proxy import operations
        from proxy.money import microusd

        fields = dict(grant)
        lasts, budget_usd = fields.pop("expires_seconds", None), fields.pop("budget_usd", None)
        if lasts is not None:
            fields["expires_us"] = at_us + lasts * 1_000_000
        if budget_usd is not None:
            fields["budget_microusd"] = microusd(budget_usd)
        # How many runs a run may start is the policy's to say.
        policy = policy_or_none(config) if fields.get("parent") else None
        new = operations.mint(store, Grant(**fields), actor, at_us, policy)
        return {**operations.token_as_json(new.token), "secret": new.secret}

    try:
        answer: dict[str, Any] = ask(data, "POST", "/v1/tokens", grant)
    except Unreachable as dead:
        # A token is as good in the ledger as in the proxy: no warning that none runs yet.
        answer = on_store(data, dead, directly)
    return answer


def enrolled(data: Path, name: str, role: str) -> dict[str, Any]:
    """A new operator's token as JSON, `secret` in it."""

    def directly(store: "Store", actor: str, at_us: int) -> dict[str, Any]:
        from proxy.control_access import Role
        from proxy.control_operators import enroll, operator_as_json

        new = enroll(store, name, Role(role), actor, at_us)
        return {**operator_as_json(new.operator), "secret": new.secret}

    try:
        answer: dict[str, Any] = ask(data, "POST", "/v1/operators", {"name": name, "role": role})
    except Unreachable as dead:
        answer = on_store(data, dead, directly)
    return answer


@click.group()
def token() -> None:
    """Make, list and revoke the tokens of runs, and of operators at the control port."""


@token.command()
@click.option("--run", default="", metavar="R", help="The run that the token is for.")
@click.option("--tenant", default="", metavar="T", help="Whom the run acts for (default).")
@click.option("--parent", default="", metavar="R", help="The run that started this one.")
@click.option("--agent", default="", metavar="NAME", help="The agent that runs.")
@click.option("--release", default="", metavar="L", help="The pinned prompt, model and tools.")
@click.option("--tool", "tools", multiple=True, metavar="GLOB", help="Only these tools; repeat it.")
@click.option("--budget-usd", metavar="N", help="All that the run and those it starts may spend.")
@click.option("--read-only", is_flag=True, help="Good for reads and model calls alone.")
@click.option("--expires", metavar="TIME", help="After 90s, 30m, 8h, 7d; never, if left out.")
@click.option("--role", type=click.Choice(ROLES), help="For an operator: each covers those before.")
@click.option("--name", default="", metavar="NAME", help="The operator's name in the record.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@data_option
@config_option
def mint(
    tools: tuple[str, ...],
    budget_usd: str | None,
    read_only: bool,
    expires: str | None,
    role: str | None,
    name: str,
    as_json: bool,
    data: str | None,
    config: str | None,
    **names: str,
) -> None:
    """Make a token for a run (--run), or for an operator at the control port (--role and --name).

    It is printed once and stored nowhere. A budget is the run's: another token with --budget-usd
    changes it, one without leaves it.
    """
    directory = data_directory(data, config)
    if role is not None or name:
        of_run = (*names.values(), *tools, expires, budget_usd, read_only)
        if role is None or not name or any(each not in (None, "", False) for each in of_run):
            raise click.UsageError("an operator's token takes --role and --name, and nothing else")
        answer = enrolled(directory, name, role)
        who = f"operator {name} with the role {role}"
    else:
        if not names["run"]:
            raise click.UsageError("say whom it is for: --run R, or --role ROLE --name NAME")
        grant: dict[str, Any] = {**names, "tools": tools or None, "read_only": read_only}
        if expires is not None:
            grant["expires_seconds"] = seconds(expires)
        if budget_usd is not None:
            dollars(budget_usd)
            grant["budget_usd"] = budget_usd
        answer = minted(directory, grant, config)
        _warn_of_no_tool(tools, config)
        who = f"run {answer['run']} of tenant {answer['tenant']}"
    if as_json:
        say_json(answer)
        return
    say(answer["secret"])
    say(f"token {answer['id']} for {who}; revoke: pullcord token revoke {answer['id']}", err=True)


def _warn_of_no_tool(tools: tuple[str, ...], config: str | None) -> None:
    """A name that is no tool's is no error: policies change, and tokens outlive them."""
    policy = policy_or_none(config) if tools else None
    if policy is None:
        return
    from policies.mistakes import suggestion
    from policies.policy import UNLISTED, covers

    names = [*policy.tools, UNLISTED]
    for glob in tools:
        if not any(covers((glob,), name) for name in names):
            hint = suggestion(glob, names)
            warn(
                f"no tool of {policy.source} is named {glob!r}{hint}. Until one is, it allows none."
            )


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@data_option
def list_tokens(as_json: bool, data: str | None) -> None:
    """List the tokens of runs and operators, newest first; never their secrets."""

    def directly(store: "Store", actor: str, at_us: int) -> dict[str, Any]:
        from proxy.control_operators import operator_as_json
        from proxy.operations import token_as_json

        return {
            "tokens": [token_as_json(each) for each in store.tokens()],
            "operators": [operator_as_json(each) for each in store.operators()],
        }

    directory = data_directory(data)
    try:
        answer = ask(directory, "GET", "/v1/tokens")
    except Unreachable as dead:
        answer = on_store(directory, dead, directly)
    listed = [{"kind": "run", **each} for each in answer["tokens"]]
    listed += [{"kind": "operator", **each} for each in answer["operators"]]
    listed.sort(key=lambda each: str(each["created"]), reverse=True)
    if as_json:
        for each in listed:
            say_json(each)
        return
    titles = ("kind", "id", "name", "tenant", "release", "may use", "budget")
    say_table((*titles, "created", "expires", "revoked", "by"), [_row(each) for each in listed])


@token.command()
@click.argument("name", metavar="ID|RUN|NAME")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@data_option
def revoke(name: str, as_json: bool, data: str | None) -> None:
    """Revoke a token by its id, all tokens of a run and those that they minted, or an operator's.

    It counts from the next call on, also inside an open tunnel.
    """

    def directly(store: "Store", actor: str, at_us: int) -> dict[str, Any]:
        from proxy import control_operators, operations

        tokens, operators = control_operators.revoke(store, name, actor, at_us)
        return {
            "revoked": [operations.token_as_json(each) for each in tokens],
            "dismissed": [control_operators.operator_as_json(each) for each in operators],
        }

    answer = act(data_directory(data), "/v1/tokens/revoke", {"name": name}, directly)
    gone = [{"kind": "run", **each} for each in answer["revoked"]]
    gone += [{"kind": "operator", **each} for each in answer["dismissed"]]
    if as_json:
        for each in gone:
            say_json(each)
        return
    listed = ", ".join(f"{each['id']} ({each['kind']} {_name(each)})" for each in gone)
    say(f"revoked {counted(len(gone), 'token')}: {escaped(listed)}")


def _name(each: dict[str, Any]) -> str:
    return str(each["run"] if each["kind"] == "run" else each["name"])


def _row(each: dict[str, Any]) -> tuple[object, ...]:
    if each["kind"] == "operator":
        whom: tuple[object, ...] = (each["name"], None, None, f"the role {each['role']}", None)
    else:
        tools = "all" if each["tools"] is None else ", ".join(each["tools"])
        tools += "; only to read" if each["read_only"] else ""
        budget = each["budget_usd"] and f"{each['budget_usd']} USD"
        whom = (each["run"], each["tenant"], each["release"], tools, budget)
    times = (each["created"], each.get("expires"), each["revoked"])
    return (each["kind"], each["id"], *whom, *times, each["actor"])
