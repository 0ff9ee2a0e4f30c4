"""`token mint|list|revoke`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.acting import act, on_store
from proxy.cli.places import data_directory, data_option
from proxy.cli.terminal import counted, escaped, say, say_json, say_table
from proxy.control_client import Unreachable, ask

if TYPE_CHECKING:
    from ledger.store import Store

DEFAULT_TENANT = "default"  # as proxy/operations.py has it, which is slow to import
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds(text: str) -> int:
    """`90s`, `30m`, `8h`, `7d` in seconds. Raises click.BadParameter."""
    match = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is no length of time; write 90s, 30m, 8h or 7d")
    return int(match[1]) * _UNITS[match[2]]


def minted(data: Path, grant: dict[str, Any]) -> dict[str, Any]:
    """A new token as JSON, `secret` in it. `grant` is the body of POST /v1/tokens."""

    def directly(store: "Store", actor: str, at_us: int) -> dict[str, Any]:
        from ledger.tokens import Grant
        from proxy import operations

        fields = dict(grant)
        lasts = fields.pop("expires_seconds", None)
        if lasts is not None:
            fields["expires_us"] = at_us + lasts * 1_000_000
        new = operations.mint(store, Grant(**fields), actor, at_us)
        return {**operations.token_as_json(new.token), "secret": new.secret}

    try:
        answer: dict[str, Any] = ask(data, "POST", "/v1/tokens", grant)
    except Unreachable as dead:
        # A token is as good in the ledger as in the proxy: no warning that none runs yet.
        answer = on_store(data, dead, directly)
    return answer


@click.group()
def token() -> None:
    """Make, list and revoke the tokens by which runs are known."""


@token.command()
@click.option("--run", required=True, metavar="R", help="The run that the token is for.")
@click.option("--tenant", default="", metavar="T", help="Whom the run acts for (default).")
@click.option("--parent", default="", metavar="R", help="The run that started this one.")
@click.option("--agent", default="", metavar="NAME", help="The agent that runs.")
@click.option("--release", default="", metavar="L", help="The pinned prompt, model and tools.")
@click.option("--tool", "tools", multiple=True, metavar="GLOB", help="Only these tools; repeat it.")
@click.option("--expires", metavar="TIME", help="After 90s, 30m, 8h, 7d; never, if left out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@data_option
def mint(
    tools: tuple[str, ...], expires: str | None, as_json: bool, data: str | None, **names: str
) -> None:
    """Make a token and print it, once: it is stored nowhere."""
    grant: dict[str, Any] = {**names, "tools": tools or None}
    if expires is not None:
        grant["expires_seconds"] = seconds(expires)
    answer = minted(data_directory(data), grant)
    if as_json:
        say_json(answer)
        return
    say(answer["secret"])
    who = f"run {answer['run']} of tenant {answer['tenant']}"
    say(f"token {answer['id']} for {who}; revoke: pullcord token revoke {answer['id']}", err=True)


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@data_option
def list_tokens(as_json: bool, data: str | None) -> None:
    """List the tokens, newest first; never their secrets."""

    def directly(store: "Store", actor: str, at_us: int) -> dict[str, Any]:
        from proxy.operations import token_as_json

        return {"tokens": [token_as_json(each) for each in store.tokens()]}

    directory = data_directory(data)
    try:
        answer = ask(directory, "GET", "/v1/tokens")
    except Unreachable as dead:
        answer = on_store(directory, dead, directly)
    if as_json:
        for each in answer["tokens"]:
            say_json(each)
        return
    titles = ("id", "run", "tenant", "release", "tools", "created", "expires", "revoked", "by")
    say_table(titles, [_row(each) for each in answer["tokens"]])


@token.command()
@click.argument("name", metavar="ID|RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@data_option
def revoke(name: str, as_json: bool, data: str | None) -> None:
    """Revoke a token by its id, or all tokens of a run, and those that they minted.

    It counts from the next call on, also inside an open tunnel.
    """

    def directly(store: "Store", actor: str, at_us: int) -> dict[str, Any]:
        from proxy import operations

        gone = operations.revoke(store, name, actor, at_us)
        return {"revoked": [operations.token_as_json(each) for each in gone]}

    answer = act(data_directory(data), "/v1/tokens/revoke", {"name": name}, directly)
    if as_json:
        for each in answer["revoked"]:
            say_json(each)
        return
    gone = answer["revoked"]
    listed = ", ".join(f"{each['id']} (run {each['run']})" for each in gone)
    say(f"revoked {counted(len(gone), 'token')}: {escaped(listed)}")


def _row(each: dict[str, Any]) -> tuple[object, ...]:
    tools = "all" if each["tools"] is None else ", ".join(each["tools"])
    names = (each["id"], each["run"], each["tenant"], each["release"], tools)
    return (*names, each["created"], each["expires"], each["revoked"], each["actor"])
