"""The block: every name is there, and every format gives back exactly the values put in."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from proxy.environment import FORMATS, NAMES, block, proxy_url, render, render_unset

HOSTILE = Path(
    "/srv/a  dir/it's \"so\" $HOME ${HOME} $(id) `id` \\n \\' \u2018x\u2019 #1 %2 & ; * é/ca.pem"
)
QUOTED = Path("/srv/o'hara #1/ca.pem")
DOLLARS = Path('/srv/$HOME "x" `id` \\n #1/ca.pem')

SHELLS = {
    "sh": ["sh", "-c"],
    "fish": ["fish", "--no-config", "-c"],
    "pwsh": ["pwsh", "-NoProfile", "-NonInteractive", "-Command"],
}


def a_block(path: Path = Path("/srv/ca.pem"), **changes: object) -> dict[str, str]:
    arguments = {
        "host": "127.0.0.1",
        "port": 8640,
        "run": "run_01J",
        "token": "s3cret~.-_",
        "bundle_file": path,
        "ca_file": Path("/srv/only-ca.pem"),
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "span_id": "b7ad6b7169203331",
    }
    return block(**(arguments | changes))  # type: ignore[arg-type]


def exported_by(shell: str, script: str, inherited: Mapping[str, str] = {}) -> dict[str, str]:
    """Run `script` in a real shell; the environment that its next child gets."""
    command = SHELLS[shell]
    if shutil.which(command[0]) is None:
        if os.environ.get("CI") == "true" and shell != "pwsh":  # which Debian does not have
            pytest.fail(f"{shell} is not installed")
        pytest.skip(f"{shell} is not installed")
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": "/nonexistent", **inherited}
    done = subprocess.run(
        [shutil.which(command[0]) or shell, *command[1:], f"{script}\nenv -0"],
        env=environment,
        capture_output=True,
        check=True,
    )
    # A shell may warn about its home; a line that it could not read is an error.
    assert not re.search(b"syntax|not found|Unknown command", done.stderr)
    return dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)


# ---------------------------------------------------------------------------- the block


def test_the_block_holds_every_name_and_points_it_at_the_right_thing():
    variables = a_block(baggage="pullcord.run=run_01J")
    url = "http://run_01J:s3cret~.-_@127.0.0.1:8640"
    assert tuple(variables) == NAMES
    assert variables["http_proxy"] == variables["HTTPS_PROXY"] == variables["all_proxy"] == url
    assert variables["NO_PROXY"] == variables["no_proxy"] == ""
    assert variables["SSL_CERT_FILE"] == variables["npm_config_cafile"] == "/srv/ca.pem"
    assert variables["NODE_EXTRA_CA_CERTS"] == variables["DENO_CERT"] == "/srv/only-ca.pem"
    assert variables["NODE_USE_ENV_PROXY"] == "1"
    assert variables["AIOHTTP_TRUST_ENV"] == "True"
    assert variables["PULLCORD_RUN_ID"] == "run_01J"
    assert variables["PULLCORD_URL"] == "http://pullcord.invalid"
    assert variables["TRACEPARENT"] == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert variables["BAGGAGE"] == "pullcord.run=run_01J"


def test_no_baggage_is_no_variable():
    assert "BAGGAGE" not in a_block()


@pytest.mark.parametrize(
    "host,shown",
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "[::1]"),
        ("localhost", "localhost"),
        ("pull_cord.internal", "pull_cord.internal"),
    ],
)
def test_a_host_is_written_as_a_url_wants_it(host, shown):
    assert proxy_url(host, 1, "r", "t") == f"http://r:t@{shown}:1"


@pytest.mark.parametrize("bad", ["", "a b", "a:b", "a@b", "a/b", "a%20", "ü", "a\n", "$(id)"])
@pytest.mark.parametrize("part", ["run", "token"])
def test_a_run_or_token_that_clients_would_mangle_is_refused(part, bad):
    with pytest.raises(ValueError, match=rf"^the {part}.* does not fit into a proxy URL: use"):
        a_block(**{part: bad})


def test_a_wrong_token_is_not_repeated():
    with pytest.raises(ValueError, match="the token does not") as raised:
        a_block(token="hunter2:hunter2")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "changes,told",
    [
        ({"port": 0}, "port is 0"),
        ({"port": 65536}, "port is 65536"),
        ({"host": ""}, "neither a host name"),
        ({"host": "a@b"}, "neither a host name"),
        ({"host": "[::1]"}, "neither a host name"),
        ({"host": "fe80::1%eth0"}, "without a zone"),
        ({"trace_id": "0" * 32}, "not all of them 0"),
        ({"trace_id": "A" * 32}, "lower-case hex"),
        ({"span_id": "1" * 15}, "lower-case hex"),
        ({"baggage": "a=1\nPATH=/evil"}, "printable ASCII"),
        ({"path": Path("/srv/a\nPATH=x/ca.pem")}, "choose another directory with --data"),
        ({"path": Path("/srv/\udcff/ca.pem")}, "choose another directory with --data"),
        ({"path": Path("ca.pem")}, "absolute"),
        ({"ca_file": Path("/srv/\x1b[2J")}, "choose another directory with --data"),
    ],
)
def test_what_no_format_could_carry_is_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        a_block(**changes)


# ---------------------------------------------------------------------------- formats


@pytest.mark.parametrize("path", [Path("/srv/ca.pem"), HOSTILE, QUOTED, DOLLARS])
@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_exports_exactly_the_block(shell, path):
    variables = a_block(path)
    got = exported_by(shell, render(variables, shell), inherited={"NO_PROXY": "*"})
    # PowerShell before 7.5 takes a variable that is set to nothing away, which says the same.
    got |= {name: "" for name in ("NO_PROXY", "no_proxy") if shell == "pwsh" and name not in got}
    assert {name: got.get(name) for name in variables} == variables


@pytest.mark.parametrize("shell", SHELLS)
def test_unset_takes_away_the_block_and_nothing_else(shell):
    inherited = a_block(baggage="a=1") | {"KEPT": "yes"}
    del inherited["CURL_CA_BUNDLE"]  # one that is not there is no trouble
    got = exported_by(shell, render_unset(shell), inherited)
    assert not set(NAMES) & set(got)
    assert got["KEPT"] == "yes"


def test_pwsh_doubles_every_quote_that_powershell_knows():
    text = render(a_block(Path("/srv/o'h\u2018a\u2019")), "pwsh")
    assert "$env:SSL_CERT_FILE = '/srv/o''h\u2018\u2018a\u2019\u2019'\n" in text


def test_pwsh_unset_names_each_variable():
    assert render_unset("pwsh").splitlines() == [
        f"Remove-Item -ErrorAction Ignore Env:{name}" for name in NAMES
    ]


@pytest.mark.parametrize("path", [Path("/srv/a b/ca.pem"), QUOTED, DOLLARS])
def test_a_shell_reads_the_dotenv_file(tmp_path, path):
    file = tmp_path / "agent.env"
    file.write_text(render(a_block(path), "dotenv"))
    got = exported_by("sh", f"set -a; . {file}")
    assert {name: got.get(name) for name in a_block()} == a_block(path)


@pytest.mark.parametrize("path", [Path("/srv/a b/ca.pem"), QUOTED, DOLLARS])
def test_node_reads_the_dotenv_file(tmp_path, path):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    file = tmp_path / "agent.env"
    # Not the whole block: Node would look for the CA file while it starts.
    variables = {"A": str(path), "B": a_block()["HTTP_PROXY"], "C": ""}
    file.write_text(render(variables, "dotenv"))
    printed = "console.log(JSON.stringify([process.env.A, process.env.B, process.env.C]))"
    done = subprocess.run(
        ["node", f"--env-file={file}", "-e", printed], capture_output=True, check=True, text=True
    )
    assert json.loads(done.stdout) == list(variables.values())


@pytest.mark.parametrize("path", [HOSTILE, Path("/srv/${HOME}/ca.pem")])
def test_dotenv_refuses_what_its_readers_read_differently(path):
    with pytest.raises(ValueError, match="do not agree on any quoting of SSL_CERT_FILE=/srv"):
        render(a_block(path), "dotenv")


@pytest.mark.parametrize("path", [HOSTILE, QUOTED])
def test_json_is_one_object(path):
    assert json.loads(render(a_block(path), "json")) == a_block(path)


def test_json_unset_is_a_merge_patch_of_nulls():
    assert json.loads(render_unset("json")) == dict.fromkeys(NAMES)


@pytest.mark.parametrize("path", [HOSTILE, QUOTED])
def test_docker_takes_the_rest_of_the_line_as_the_value(path):
    """As docker/cli's opts/file.go reads a line: name, the first `=`, the rest untouched."""
    lines = render(a_block(path), "docker").splitlines()
    assert dict(line.split("=", 1) for line in lines) == a_block(path)


