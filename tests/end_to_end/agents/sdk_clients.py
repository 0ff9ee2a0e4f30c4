"""An agent with a provider's SDK as it comes: `python sdk_clients.py SDK`.

Keys are made up; nothing but the environment tells it of a proxy or of an authority. It prints as
JSON what the SDK gave, or under `error` what it raised, in the SDK's own words. A model is asked
for the whole answer and for a stream, OpenAI's also for one that tells its usage; the file
`TEST_GATE` appears with the first word.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def _joined(words: Iterable[str | None]) -> str:
    text = ""
    for word in words:
        if word:
            Path(os.environ["TEST_GATE"]).touch()
            text += word
    return text


def openai() -> Any:
    from openai import OpenAI

    asked: Any = {
        "model": "gpt-5.1",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
    }

    def stream(**more: Any) -> str:
        chunks = client.chat.completions.create(**asked, stream=True, **more)
        return _joined(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)

    with OpenAI(api_key="sk-test") as client:
        return [
            told(lambda: client.chat.completions.create(**asked).choices[0].message.content),
            told(stream),
            told(lambda: stream(stream_options={"include_usage": True})),
        ]


def anthropic() -> Any:
    from anthropic import Anthropic

    asked: Any = {
        "model": "claude-opus-4-5",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
    }

    def stream() -> str:
        with client.messages.stream(**asked) as answer:
            return _joined(answer.text_stream)

    with Anthropic(api_key="sk-ant-test") as client:
        return [told(lambda: client.messages.create(**asked).content[0].text), told(stream)]


def stripe() -> Any:
    import stripe

    stripe.api_key = "sk_test_1234567890"
    # It brings its own list of authorities and passes it by name, so no variable changes it.
    stripe.ca_bundle_path = os.environ["REQUESTS_CA_BUNDLE"]
    charge = stripe.Charge.create(amount=500, currency="usd", source="pm_test")
    return charge.amount


def boto3() -> Any:
    import boto3

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    s3 = boto3.client("s3", region_name="us-east-1", **keys)
    s3.create_bucket(Bucket="reports")
    return s3.put_object(Bucket="reports", Key="a.txt", Body=b"hello")["ETag"]


def mcp() -> Any:
    """Calls a tool, then lists the tools on the same session: it must have stayed usable."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def call() -> Any:
        arguments = {"name": "Ada", "email": "ada@example.com"}
        async with (
            streamable_http_client("https://mcp.crm.example/mcp") as streams,
            ClientSession(streams[0], streams[1]) as session,
        ):
            await session.initialize()
            result: Any = await session.call_tool("contacts.update", arguments)
            tools = await session.list_tools()
            plain = result.model_dump(by_alias=True)
            return {
                "text": plain["content"][0]["text"],
                "is_error": plain["isError"],
                "tools": [tool.name for tool in tools.tools],
            }

    return asyncio.run(call())


def told(call: Callable[[], Any]) -> Any:
    """What a call gives, or what it raises in its own words."""
    try:
        return call()
    except Exception as error:
        return {"error": str(error), "kind": type(error).__name__}


CALLS = {"openai": openai, "anthropic": anthropic, "stripe": stripe, "boto3": boto3, "mcp": mcp}


if __name__ == "__main__":
    print(json.dumps(told(CALLS[sys.argv[1]])))
