"""`replay`: the test of an incident, judged, proven, or served to an agent under test."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.terminal import Failure, counted, escaped, loud, say, say_json

if TYPE_CHECKING:
    from proxy.regression import Judgement, Proof

BROKEN = 3
DEFAULT_LISTEN = "127.0.0.1:0"

Told = dict[str, Any]


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--policy",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Another policy than DIR/policy.yaml.",
)
@click.option(
    "--prove",
    is_flag=True,
    help="The policy of that day must fail the test, and this one pass it.",
)
@click.option("--serve", is_flag=True, help="Answer an agent under test as it was answered then.")
@click.option("--listen", metavar="HOST:PORT", help="Where to serve; a free port of 127.0.0.1.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def replay(
    directory: Path, file: Path | None, prove: bool, serve: bool, listen: str | None, as_json: bool
) -> None:
    """Judge an exported incident (pullcord incident export-test) by a policy: when it is contained,
    and which healthy runs it stops.

    By the rules that judge live calls, the clock of the record, and nothing but the files in DIR.
    Exits with 3 when anything that expect.yaml asks for is not so.
    """
    if serve and (prove or file is not None):
        raise click.UsageError("--serve goes without --prove and --policy")
    if listen is not None and not serve:
        raise click.UsageError("--listen is for --serve")
    if serve:
        _serve(directory, listen or DEFAULT_LISTEN, as_json)
        return
    from proxy.regression import as_json as judged_as_json
    from proxy.regression import judged, policy_in, proven
    from proxy.regression_files import read

    case = read(directory)
    policy = policy_in(case, file)
    if prove:
        proof = proven(case, policy)
        if as_json:
            say_json(proof_as_json(proof))
        else:
            say_proof(proof)
        is_broken = bool(proof.why)
    else:
        found = judged(case, policy)
        if as_json:
            say_json(judged_as_json(found))
        else:
            _say(found)
        is_broken = not found.kept
    if is_broken:
        raise click.exceptions.Exit(BROKEN)


def _say(found: "Judgement") -> None:
    from proxy.regression import as_lines

    for line in as_lines(found):
        text = escaped(line)
        say(loud(text) if line.startswith("BROKEN") else text)
    if not found.kept:
        where = escaped(str(found.case.folder))
        say(f"mend the policy and try it: pullcord replay {where} --policy FILE")


def say_proof(proof: "Proof") -> None:
    """Both policies, and what that proves."""
    from proxy.regression import as_lines

    for title, found in (("the policy of that day", proof.before), ("the mended one", proof.after)):
        say(f"--- {title}: {'passes' if found.kept else 'fails'}")
        for line in as_lines(found):
            say(escaped(line))
    if proof.why:
        say(loud(f"NOT PROVEN: {escaped(proof.why)}"))
    else:
        say("PROVEN: it fails with the policy of that day and passes with the mended one")


def proof_as_json(proof: "Proof") -> Told:
    from proxy.regression import as_json

    return {
        "proven": not proof.why,
        "why": proof.why or None,
        "before": as_json(proof.before),
        "after": as_json(proof.after),
    }


# ---------------------------------------------------------------------------------- serving


def _serve(directory: Path, listen: str, as_json: bool) -> None:
    import asyncio

    from proxy.regression_files import responses
    from proxy.settings import host_and_port

    try:
        host, port = host_and_port(listen)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    recorded = responses(directory)
    try:
        asyncio.run(_served(recorded, host, port, as_json))
    except OSError as error:
        raise Failure(f"cannot listen on {listen}: {error.strerror}; choose another", 2) from None


async def _served(recorded: list[Told], host: str, port: int, as_json: bool) -> None:
    """Until SIGTERM or Ctrl-C."""
    import asyncio
    import signal

    from proxy.regression_serving import Origin

    def told(asked: str, status: int) -> None:
        if as_json:
            say_json({"asked": asked, "status": status})
        else:
            say(f"{status}  {escaped(asked)}")

    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, ended.set)
    origin = Origin(recorded, told)
    try:
        address = f"http://{await origin.start(host, port)}"
        if as_json:
            say_json({"listening": address, "answers": len(recorded)})
        else:
            say(f"{counted(len(recorded), 'answer')} of the incident at {address}")
            say(f"base URL {address}, or HTTP_PROXY={address} for http:// URLs; Ctrl-C ends it")
        await ended.wait()
    finally:
        await origin.stop()
