"""What a call may cost before it is made, and what it came to. Pure; money is micro-dollars.

Before, as much as it can take is reserved; after, what its answer tells. Where an answer tells
nothing, the reservation stays: nothing is free because it is unknown.
"""

from dataclasses import dataclass, replace

from policies import amounts, arguments
from policies.call import Effect, Request, ToolCall, Worth
from policies.canonical import NotPlainJsonError, read_json
from policies.content import UTF_8, read_content
from policies.head import Unclear
from policies.meter.usage import TOKENS_MAX, Usage
from policies.model_request import ModelRequest, read_model_request
from policies.paths import normal
from policies.policy import Policy, Tool
from policies.prices import input_tokens
from policies.pricing import STORED_TOKENS, Priced, Pricing, ToolCost
from policies.protocols import model_api
from policies.verdict import Reason

_UNREADABLE = "what it costs cannot be read: it must hold {} once, as a plain number"
_OF_CONTENT = ("content-type", "content-encoding", "transfer-encoding")


@dataclass(frozen=True, slots=True)
class Asked:
    """A model call, as far as its price depends on it. `provider` is who bills for it; `request` is
    None where nobody can say what it asks for; `output_tokens` are reserved for all its answers.
    `is_told` says that its answer tells what it came to, if it tells anything: not so of a batch,
    whose work is done later, nor of what no API is known to answer."""

    pricing: Pricing
    provider: str
    request: ModelRequest | None
    input_tokens: int
    output_tokens: int
    is_told: bool = True

    @property
    def model(self) -> str:
        """As it was asked for; empty if nobody can say."""
        return self.request.model if self.request else ""

    def estimate(self) -> Priced:
        """What it may take, before it is made. At least one token and a micro-dollar, so that
        ceilings are drawn on also where the list has no price for what it will be answered."""
        if not (self.input_tokens or self.output_tokens):
            return Priced(0, 0, True)
        found = self.pricing.estimate(
            self.provider, self.model, self.input_tokens, self.output_tokens
        )
        return replace(found, tokens=max(1, found.tokens), microusd=max(1, found.microusd))

    def cost(self, usage: Usage, day: str = "") -> Priced:
        """What usage costs, of a whole answer or of one so far; `day` is when it was asked for
        (2026-11-22). The model's name is the one that was told, or as it was asked for."""
        names = tuple(name for name in (usage.model, self.model) if name)
        return self.pricing.cost(self.provider, names, usage, day)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a call, as far as it tells what the call cost.

    `status` is None if none came. `is_whole` is False if it broke off. `usage` is what a meter
    read, and `is_final` is False where that may not be all of it: then no less is charged than was
    `granted` (tokens and micro-dollars; None for what was reserved first).

    `body` is the answer's, its content codings undone, if `reads_answer` says so; None if it was
    not kept. Of one longer than `canonical.SORTED_BYTES_MAX` (1 MiB) nothing is read.
    """

    status: int | None
    is_whole: bool
    usage: Usage | None = None
    body: bytes | None = None
    is_final: bool = True
    granted: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """What a call came to; None keeps what was reserved. `is_known` is False where it was charged
    the rate of unknown models."""

    tokens: int | None = None
    microusd: int | None = None
    is_known: bool = True


def is_model_call(tool: Tool, request: Request, call: ToolCall) -> bool:
    """Whether a model's tokens may be used: also where the policy has another word for its effect,
    and of all that a model API is asked for, unless it is known to be free."""
    if call.effect is Effect.MODEL:
        return True
    if tool.model_api is None:
        return False
    path = normal(request.path)
    return path is None or not model_api.is_free(request.method, path, has_body=bool(request.body))


def asked(policy: Policy, tool: Tool, request: Request) -> Asked:
    """Reads the body of a model call: once for each call, not once for each part of its answer."""
    pricing = policy.prices
    path = normal(request.path) or request.path
    # A gateway that the list does not know bills what the maker of the API would.
    url = f"{request.scheme}://{request.host}{request.path}"
    provider = pricing.provider_at(url) or tool.model_api or ""
    if tool.model_api and model_api.is_free("POST", path):
        return Asked(pricing, provider, None, 0, 0)
    read, is_later = read_model_request(path, request.body), model_api.tells_later(path)
    if is_later and read is not None:
        read = replace(read, model="")  # what is in a batch may name others
    taken = input_tokens(len(request.body))
    if is_later or (read is not None and read.stored):
        taken = min(taken + STORED_TOKENS, TOKENS_MAX)
    is_told = not is_later and (
        tool.model_api is None
        or tool.effect is Effect.MODEL
        or model_api.infers(tool.model_api, request.method, path)
    )
    given = min(_output_tokens(pricing, read), TOKENS_MAX)
    return Asked(pricing, provider, read, taken, given, is_told)


def _output_tokens(pricing: Pricing, read: ModelRequest | None) -> int:
    if read is None:
        return pricing.default_max_tokens
    if read.max_tokens is None:
        return max(pricing.default_max_tokens * read.answers, read.other_tokens)
    return max(read.max_tokens, read.other_tokens)


def worth(policy: Policy, tool: Tool, request: Request, call: ToolCall) -> Worth | Unclear:
    """What the call may take at most, as far as it can be known before. Unclear: it must be refused
    since what it costs cannot be read. Raises nothing, whatever an agent sends."""
    tokens, spend, model, is_known = 0, 0, "", True
    if is_model_call(tool, request, call):
        if why := _hidden(request):
            return Unclear(why)
        one = asked(policy, tool, request)
        if one.request is not None and one.request.unclear:
            return Unclear(one.request.unclear, Reason.ARGUMENT_REFUSED)
        estimate = one.estimate()
        tokens, spend = estimate.tokens, estimate.microusd
        model, is_known = one.model, estimate.is_known
    if tool.cost is not None and not call.own:
        reserved = _reserved(tool.cost, call)
        if reserved is None:
            return Unclear(_UNREADABLE.format(tool.cost.path), Reason.ARGUMENT_REFUSED)
        spend += reserved
    return Worth(tokens, spend, request.body_bytes, model, is_known)


def reads_answer(tool: Tool) -> bool:
    """Whether `settled` wants the body of the tool's answers."""
    return tool.cost is not None and tool.cost.source == "response"


