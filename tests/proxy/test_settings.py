"""Where a setting comes from, and what is said about one that cannot be used."""

import re
from pathlib import Path

import pytest

from proxy.settings import NAMES, Settings, SettingsError, host_and_port, is_loopback, load

SHIPPED = Path(__file__).resolve().parents[2] / "config" / "pullcord.yaml"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    directory = tmp_path / "config"
    directory.mkdir()
    return directory


def written(config: Path, text: str) -> Path:
    (config / "pullcord.yaml").write_text(text, "utf-8")
    return config


def mistakes(config: Path, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(config, {}, environ)
    return str(caught.value).replace(f"{config}/", "")


def test_without_a_file_every_setting_has_its_default(config: Path) -> None:
    settings = load(config, {}, {})
    assert settings.listen == "127.0.0.1:8640"
    assert settings.data == Path("~/.pullcord").expanduser()
    assert settings.identity == "token"
    assert settings.upstream_ca is None
    assert settings.policy_file == config / "policy.yaml"


@pytest.mark.parametrize("text", ["", "\n", "# listen: 1.2.3.4:5\n"])
def test_a_file_that_says_nothing_is_none(config: Path, text: str) -> None:
    plain = load(config, {}, {})
    assert load(written(config, text), {}, {}) == plain


def test_flag_wins_over_environment_over_file_over_default(config: Path) -> None:
    written(config, "listen: 127.0.0.1:1\nidle_seconds: 11\ndrain_seconds: 12\n")
    environ = {"PULLCORD_LISTEN": "127.0.0.1:2", "PULLCORD_IDLE_SECONDS": "22"}
    settings = load(config, {"listen": "127.0.0.1:3", "idle_seconds": None}, environ)
    assert settings.listen == "127.0.0.1:3"
    assert settings.idle_seconds == 22
    assert settings.drain_seconds == 12
    assert settings.connect_seconds == 5


def test_an_empty_variable_sets_nothing(config: Path) -> None:
    assert load(config, {}, {"PULLCORD_LISTEN": ""}).listen == "127.0.0.1:8640"


def test_a_path_in_the_file_is_seen_from_the_file_a_flag_from_here(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(config, "upstream_ca: company.pem\ndata: state\n")
    settings = load(Path("config"), {"data": "elsewhere"}, {})
    assert settings.upstream_ca == config / "company.pem"
    assert settings.data == tmp_path / "elsewhere"
    assert settings.config == config


@pytest.mark.parametrize(
    "text, told",
    [
        (
            "lsten: 127.0.0.1:1\n",
            "pullcord.yaml:1:1: there is no setting 'lsten'; did you mean 'lis",
        ),
        ("\nxyzzy: 1\n", "pullcord.yaml:2:1: there is no setting 'xyzzy'; there are listen, con"),
        ("listen: 12:30\n", "pullcord.yaml:1:9: '12:30' is a number to base 60"),
        ("listen: '8640'\n", "pullcord.yaml:1:9: listen: '8640' is no address; write HOST:PORT"),
        ("listen: a:70000\n", "is no address"),
        ("identity: opne\n", "pullcord.yaml:1:11: identity: Input should be 'token' or 'open'"),
        ("idle_seconds: -1\n", "pullcord.yaml:1:15: idle_seconds: Input should be greater than 0"),
        ("body_bytes_max: 1\n", "greater than or equal to 1024"),
        ("listen: a:1\nlisten: a:2\n", "pullcord.yaml:2:1: the key 'listen' stands twice"),
        ("listen: [a:1]\n", "pullcord.yaml:1:9: listen: Input should be a valid string"),
        ("- listen\n", "pullcord.yaml:1:1: write lines like"),
        ("listen: 'a\n", "pullcord.yaml:"),
        ("config: x\n", "there is no setting 'config'"),
    ],
)
def test_a_mistake_in_the_file_is_told_by_line_and_column(
    config: Path, text: str, told: str
) -> None:
    assert told in mistakes(written(config, text))


def test_all_mistakes_are_told_at_once(config: Path) -> None:
    written(config, "idle_seconds: x\nconnect_seconds: y\n")
    assert len(mistakes(config, PULLCORD_LISTEN="nowhere").splitlines()) == 3


def test_a_mistake_in_the_environment_names_the_variable(config: Path) -> None:
    assert mistakes(config, PULLCORD_LISTEN="x").startswith("PULLCORD_LISTEN: listen: 'x' is no")


def test_a_mistake_in_a_flag_names_the_flag(config: Path) -> None:
    with pytest.raises(SettingsError, match=r"^--first-byte-seconds: "):
        load(config, {"first_byte_seconds": "soon"}, {})


def test_an_empty_flag_is_a_shell_variable_that_was_not_set(config: Path) -> None:
    with pytest.raises(SettingsError, match="--data: is empty"):
        load(config, {"data": ""}, {})


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "192.0.2.1:1", "[::]:1", "example.com:1"])
def test_open_identity_needs_a_loopback_address(config: Path, listen: str) -> None:
    written(config, f"identity: open\nlisten: '{listen}'\n")
    assert mistakes(config).startswith("pullcord.yaml:1:11: identity: open lets every caller")


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1"])
def test_open_identity_on_loopback_is_a_choice(config: Path, listen: str) -> None:
    written(config, f"identity: open\nlisten: '{listen}'\n")
    assert load(config, {}, {}).identity == "open"


# ---------------------------------------------------------------------------- the control port


def test_there_is_no_control_port_unless_it_is_set(config: Path) -> None:
    settings = load(config, {}, {})
    assert settings.control is None
    assert settings.own_ports == {8640}


