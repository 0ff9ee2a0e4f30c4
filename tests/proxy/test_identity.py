"""Proxy credentials: what is read, what is not, and that secrets do not show."""

import base64

import pytest

from ledger.records import Bearer
from policies.call import Identity
from proxy import identity
from proxy.identity import Credentials


def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_both_halves_are_read():
    assert identity.read(basic("r1:t.o~k-e_n")) == Credentials("r1", "t.o~k-e_n")
    assert identity.read("bAsIc " + basic("r:t")[6:]) == Credentials("r", "t")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Basic",
        "Basic !!!",
        "Bearer " + basic("r:t")[6:],
        basic("r"),
        basic("r:"),
        basic(":t"),
        basic("r:t:u"),
        basic("r 1:t"),
        basic("r\u00e9:t"),
        basic("r\n:t"),
        basic("r" * 300 + ":t"),
        "Basic " + "A" * 5000,
        "Basic /w==",
    ],
)
def test_what_is_not_a_name_and_a_token_is_no_credentials(header):
    assert identity.read(header) is None


def test_in_token_mode_the_store_is_given_a_hash():
    who = identity.claimant(Credentials("r1", "secret"), "token")
    assert who == Bearer("r1", identity.token_hash("secret"))
    assert "secret" not in repr(who)
    assert "secret" not in repr(Credentials("r1", "secret"))


def test_in_open_mode_the_second_half_is_the_tenant():
    assert identity.claimant(Credentials("r1", "acme"), "open") == Identity("r1", "acme")


def test_no_credentials_are_nobody_in_either_mode():
    assert identity.claimant(None, "token") is None
    assert identity.claimant(None, "open") is None


def test_tokens_are_long_random_and_fit_a_proxy_url():
    tokens = {identity.new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(identity.NAME.fullmatch(token) and len(token) == 48 for token in tokens)
