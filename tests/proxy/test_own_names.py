"""The names that a run gives to the runs it starts: no secret gets into the record by them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from policies.load import load
from proxy.identity import NAME
from tests.end_to_end.made_up_secrets import corpus
from tests.proxy.test_own import POLICY, Running, started


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with started(tmp_path, "token", load(POLICY)) as made:
        await made.minted("root", agent="biller")
        yield made


async def test_no_secret_is_recorded_as_the_name_of_a_child(
    running: Running, tmp_path: Path
) -> None:
    """Names are recorded as they are: an agent could leave there what is masked elsewhere."""
    secrets = [secret.text for secret in corpus() if secret.in_path]
    secrets = ["/" + text if "/" in text else text for text in secrets]  # a part of a URL
    secrets.append(running.secrets["root"])
    for text in secrets:
        for body in (
            {"run": text},
            {"run": f"c.{text}"},
            {"run": "c", "tools": ["mail.*", text]},
        ):
            status, told, _ = await running.asked("root", "POST", "/self/tokens", body)
            why = told["error"]["message"]
            is_name = NAME.fullmatch(str(body["run"])) is not None
            assert (status, "looks like a secret" in why, text in why) == (400, is_name, False)
    kept = b"".join(path.read_bytes() for path in (tmp_path / "data").glob("ledger.db*"))
    assert b"root" in kept
    assert [text for text in secrets if text.encode() in kept] == []


@pytest.mark.parametrize(
    "run",
    [
        "nightly.1",
        "0b8c3f0e-6d6f-4a53-9d0e-2f6a0f0c7a11",
        "0b8c3f0e6d6f4a539d0e2f6a0f0c7a11",
        "root.0b8c3f0e6d6f4a539d0e2f6a0f0c7a11",
        "root.child-of-a-child.2026-11-21",
    ],
)
async def test_an_ordinary_name_is_no_secret(running: Running, run: str) -> None:
    assert (await running.child(run, "root", tools=["mail.*"]))[0] == 201


async def test_a_child_that_an_operator_named_has_another_token(running: Running) -> None:
    """Its name is recorded already, and looks drawn only."""
    run = "0b8c3f0e6d6f0a539d0e2f6a0f0c7a11"  # no UUID
    assert (await running.child(run, "root"))[0] == 400
    await running.minted(run, parent="root", agent="biller")
    assert (await running.child(run, "root"))[0] == 201