def settled(
    policy: Policy,
    tool: Tool,
    request: Request,
    call: ToolCall,
    answer: Answer,
    day: str = "",
    one: Asked | None = None,
) -> Settled:
    """What a call came to that was sent. `day` is when (2026-11-22); `one` is what was `asked`, if
    it was read already. Raises nothing."""
    used = Settled()
    if is_model := is_model_call(tool, request, call):
        one = one or asked(policy, tool, request)
        used = _model_used(one, answer, day)
    if tool.cost is None or call.own:
        return used
    reserved = _reserved(tool.cost, call)
    charged = _tool_charged(tool.cost, reserved or 0, answer)
    if used.microusd is None and charged is None:
        return used
    spend = (reserved or 0) if charged is None else charged
    if used.microusd is not None:
        spend += used.microusd
    elif is_model and one is not None:
        spend += _granted(one, answer)[1]
    return Settled(used.tokens, spend, used.is_known)


def _model_used(one: Asked, answer: Answer, day: str) -> Settled:
    if answer.usage is None:
        if answer.is_whole and answer.status is not None and answer.status >= 400:
            return Settled(0, 0)  # a provider that refuses bills nothing
        return Settled()
    priced = one.cost(answer.usage, day)
    if answer.is_final and one.is_told:
        return Settled(priced.tokens, priced.microusd, priced.is_known)
    tokens, microusd = _granted(one, answer)
    return Settled(max(tokens, priced.tokens), max(microusd, priced.microusd), priced.is_known)


def _granted(one: Asked, answer: Answer) -> tuple[int, int]:
    if answer.granted is not None:
        return answer.granted
    estimate = one.estimate()
    return estimate.tokens, estimate.microusd


def _hidden(request: Request) -> str:
    """Why nobody can say what the body of a model call asks for; empty if it is plain text."""
    if not request.body:
        return ""
    fields = [(name.replace("_", "-"), value) for name, value in request.headers]
    values = (", ".join(v for name, v in fields if name == wanted) for wanted in _OF_CONTENT)
    return read_content(*values).hidden(UTF_8)


def _reserved(cost: ToolCost, call: ToolCall) -> int | None:
    """None if it cannot be read. A read that names no amount asks for nothing that has a price."""
    if cost.source is None:
        return cost.microusd * call.operations
    if cost.source == "response":
        return cost.reserve_microusd
    found = dict(call.arguments).get(cost.path)
    if call.effect is Effect.READ and found == ():
        return 0
    amount = amounts.total(found or ())
    return cost.max_microusd if amount is None else cost.of(amount)


def _tool_charged(cost: ToolCost, reserved: int, answer: Answer) -> int | None:
    """None: nobody knows, so as reserved. A server that failed may have done it all the same."""
    if answer.status is None or answer.status >= 500:
        return None
    if answer.status >= 400:
        return 0
    if cost.source != "response":
        return reserved
    if not answer.is_whole or answer.body is None:
        return None
    try:
        message = read_json(answer.body)
    except NotPlainJsonError:
        return None
    found = dict(arguments.of_messages((cost.path,), (message,)).values).get(cost.path)
    amount = amounts.total(found or ())
    return None if amount is None else cost.of(amount)
