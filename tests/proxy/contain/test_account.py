import os
from pathlib import Path

import pytest

from proxy.contain import account
from proxy.contain.account import Account, check, named, session_free
from proxy.contain.errors import ContainError

NOBODY = Account("nobody", 65_534, 65_534, (65_534,), "/nonexistent")

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may ask for others")


def test_a_user_is_known_by_name() -> None:
    assert named("root").uid == 0
    with pytest.raises(ContainError, match="no user 'no such'"):
        named("no such")


def test_the_session_and_pullcords_own_places_stay_behind() -> None:
    inherited = {
        "PATH": "/bin",
        "AWS_REGION": "eu-west-1",
        "PULLCORD_DATA": "/srv/data",
        "SSH_AUTH_SOCK": "/tmp/ssh/agent",
        "SUDO_USER": "dana",
        "XDG_RUNTIME_DIR": "/run/user/1000",
    }
    assert session_free(inherited) == {"PATH": "/bin", "AWS_REGION": "eu-west-1"}
    assert NOBODY.environ({"HOME": "/root", "PATH": "/bin"}) == {
        "HOME": "/nonexistent",
        "USER": "nobody",
        "LOGNAME": "nobody",
        "PATH": "/bin",
    }


def test_roots_agents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ContainError, match="root reads and ends everything"):
        check(named("root"), tmp_path, (), ())


@root_only
def test_the_proxys_own_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY.uid, NOBODY.gid)
    with pytest.raises(ContainError, match="the proxy itself runs as nobody"):
        check(NOBODY, tmp_path, (), ())


def test_groups_that_rule_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "_gid", lambda name: 65_534 if name == "docker" else None)
    with pytest.raises(ContainError, match="in the group docker"):
        check(NOBODY, tmp_path, (), ())


@root_only
def test_asking_for_another_user_leaves_us_who_we_are(tmp_path: Path) -> None:
    before = os.getresuid(), os.getresgid(), os.getgroups()
    with pytest.raises(ContainError, match="is closed to it"):
        check(NOBODY, tmp_path, (tmp_path / "closed" / "ca.pem",), ())
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before