@pytest.mark.parametrize(
    "written_so", ["127.0.0.1:8641", "http://127.0.0.1:8641", "http://127.0.0.1:8641/"]
)
def test_the_variable_may_be_the_url_that_commands_take(config: Path, written_so: str) -> None:
    settings = load(config, {}, {"PULLCORD_CONTROL": written_so})
    assert settings.control == "127.0.0.1:8641"
    assert settings.own_ports == {8640, 8641}


def test_processes_that_are_handed_the_settings_know_all_own_ports(config: Path) -> None:
    settings = load(config, {"control": "[::1]:8641"}, {})
    handed = Settings.model_validate_json(settings.model_dump_json())
    assert handed.own_ports == settings.own_ports == {8640, 8641}


@pytest.mark.parametrize("address", ["0.0.0.0:1", "192.0.2.1:8641", "[::]:1", "example.com:1"])
def test_the_control_port_is_on_this_machine_alone(config: Path, address: str) -> None:
    told = mistakes(config, PULLCORD_CONTROL=address)
    assert told.startswith("PULLCORD_CONTROL: control: operators' tokens would cross the network")
    assert "ssh -L" in told


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1"])
def test_the_control_port_may_be_at_any_loopback_address(config: Path, address: str) -> None:
    assert load(config, {"control": address}, {}).control == address


@pytest.mark.parametrize(
    "listen, address, told",
    [
        ("127.0.0.1:8640", "127.0.0.1:0", "name a port"),
        ("127.0.0.1:8640", "127.0.0.1:8640", "it is the port of `listen`"),
        ("0.0.0.0:8640", "[::1]:8640", "it is the port of `listen`"),
        ("127.0.0.1:8640", "8641", "is no address"),
    ],
)
def test_a_control_port_that_cannot_be_is_told(
    config: Path, listen: str, address: str, told: str
) -> None:
    assert told in mistakes(config, PULLCORD_LISTEN=listen, PULLCORD_CONTROL=address)


def test_a_file_that_is_not_text_is_told(config: Path) -> None:
    (config / "pullcord.yaml").write_bytes(b"listen: \xff\n")
    assert mistakes(config) == "pullcord.yaml: cannot be read: it is not UTF-8 text"


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert host_and_port("[::1]:8640") == ("::1", 8640)
    with pytest.raises(ValueError, match="is no address"):
        host_and_port("::1:8640")


def test_a_name_that_is_not_localhost_is_not_loopback() -> None:
    assert is_loopback("localhost")
    assert not is_loopback("localhost.example.com")


def test_the_shipped_file_changes_nothing(config: Path) -> None:
    plain = load(config, {}, {})
    assert load(written(config, SHIPPED.read_text("utf-8")), {}, {}) == plain


def test_the_shipped_file_shows_every_setting_with_its_default(config: Path) -> None:
    shown = re.findall(r"^# ([a-z_]+): ?(.*)$", SHIPPED.read_text("utf-8"), re.MULTILINE)
    settings = [(name, value) for name, value in shown if name in NAMES]
    assert [name for name, _ in settings] == list(NAMES)
    plain = load(config, {}, {})
    text = "".join(f"{name}: {value}\n" for name, value in settings if value)
    assert load(written(config, text), {}, {}) == plain
    empty = {name for name, value in settings if not value}
    assert empty == {"control", "upstream_ca", "seals", "notify", "rollback"}


def test_settings_do_not_change(config: Path) -> None:
    settings = Settings(config=config)
    with pytest.raises(ValueError, match="frozen"):
        settings.listen = "127.0.0.1:1"  # type: ignore[misc]


# Where copies of the seals go


def test_seals_go_to_one_place_or_to_some(config: Path) -> None:
    assert load(config, {}, {}).seals == ()
    assert load(config, {"seals": "syslog"}, {}).seals == ("syslog",)
    one = load(config, {}, {"PULLCORD_SEALS": "https://me:x@host.example/take"})
    assert one.seals == ("https://me:x@host.example/take",)
    some = load(written(config, "seals: [syslog, copies/seals, /var/seals]\n"), {}, {})
    assert some.seals == ("syslog", str(config / "copies/seals"), "/var/seals")
    assert Settings.model_validate_json(some.model_dump_json()) == some


@pytest.mark.parametrize(
    "place, why",
    [
        ("ftp://host/x", "a file, to an http(s) URL, or to syslog"),
        ("https:///x", "name a host in the URL"),
        ("https://host:0/", "name a host in the URL"),
    ],
)
def test_a_place_that_cannot_be_is_told(config: Path, place: str, why: str) -> None:
    assert why in mistakes(config, PULLCORD_SEALS=place)


def test_there_are_not_too_many_places(config: Path) -> None:
    places = ", ".join(f"f{number}" for number in range(9))
    with pytest.raises(SettingsError, match="8 places at most"):
        load(written(config, f"seals: [{places}]\n"), {}, {})


@pytest.mark.parametrize(
    "line, says",
    [
        ("trace_keep_days: 30d", "write a number of days without a unit, such as 30 (it is '30d')"),
        ("trace_keep_bytes: 10GB", "write a number of bytes without a unit, such as 10737418240"),
        ("idle_seconds: 5m", "write a number of seconds without a unit, such as 300"),
        ("workers: some", "write a number without a unit, such as 1"),
        ("trace: off", "for trace write none"),
        ("trace: 'off'", "trace: to keep nothing write none"),
    ],
)
def test_what_to_write_is_said(config: Path, line: str, says: str) -> None:
    assert says in mistakes(written(config, line + "\n"))
