"""One spelling for each path, and templates that mean what they look like."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.paths import has_second_reading, normal, second_reading, template

SPELLINGS = [
    ("/", "/"),
    ("//", "/"),
    ("/v1/charges", "/v1/charges"),
    ("/v1/charges/", "/v1/charges"),
    ("//v1///charges//", "/v1/charges"),
    ("/v1/%63harges", "/v1/charges"),
    ("/v1/%7Euser", "/v1/~user"),
    ("/a%2fb", "/a%2Fb"),
    ("/a%3fb", "/a%3Fb"),
    ("/a%252fb", "/a%252fb"),
    ("/a b", None),
    ("/a%20b", "/a%20b"),
    ("/é", "/%C3%A9"),
    ("/{a}|", "/%7Ba%7D%7C"),
    ("/a;b=1", "/a;b=1"),
    ("/...", "/..."),
    ("/a/..b", "/a/..b"),
    ("/.git/", "/.git"),
    ("", None),
    ("*", None),
    ("a/b", None),
    ("/a/..", None),
    ("/./a", None),
    ("/%2e", None),
    ("/a/%2E%2e/b", None),
    ("/a\\b", None),
    ("/a%5cb", None),
    ("/a%00", None),
    ("/a%1f", None),
    ("/a%7F", None),
    ("/a\t", None),
    ("/a#b", None),
    ("/a%", None),
    ("/a%4", None),
    ("/a%zz", None),
    ("/%c0%ae", None),
    ("/a\n", None),
]


@pytest.mark.parametrize("path, expected", SPELLINGS)
def test_a_path_has_one_spelling(path: str, expected: str | None) -> None:
    assert normal(path) == expected


@given(st.text(alphabet=st.sampled_from("/%25eEfF.;aA\\é~ "), max_size=12).map(lambda t: f"/{t}"))
def test_the_spelling_of_a_spelling_is_itself(path: str) -> None:
    spelled = normal(path)
    if spelled is not None:
        assert normal(spelled) == spelled
        assert spelled.isascii()


def test_the_second_reading_drops_parameters_and_undoes_slashes() -> None:
    assert second_reading("/a;x/b%2Fc;y=1") == "/a/b/c"
    assert second_reading("/a/..;/b") is None
    assert second_reading("/a%2F..%2Fb") is None


def test_the_second_reading_undoes_what_was_escaped_twice_once_more() -> None:
    for path, has in (("/a%252Fb", True), ("/a%252e", True), ("/a%25zz", False), ("/a%20", False)):
        assert has_second_reading(path) is has
    assert second_reading("/a%252Fb") == "/a/b"
    assert second_reading("/a%2541%2520b") == "/aA%20b"
    assert second_reading("/a%25252Fb") == "/a%252Fb"
    for path in ("/a/%252e%252E/b", "/a/..%252fb", "/a%255cb", "/a%2500"):
        assert second_reading(path) is None


TEMPLATES = [
    ("/v1/charges", "/v1/charges", True),
    ("/v1/charges", "/V1/CHARGES", True),
    ("/v1/charges", "/v1/charges/x", False),
    ("/v1/charges", "/v1/charge", False),
    ("/v1/charges/", "/v1/charges", True),
    ("/v1/{id}", "/v1/a", True),
    ("/v1/{id}", "/v1", False),
    ("/v1/{id}", "/v1/a/b", False),
    ("/v1/{id}/x", "/v1/a/x", True),
    ("/v1/m-{id}.json", "/v1/m-1.json", True),
    ("/v1/m-{id}.json", "/v1/m-.json", False),
    ("/v1/m-{id}.json", "/v1/m-1xjson", False),
    ("/models/{model}:generate", "/models/g-1:generate", True),
    ("/v1/**", "/v1", True),
    ("/v1/**", "/v1/a/b", True),
    ("/v1/**", "/v1a", False),
    ("/**", "/", True),
    ("/**", "/a/b", True),
    ("/", "/", True),
    ("/", "/a", False),
    ("/a b", None, False),
    ("/%61", "/a", True),
    ("/a%2fb", "/a%2Fb", True),
    ("/é", "/%C3%A9", True),
    ("/a+b(c)", "/a+b(c)", True),
    ("/a.b", "/axb", False),
]


@pytest.mark.parametrize("text, path, matches", TEMPLATES)
def test_a_template_matches(text: str, path: str | None, matches: bool) -> None:
    if path is None:
        with pytest.raises(ValueError, match="requests spelled so are refused"):
            template(text)
    else:
        assert bool(template(text).fullmatch(path)) == matches
