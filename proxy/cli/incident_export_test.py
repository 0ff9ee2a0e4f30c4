"""`incident export-test`: an incident of the ledger as a test of the policy, in files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.acting import act
from proxy.cli.incidents import id_argument
from proxy.cli.places import config_directory, config_option, data_directory, data_option
from proxy.cli.reading import reader
from proxy.cli.replaying import BROKEN, proof_as_json, say_proof
from proxy.cli.terminal import Failure, escaped, say, say_json, warn

if TYPE_CHECKING:
    from ledger.incident_export import Exported
    from ledger.open_incidents import Incident
    from ledger.store import Store
    from policies.policy import Policy
    from proxy.regression import Judgement, Proof
    from proxy.regression_files import Case

Told = dict[str, Any]

# Of an incident, what stays so, whatever is done about it later.
_STAYS = (
    *("id", "severity", "kind", "name", "tenant", "detector", "why", "opened"),
    *("run", "root", "tool", "release", "agent", "calls"),
)


@click.command("export-test")
@id_argument
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A new directory, or the one of this test.",
)
@click.option(
    "--policy",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The mended policy; the one of the configuration, if left out.",
)
@click.option(
    "--tool",
    "tools",
    multiple=True,
    metavar="NAME",
    help="By which it went wrong, where that is not plain; may be given again.",
)
@click.option(
    "--release",
    "releases",
    multiple=True,
    metavar="L",
    help="Of which the runs were that went wrong, where not all did; may be given again.",
)
@click.option(
    "--prove",
    is_flag=True,
    help="Show that the test fails with the policy of that day and passes with the mended one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@config_option
@data_option
def export_test(
    incident_id: str,
    out: Path,
    file: Path | None,
    tools: tuple[str, ...],
    releases: tuple[str, ...],
    prove: bool,
    as_json: bool,
    config: str | None,
    data: str | None,
) -> None:
    """Write an incident as a regression test: the rows of its calls and of healthy runs beside it,
    the policy of that day, the mended one, and what is expected of it.

    It runs under pytest, and by pullcord replay, with nothing but these files. The rows hold no
    bodies, but names of runs, tenants and tools, paths, and arguments that conditions read; answers
    that the trace kept stand beside them. Secrets are masked, but read the files before you commit
    them. With --prove the proof goes into the ledger, so that the incident can be closed. Exits
    with 3 where it proves nothing.
    """
    from proxy.incidents import named
    from proxy.regression import judged, proven

    directory, policy = data_directory(data, config), _policy(file, config)
    with reader(directory) as connection:
        incident = named(connection, incident_id)
        case, exported = _written(connection, directory, incident, policy, out, (tools, releases))
    proof = proven(case, policy) if prove else None
    if proof is not None and not proof.why:
        _record(directory, incident.id, out)
    found = judged(case, policy) if proof is None else proof.after
    if as_json:
        say_json(_as_json(exported, case, found, proof))
    else:
        _say(exported, incident, case, found, proof)
    if proof is not None and proof.why:
        raise click.exceptions.Exit(BROKEN)


def _policy(file: Path | None, config: str | None) -> "Policy":
    from policies.load import PolicyError, load_file

    try:
        return load_file(file or config_directory(config) / "policy.yaml")
    except PolicyError as error:
        raise Failure(str(error), 2) from None


def _written(
    connection: Any,
    directory: Path,
    incident: "Incident",
    policy: "Policy",
    out: Path,
    wrong: tuple[tuple[str, ...], tuple[str, ...]],
) -> "tuple[Case, Exported]":
    """The files, and the test as it is read from them."""
    from ledger import incident_export
    from ledger.redact import redact_key
    from proxy import regression_files as files
    from proxy import regression_serving, traces
    from proxy.incidents import as_json
    from proxy.secret_keys import vault_key

    files.check_place(out, incident.id)
    key = redact_key(vault_key(directory))
    exported = incident_export.exported(connection, incident, key, *wrong)
    with traces.opened(connection, directory) as opened:
        ids = dict.fromkeys(row["call_id"] for row in exported.rows if row.get("decision"))
        answers = regression_serving.recorded(connection, ids, opened.of)
    all_of_it = as_json(incident)
    told = {
        **{name: all_of_it[name] for name in _STAYS},
        "pullcord": _version(),
        "before": exported.before,
        "first": exported.first,
        "tools": list(exported.tools),
        "releases": list(exported.releases),
        "left_out": exported.left_out,
        "policies": {
            digest: text for digest, text in exported.policies.items() if digest != exported.before
        },
    }
    recorded = {
        files.CALLS: files.lines(exported.rows),
        files.HEALTHY: files.lines(exported.healthy),
        files.BEFORE: exported.policies[exported.before].encode(),
        **({files.RESPONSES: files.lines(answers)} if answers else {}),
    }
    written = {
        **recorded,
        files.INCIDENT: files.summary(told, recorded),
        files.POLICY: policy.text.encode(),
        f"{files.name_of_test(incident.id)}.py": files.python_file(told),
    }
    if files.is_edited(out):
        files.write(out, written, incident.id)
        return files.read(out), exported
    expectation = _expectation(written, incident.id, policy)
    told[files.EXPECTED] = files.sum_of(expectation)
    written |= {files.INCIDENT: files.summary(told, recorded), files.EXPECT: expectation}
    files.write(out, written, incident.id)
    return files.read(out), exported


def _expectation(written: dict[str, bytes], incident_id: str, policy: "Policy") -> bytes:
    """expect.yaml. What may be expected is known once it is judged."""
    from tempfile import TemporaryDirectory

    from proxy import regression_files as files
    from proxy.regression import expected_of, reach

    any_ = {files.EXPECT: files.expectation(files.Expected(0))}
    with TemporaryDirectory() as scratch:
        files.write(Path(scratch), {**written, **any_}, incident_id)
        return files.expectation(expected_of(reach(files.read(Path(scratch)), policy)))


def _record(directory: Path, incident_id: str, out: Path) -> None:
    """The proof, in the record."""
    from proxy.regression_files import digest_of

    digest, where = digest_of(out), str(out)

    def directly(store: "Store", actor: str, at_us: int) -> Told:
        from proxy.incident_acts import proven

        return proven(store, incident_id, digest, where, actor=actor, at_us=at_us)

    body = {"incident": incident_id, "digest": digest, "where": where}
    act(directory, "/v1/incidents/prove", body, directly)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pullcord")
    except PackageNotFoundError:
        return "unknown"


def _as_json(exported: "Exported", case: "Case", found: "Judgement", proof: "Proof | None") -> Told:
    from proxy.regression import as_json

    told: Told = {
        "incident": case.incident["id"],
        "out": str(case.folder),
        "calls": exported.calls,
        "left_out": exported.left_out,
        "healthy_runs": exported.healthy_runs,
        "answers": (case.folder / "responses.jsonl").exists(),
        "now": as_json(found),
    }
    return told if proof is None else {**told, "proof": proof_as_json(proof)}


def _after(incident: "Incident") -> str:
    if incident.closed_us is not None:
        return f"the incident was closed before: pullcord incident show {incident.id}"
    return f'the incident can be closed:\npullcord incident close {incident.id} --reason "..."'


def _say(
    exported: "Exported",
    incident: "Incident",
    case: "Case",
    found: "Judgement",
    proof: "Proof | None",
) -> None:
    from proxy.regression import as_lines

    where = escaped(str(case.folder))
    say(
        f"wrote {where}: {exported.calls:,} calls of the incident, "
        f"{exported.healthy_runs} healthy runs beside it"
    )
    of = f" by runs of {', '.join(exported.releases)}" if exported.releases else ""
    told = escaped(f"{', '.join(exported.tools)}{of}")
    say(f"it went wrong by calls of {told} (--tool NAME, --release L say else)")
    if exported.left_out:
        warn(f"{exported.left_out:,} later calls of it are left out: more of the same")
    if not exported.healthy_runs:
        warn("no healthy run used these tools then, so nothing shows what the policy stops wrongly")
    if proof is not None:
        say_proof(proof)
        if not proof.why:
            say(f"the proof is in the record; {_after(incident)}")
        return
    for line in as_lines(found):
        say(escaped(line))
    say(f"run it: pytest {where}   or: pullcord replay {where}")
    say(f"next:   pullcord incident export-test {case.incident['id']} --out {where} --prove")