@pytest.mark.parametrize("path", [HOSTILE, QUOTED])
def test_k8s_is_the_env_list_with_references_escaped(path):
    entries = yaml.safe_load(render(a_block(path), "k8s"))["env"]
    values = {entry["name"]: entry["value"].replace("$$", "$") for entry in entries}
    assert values == a_block(path)
    assert all(isinstance(entry["value"], str) for entry in entries)
    assert not any(re.search(r"(?<!\$)(\$\$)*\$\(", entry["value"]) for entry in entries)


def test_k8s_unset_is_a_strategic_merge_patch():
    entries = yaml.safe_load(render_unset("k8s"))["env"]
    assert entries == [{"name": name, "$patch": "delete"} for name in NAMES]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_ends_its_last_line_and_unsets_or_says_why_not(name):
    assert render(a_block(), name).endswith("\n")
    if FORMATS[name].unset is None:
        with pytest.raises(ValueError, match=f"{name} cannot unset .* choose --format sh, fish"):
            render_unset(name)
    else:
        assert render_unset(name).endswith("\n")


@pytest.mark.parametrize("act", [lambda: render(a_block(), "bat"), lambda: render_unset("bat")])
def test_an_unknown_format_names_the_known_ones(act):
    with pytest.raises(ValueError, match="no format 'bat'; choose one of sh, fish, pwsh, dotenv"):
        act()
