"""What a person last said to a model, as its request tells: a digest, empty where nobody did.

The words of the user's newest message count, in the shapes of OpenAI (chat and responses),
Anthropic, Google and Bedrock. Words of the assistant do not, nor does a message that brings results
of tools: what stands beside those was added by a program. A message that an agent makes up cannot
be told from a person's; progress.py rations them.
"""

import hashlib

import orjson

from policies.detectors import volatile

# So that no conversation keeps other calls waiting: reading one costs by its texts and values, and
# by its length where they are long. A longer one tells nobody's words.
READ_BYTES_MAX = 8 * 1024 * 1024
TEXTS_MAX = 40_000
VALUES_MAX = 200_000  # commas and brackets in texts count, too
MESSAGES_MAX = 500  # so many of the newest are looked at
BLOCKS_MAX = 100  # of one message

_CONVERSATIONS = ("messages", "input", "contents")
_TEXT_TYPES = (None, "text", "input_text")
_RESULT_TYPES = ("tool_result", "function_call_output", "tool-result")
_RESULT_MEMBERS = ("toolResult", "functionResponse", "function_response")
_ADDED = "<system-reminder>"  # programs put their own words so beside a person's


def human(body: bytes, at_us: int) -> bytes:
    """`at_us` is when the model was asked: a clock that an agent writes into each message is no
    news. Raises nothing, whatever an agent sends."""
    if _is_long(body):
        return b""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        return b""
    words = _newest(request)
    if not words:
        return b""
    text = words.encode("utf-8", "surrogatepass")
    return hashlib.sha256(volatile.of_arguments(text, at_us)).digest()


def _is_long(body: bytes) -> bool:
    if len(body) > READ_BYTES_MAX or body.count(b'"') > 2 * TEXTS_MAX:
        return True
    return body.count(b",") + body.count(b"[") + body.count(b"{") > VALUES_MAX


def _newest(request: object) -> str:
    if not isinstance(request, dict):
        return ""
    name = next((name for name in _CONVERSATIONS if request.get(name)), "")
    said = request.get(name)
    if isinstance(said, str) and name == "input":  # all of it is one text
        return said
    if not isinstance(said, list):
        return ""
    for message in reversed(said[-MESSAGES_MAX:]):
        words = _words(message)
        if words:
            return words
    return ""


def _words(message: object) -> str:
    """What the user says in a message; empty for anybody else's."""
    if not isinstance(message, dict):
        return ""
    is_of_google = "parts" in message
    if message.get("role", "user" if is_of_google else None) != "user":
        return ""
    content = message.get("parts" if is_of_google else "content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    blocks = [block for block in content[:BLOCKS_MAX] if isinstance(block, dict)]
    if any(_is_result(block) for block in blocks):
        return ""
    return "\n".join(text for block in blocks if (text := _text(block)))


def _is_result(block: dict[str, object]) -> bool:
    return block.get("type") in _RESULT_TYPES or any(name in block for name in _RESULT_MEMBERS)


def _text(block: dict[str, object]) -> str:
    text = block.get("text")
    if not isinstance(text, str) or block.get("type") not in _TEXT_TYPES or block.get("thought"):
        return ""
    return "" if text.lstrip().startswith(_ADDED) else text
