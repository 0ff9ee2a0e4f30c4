"""Usage: how many tokens of which kind a model call took, in one shape for all providers.

What each provider calls them stands here; where in an answer they stand is `meter`'s.
Sources: the API references of OpenAI (chat completions, responses, embeddings, audio, images),
Anthropic (messages), Google (GenerateContentResponse.UsageMetadata), Amazon Bedrock (TokenUsage).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

TOKENS_MAX = 1_000_000_000  # of one call; more is a lie, and is counted as this much


@dataclass(frozen=True, slots=True)
class Usage:
    """`input_tokens` are all: with those read from a cache, those written to one, and those of
    tools; `output_tokens` are all: with reasoning. Every other number is a part of one of the
    two. Providers count differently; these are made alike.
    """

    model: str
    input_tokens: int
    cached_input_tokens: int
    cache_creation_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cache_creation_1h_tokens: int = 0  # of cache_creation_tokens: kept for an hour, and dearer
    input_audio_tokens: int = 0
    input_image_tokens: int = 0
    output_audio_tokens: int = 0
    output_image_tokens: int = 0
    web_searches: int = 0
    tier: str = ""  # "priority", "fast", "flex": as the answer says; prices may differ


def count(value: object) -> int | None:
    """A number of tokens as told; None for what is none. Never more than TOKENS_MAX."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return None
    return min(value, TOKENS_MAX)


def read_usage(told: Mapping[str, object], model: str) -> Usage | None:
    """None if `told` is in no known shape, or says nothing believable.

    Both Anthropic and OpenAI say `input_tokens`, the one without what came from a cache, the other
    with it: OpenAI's has a total or details.
    """
    if "promptTokenCount" in told or "totalTokenCount" in told:
        return _google(told, model)
    if "inputTokens" in told or "inputTokenCount" in told:
        return _converse(told, model)
    if "prompt_tokens" in told:
        return _openai(told, model, "prompt", "completion")
    if told.keys() & {"total_tokens", "input_tokens_details", "input_token_details"}:
        return _openai(told, model, "input", "output")
    return _anthropic(told, model)


def _some(told: Mapping[str, object], *names: str) -> int:
    """The first of these that is a number; 0 if none is."""
    return next((number for name in names if (number := count(told.get(name))) is not None), 0)


def _inside(told: Mapping[str, object], *names: str) -> Mapping[str, object]:
    """The first of these that is an object; an empty one if none is."""
    found = (value for name in names if isinstance(value := told.get(name), dict))
    return next(found, {})


def _openai(told: Mapping[str, object], model: str, before: str, after: str) -> Usage | None:
    """Chat completions, embeddings and legacy completions say prompt and completion; responses,
    images and audio say input and output. Azure, and who imitates OpenAI, say the same."""
    taken = count(told.get(f"{before}_tokens"))
    if taken is None:
        return None
    ins = _inside(told, f"{before}_tokens_details", f"{before}_token_details")
    outs = _inside(told, f"{after}_tokens_details", f"{after}_token_details")
    # Some who imitate OpenAI leave reasoning out of the completion, but not out of the total.
    given = max(_some(told, f"{after}_tokens"), _some(told, "total_tokens") - taken)
    return _fitting(
        Usage(
            model=model,
            input_tokens=taken,
            cached_input_tokens=_some({**told, **ins}, "cached_tokens", "prompt_cache_hit_tokens"),
            cache_creation_tokens=_some(ins, "cache_write_tokens"),
            output_tokens=given,
            reasoning_tokens=_some(outs, "reasoning_tokens"),
            input_audio_tokens=_some(ins, "audio_tokens"),
            input_image_tokens=_some(ins, "image_tokens"),
            output_audio_tokens=_some(outs, "audio_tokens"),
            output_image_tokens=_some(outs, "image_tokens"),
            tier=_tier(told),
        )
    )


