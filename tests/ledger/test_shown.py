"""What a person is shown of a call: all of it, and no credential of its headers or its URL."""

import re

import pytest

from ledger.records import Arguments
from ledger.shown import is_secret, masked

KEY = b"k" * 32
MARK = re.compile(r"\[redacted:[0-9a-f]{8}\]")
GOOGLE = "AIzaSyA1234567890abcdefghijklmnopqrstu"
LONG = "0123456789abcdef0123456789abcdef"


def shown(url: str = "https://a.example/", *headers: tuple[str, str]) -> Arguments:
    found = masked(Arguments("POST", url, headers, b"password=hush"), KEY)
    assert found.method == "POST"
    assert found.body == b"password=hush"
    return found


@pytest.mark.parametrize(
    "url, told",
    [
        (f"/o?key={GOOGLE}&access_token=hush&of=ann", "/o?key=M&access_token=M&of=ann"),
        ("/o?key=hush", "/o?key=M"),
        ("/o?apiKey=hush&b=c", "/o?apiKey=M&b=c"),
        ("/o?X-Amz-Signature=hush&X-Amz-Date=1", "/o?X-Amz-Signature=M&X-Amz-Date=1"),
        ("/o?auth%5Btoken%5D=hush&a=b", "/o?auth%5Btoken%5D=M&a=b"),
        ("/o?acc%65ss_tok%65n=hush", "/o?acc%65ss_tok%65n=M"),
        ("/o?access+token=hush", "/o?access+token=M"),
        ("/o?a=b;token=hush;c=d", "/o?a=b;token=M"),
        ("/o?token=hush;hush&c=d", "/o?token=M&c=d"),
        ("/o?token=hush=hush", "/o?token=M"),
        ("/o?token=&token", "/o?token=&token"),
        (f"/o?of={GOOGLE}", "/o?of=M"),
        (f"/o?of=%41{GOOGLE[1:]}&b", "/o?of=M&b"),
        (f"/o/{GOOGLE}/p?of=1", "/o/M/p?of=1"),
        ("/bot123456789:AAEhBOweik6ad9r_QXMENQjcrGbqCr4K-bc/send", "/M/send"),
        (f"/zones/{LONG}/purge?file={LONG}", f"/zones/{LONG}/purge?file={LONG}"),
        ("/o?idempotency_key=a&primary_key=b&keys=c&max_tokens=5", None),
        (
            "/o?to=https%3A%2F%2Fb.example%2F%3Fof%3Dann%26token%3Dhush&c",
            "/o?to=https:%2F%2Fb.example%2F%3Fof=ann&token=M&c",
        ),
        ("/o?redirect=https://b.example/?token=hush&c", "/o?redirect=https://b.example/?token=M&c"),
    ],
)
def test_the_url_is_shown_without_its_secrets(url: str, told: str | None) -> None:
    found = shown(f"https://a.example{url}").url
    assert MARK.sub("M", found) == f"https://a.example{told or url}"


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("authorization", "Bearer hush", "Bearer M"),
        ("authorization", "Basic aHVzaA==", "Basic M"),
        ("authorization", "AWS4-HMAC-SHA256 Credential=a, Signature=b", "AWS4-HMAC-SHA256 M"),
        ("authorization", "hush hush", "M"),
        ("cookie", "session=sandbox", "M"),
        ("private-token", "hush", "M"),
        ("x-api-key", "hush", "M"),
        ("x-goog-api-key", "hush", "M"),
        ("x-functions-key", "hush", "M"),
        ("x-amz-security-token", "hush", "M"),
        ("mcp-session-id", "hush", "M"),
        ("stripe-signature", "hush", "M"),
        ("x-any", LONG, "M"),
        ("x-any", f"see {GOOGLE}", "see M"),
        ("referer", "https://b.example/?a=b&token=hush", "https://b.example/?a=b&token=M"),
        ("x-amz-copy-source", f"/bucket/{LONG}", f"/bucket/{LONG}"),
        ("content-type", "multipart/form-data; boundary=OUT", "multipart/form-data; boundary=OUT"),
        ("idempotency-key", "order-17", "order-17"),
        ("x-dry-run", "true", "true"),
        ("x-amz-acl", "public-read-write", "public-read-write"),
        ("authorization", "", ""),
    ],
)
def test_headers_are_shown_without_their_secrets(name: str, value: str, told: str) -> None:
    ((found, text),) = shown("https://a.example/", (name, value)).headers
    assert (found, MARK.sub("M", text)) == (name, told)


def test_equal_secrets_are_marked_alike() -> None:
    found = shown("https://a.example/?token=one", ("x-token", "one"), ("x-token", "two"))
    marks = [*MARK.findall(found.url), *(value for _, value in found.headers)]
    assert marks[0] == marks[1] != marks[2]
    assert marks[0] not in masked(Arguments("POST", "https://a.example/?token=one"), b"other").url


def test_nothing_is_cut() -> None:
    url = "https://a.example/" + "a/" * 4000 + "?b=" + "c " * 4000 + "end"
    assert shown(url).url == url


def test_urls_in_urls_without_end() -> None:
    url = "https://a.example/" + "?a=" * 5000 + "%3Fa%3D" * 1000
    assert shown(url).url == url


def test_a_name_of_many_words() -> None:
    assert is_secret("clientSecret")
    assert is_secret("X-Auth")
    assert not is_secret("author")
    assert not is_secret("monkey")
    assert not is_secret("")
