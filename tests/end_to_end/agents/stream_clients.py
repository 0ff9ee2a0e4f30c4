"""An agent whose streams grow: `python stream_clients.py STREAMS CHUNKS [usage] [again]`.

So many streams at once through OpenAI's SDK as it comes, each of so many chunks that the upstream
sends without waiting; with `usage` it asks for that, with `again` for one more of one chunk when
they have ended. It prints for each, as JSON, how many chunks
held words, how many held no choice, and what the SDK raised.
"""

import asyncio
import json
import sys
from typing import Any

from openai import AsyncOpenAI


async def stream(client: AsyncOpenAI, chunks: int, more: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"words": 0, "empty": 0, "error": ""}
    try:
        answer = await client.chat.completions.create(
            model="gpt-5.1",
            messages=[{"role": "user", "content": "hi"}],
            max_completion_tokens=100,
            stream=True,
            extra_body={"push": chunks},
            **more,
        )
        async for chunk in answer:
            told["words"] += bool(chunk.choices and chunk.choices[0].delta.content)
            told["empty"] += not chunk.choices
    except Exception as error:
        told["error"] = f"{type(error).__name__}: {error}"
    return told


async def main(streams: int, chunks: int, *words: str) -> list[dict[str, Any]]:
    more = {"stream_options": {"include_usage": True}} if "usage" in words else {}
    async with AsyncOpenAI(api_key="sk-test", max_retries=0) as client:
        told = await asyncio.gather(*(stream(client, chunks, more) for _ in range(streams)))
        return [*told, await stream(client, 1, more)] if "again" in words else told


if __name__ == "__main__":
    count, size, *rest = sys.argv[1:]
    print(json.dumps(asyncio.run(main(int(count), int(size), *rest))))