def _anthropic(told: Mapping[str, object], model: str) -> Usage | None:
    uncached = count(told.get("input_tokens"))
    if uncached is None:
        return None
    cached = _some(told, "cache_read_input_tokens")
    created = _some(told, "cache_creation_input_tokens")
    return _fitting(
        Usage(
            model=model,
            input_tokens=uncached + cached + created,
            cached_input_tokens=cached,
            cache_creation_tokens=created,
            cache_creation_1h_tokens=_some(
                _inside(told, "cache_creation"), "ephemeral_1h_input_tokens"
            ),
            output_tokens=_some(told, "output_tokens"),
            reasoning_tokens=_some(_inside(told, "output_tokens_details"), "thinking_tokens"),
            web_searches=_some(_inside(told, "server_tool_use"), "web_search_requests"),
            tier=_tier(told),
        )
    )


def _google(told: Mapping[str, object], model: str) -> Usage | None:
    asked = count(told.get("promptTokenCount", 0))
    total = count(told.get("totalTokenCount", 0))
    if asked is None or total is None:
        return None
    taken = asked + _some(told, "toolUsePromptTokenCount")
    thoughts = _some(told, "thoughtsTokenCount")
    return _fitting(
        Usage(
            model=model,
            input_tokens=taken,
            cached_input_tokens=_some(told, "cachedContentTokenCount"),
            cache_creation_tokens=0,
            output_tokens=max(_some(told, "candidatesTokenCount") + thoughts, total - taken),
            reasoning_tokens=thoughts,
            input_audio_tokens=_listed(told, "promptTokensDetails", "modality", "AUDIO"),
            input_image_tokens=_listed(told, "promptTokensDetails", "modality", "IMAGE"),
            output_audio_tokens=_listed(told, "candidatesTokensDetails", "modality", "AUDIO"),
            output_image_tokens=_listed(told, "candidatesTokensDetails", "modality", "IMAGE"),
        )
    )


def _converse(told: Mapping[str, object], model: str) -> Usage | None:
    """Converse, Amazon's own models, and the metrics that end a stream of any model."""
    uncached = count(told.get("inputTokens", told.get("inputTokenCount")))
    if uncached is None:
        return None
    cached = _some(told, "cacheReadInputTokens", "cacheReadInputTokenCount")
    created = _some(told, "cacheWriteInputTokens", "cacheWriteInputTokenCount")
    return _fitting(
        Usage(
            model=model,
            input_tokens=uncached + cached + created,
            cached_input_tokens=cached,
            cache_creation_tokens=created,
            cache_creation_1h_tokens=_listed(told, "cacheDetails", "ttl", "1h"),
            output_tokens=_some(told, "outputTokens", "outputTokenCount"),
            reasoning_tokens=0,
        )
    )


def _listed(told: Mapping[str, object], name: str, by: str, wanted: str) -> int:
    """The number in the entry of a list whose member `by` is `wanted`."""
    entries = told.get(name)
    found = (
        _some(entry, "tokenCount", "inputTokens")
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and entry.get(by) == wanted
    )
    return next(found, 0)


def _tier(told: Mapping[str, object]) -> str:
    for name in ("speed", "service_tier"):
        tier = told.get(name)
        if isinstance(tier, str) and tier not in {"standard", "default", "auto"}:
            return tier[:32]
    return ""


def _fitting(usage: Usage) -> Usage:
    """The same with no part larger than its whole, and nothing larger than TOKENS_MAX."""
    taken, given = min(usage.input_tokens, TOKENS_MAX), min(usage.output_tokens, TOKENS_MAX)
    cached = min(usage.cached_input_tokens, taken)
    created = min(usage.cache_creation_tokens, taken - cached)
    return replace(
        usage,
        input_tokens=taken,
        cached_input_tokens=cached,
        cache_creation_tokens=created,
        output_tokens=given,
        reasoning_tokens=min(usage.reasoning_tokens, given),
        cache_creation_1h_tokens=min(usage.cache_creation_1h_tokens, created),
        input_audio_tokens=min(usage.input_audio_tokens, taken),
        input_image_tokens=min(usage.input_image_tokens, taken),
        output_audio_tokens=min(usage.output_audio_tokens, given),
        output_image_tokens=min(usage.output_image_tokens, given),
    )
