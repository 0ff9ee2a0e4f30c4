"""`budget show|adjust|set`: what is spent under the ceilings over somebody, and its correction."""

import shlex
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from proxy.cli.acting import act, on_store, policy_or_none
from proxy.cli.places import config_option, data_directory, data_option
from proxy.cli.terminal import escaped, loud, say, say_json, say_table, span
from proxy.control_client import Unreachable, ask

if TYPE_CHECKING:
    from ledger.store import Store

# As policies/ceilings.py has them, which need not be imported to print the help.
SCOPES = ("global", "tenant", "run", "tree", "agent", "release", "tool", "destination")
NOTHING = "0.00"


def dollars(text: str, *, signed: bool = False, option: str = "--budget-usd") -> int:
    """Dollars of an option as micro-dollars. Raises click.BadParameter, which names it."""
    from proxy.money import microusd

    try:
        if "e" in text.lower():  # nor does the policy take it
            raise ValueError(f"{text[:40]!r} is no amount of dollars; write 5 or 0.25")
        return microusd(text, signed=signed)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=f"'{option}'") from None


@click.group()
def budget() -> None:
    """Show what was spent under the ceilings over somebody, and correct it by hand."""


@budget.command()
@click.argument("scope", type=click.Choice(SCOPES))
@click.argument("name", default="")
@click.option("--all", "all_counts", is_flag=True, help="Calls, tokens and all else, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@data_option
@config_option
def show(
    scope: str, name: str, all_counts: bool, as_json: bool, data: str | None, config: str | None
) -> None:
    """Show what SCOPE NAME has spent and has left, under each ceiling on spend; least left first.

    Of a run, also the ceilings that it shares: of the runs above it, its tree, its tenant, its
    agent, its release, everything. What calls in flight have reserved is spent, and so is what a
    call of unknown outcome reserved.
    """

    def directly(store: "Store", _: str, at_us: int) -> dict[str, Any]:
        from policies.ceilings import Per
        from proxy.budgeting import shown

        policy = policy_or_none(config)
        return shown(store, policy, Per(scope), name, at_us, all_counts=all_counts)

    directory = data_directory(data, config)
    query = urlencode({"scope": scope, "subject": name, **({"all": 1} if all_counts else {})})
    try:
        answer: dict[str, Any] = ask(directory, "GET", f"/v1/budgets?{query}")
    except Unreachable as dead:
        answer = on_store(directory, dead, directly)
    if as_json:
        say_json(answer)
        return
    say_table(
        ("ceiling", "of", "used", "left", "at most", "within", "then", "tools"),
        [_row(each) for each in answer["ceilings"]],
    )
    say(f"more: {_more(answer)}")


def _more(answer: dict[str, Any]) -> str:
    """What a person may type to make room where the least is left."""
    least = answer["ceilings"][0]
    if least["id"].startswith("budget:"):
        said = f"pullcord budget set run {least['of']} --usd N --reason TEXT"
    else:
        line = f":{least['line']}" if least["line"] else ""  # a shipped one is stated there
        said = f"at_most in {escaped(answer['policy'])}{line}"
    if least["count"] == "spend_usd":
        whose = shlex.join(filter(None, (least["per"], least["of"])))
        said += (
            f"; was it not spent: pullcord budget adjust {escaped(whose)} --usd -N --reason TEXT"
        )
    return said


@budget.command("set")
@click.argument("scope", type=click.Choice(("run",)))
@click.argument("name")
@click.option("--usd", "amount", metavar="N", help="All that it and those it starts may spend.")
@click.option("--none", "nothing", is_flag=True, help="No budget of its own; ceilings still bind.")
@click.option("--reason", required=True, metavar="TEXT", help="Why, for the record.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@data_option
def set_(
    scope: str,
    name: str,
    amount: str | None,
    nothing: bool,
    reason: str,
    as_json: bool,
    data: str | None,
) -> None:
    """Give a run another budget of its own, from its next call on; its token stays.

    It is in the record, with who and why.
    """
    if (amount is None) != nothing:
        raise click.UsageError("say which: --usd N, or --none to take the budget away")
    microusd = None if amount is None else dollars(amount, option="--usd")

    def directly(store: "Store", actor: str, at_us: int) -> dict[str, Any]:
        from proxy.budgeting import budgeted

        return budgeted(store, name, microusd, reason=reason, actor=actor, at_us=at_us)

    body = {"run": name, "usd": amount, "reason": reason}
    answer = act(data_directory(data), "/v1/budgets/set", body, directly)
    if as_json:
        say_json(answer)
        return
    now, was = (
        "none" if answer[key] is None else f"{answer[key]} USD" for key in ("budget_usd", "was_usd")
    )
    say(f"{scope} {escaped(name)}: budget {now}, was {was}; pullcord budget show run {name}")


@budget.command()
@click.argument("scope", type=click.Choice(SCOPES))
@click.argument("name", default="")
@click.option("--usd", "amount", required=True, metavar="AMOUNT", help="-0.50 gives back 50 cents.")
@click.option("--reason", required=True, metavar="TEXT", help="Why, for the record.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@data_option
@config_option
def adjust(
    scope: str,
    name: str,
    amount: str,
    reason: str,
    as_json: bool,
    data: str | None,
    config: str | None,
) -> None:
    """Add AMOUNT to what SCOPE NAME has spent, or give it back, in every ceiling on its spend.

    For what no settlement can know: a call of unknown outcome that was never billed, an invoice
    that says more. It is in the record, with who and why; nothing falls below nothing.
    """
    microusd = dollars(amount, signed=True, option="--usd")

    def directly(store: "Store", actor: str, at_us: int) -> dict[str, Any]:
        from policies.ceilings import Per
        from proxy.budgeting import adjusted

        return adjusted(
            store,
            policy_or_none(config),
            Per(scope),
            name,
            microusd,
            reason=reason,
            actor=actor,
            at_us=at_us,
        )

    body = {"scope": scope, "subject": name, "usd": amount, "reason": reason}
    answer = act(data_directory(data, config), "/v1/budgets/adjust", body, directly)
    if as_json:
        say_json(answer)
        return
    whose = escaped(f"{scope} {name}".strip())
    for each in answer["ceilings"]:
        left = f"{each['left_usd']} USD left"
        say(
            f"{whose}: spent {each['used_before_usd']} USD before, {each['used_usd']} USD now; "
            f"{loud(left) if each['left_usd'] == NOTHING else left} ({escaped(each['is'])})"
        )

    for each in answer["unchanged"]:
        say(
            f"still counted for {escaped(_whose(each))}: {each['used_usd']} USD, "
            f"{each['left_usd']} USD left ({escaped(each['is'])})"
        )


def _whose(each: dict[str, Any]) -> str:
    """Whose window it is: `run r1`, `everything`."""
    return "everything" if each["per"] == "global" else f"{each['per']} {each['of'] or '(none)'}"


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    within = each["within_seconds"]
    money = each["count"] == "spend_usd"
    end, unit = ("_usd", " USD") if money else ("", f" {each['count']}")
    return (
        each["id"],
        _whose(each),
        f"{each['used' + end]}{unit}",
        str(each["left" + end]),
        str(each["at_most" + end]),
        ("its life" if each["count"] != "in_flight" else "") if within is None else span(within),
        each["then"],
        ", ".join(each["tools"]),
    )
