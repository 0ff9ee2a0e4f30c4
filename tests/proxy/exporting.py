"""An incident of a ledger exported as the command does it."""

from pathlib import Path

from click.testing import CliRunner, Result

from proxy.cli.main import cli


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def exported(data: Path, incident: str, policy: str, out: Path, *told: str) -> Path:
    """The directory of the test, with this policy as the mended one."""
    file = data.parent / "mended.yaml"
    file.write_text(policy, "utf-8")
    result = typed(
        *("incident", "export-test", incident, "--out", str(out)),
        *("--policy", str(file), "--data", str(data), *told),
    )
    assert result.exit_code == 0, result.output
    return out
