"""What one running model call may still take: its reservation, and what was granted since.

What a stream came to so far is compared after every chunk, so it is priced only when it may have
come to the end of what was granted. More is asked for then and not before: to ask at half of it
could pull a ceiling's cord over a call that fits.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from policies.costs import Asked
from policies.meter.usage import Usage
from policies.verdict import Reason
from proxy import logs
from proxy.clock import Clock
from proxy.judging import Judging, why

if TYPE_CHECKING:
    from proxy.live import Live

STEP_TOKENS = 256  # asked for at least, so that a stream of short chunks does not ask at each
_MILLION = 1_000_000
STEP_PART = 8  # else an eighth of what it came to: few draws, and little is kept from others


class Spending:
    """Of one model call, from the head of its answer on. Money is micro-dollars.

    `tokens` and `microusd` are granted to the model's part of the call: what was reserved first.
    """

    __slots__ = ("_asked", "_day", "_priced", "_step_microusd", "_sure_tokens", "_used",
                 "microusd", "tokens")  # fmt: skip

    def __init__(self, asked: Asked, day: str) -> None:
        estimate = asked.estimate()
        self.tokens = estimate.tokens
        self.microusd = estimate.microusd
        self._asked = asked
        self._day = day
        self._priced: Usage | None = None  # as of the last price, without its output
        self._step_microusd = 0  # what STEP_TOKENS more would cost
        self._sure_tokens = 0  # up to here the price cannot be beyond what is granted
        self._used = (0, 0)

    def is_beyond(self, usage: Usage) -> bool:
        """Whether a stream that came to this has taken more than it was granted."""
        tokens = usage.input_tokens + usage.output_tokens
        shape = replace(usage, output_tokens=0)
        if shape != self._priced or tokens > self._sure_tokens:
            self._price(usage, shape, tokens)
        self._used = (tokens, self._used[1])
        return self.is_over

    @property
    def is_over(self) -> bool:
        tokens, microusd = self._used
        return tokens > self.tokens or microusd > self.microusd

    def wanted(self) -> tuple[int, int]:
        """Tokens and micro-dollars to ask for: what it is beyond the grant, and one step. Of what
        still suffices nothing is asked for, since there may be nothing left of it."""
        tokens, microusd = self._used
        return (
            _more(tokens, self.tokens, STEP_TOKENS),
            _more(microusd, self.microusd, self._step_microusd),
        )

    def grant(self, tokens: int, microusd: int) -> None:
        self.tokens += tokens
        self.microusd += microusd
        self._sure_tokens = 0  # the price is looked at again

    def _price(self, usage: Usage, shape: Usage, tokens: int) -> None:
        """What it costs now, and up to how many tokens more it stays within the grant: beside its
        output nothing of the usage moves, so the price goes up evenly."""
        ahead = replace(usage, output_tokens=usage.output_tokens + _MILLION)
        microusd = self._asked.cost(usage, self._day).microusd
        rate = max(1, self._asked.cost(ahead, self._day).microusd - microusd)
        left = max(0, self.microusd - microusd)
        self._priced, self._used = shape, (tokens, microusd)
        self._step_microusd = rate * STEP_TOKENS // _MILLION + 1
        self._sure_tokens = tokens + left * _MILLION // rate


async def drawn(live: "Live", decider: Judging, clock: Clock) -> str:
    """Ask for more until it suffices. Empty if it does; else the rule that denies it: whoever
    cannot be asked denies it, too."""
    spending = live.spending
    while spending is not None and spending.is_over:
        tokens, microusd = spending.wanted()
        try:
            more = await decider.draw(live.call_id, tokens, microusd, clock.now_us())
        except Exception as failure:
            live.stopped = why(failure, live.call_id)
            return live.stopped
        if more.verdict is not None or not (more.tokens or more.microusd):
            verdict = more.verdict
            live.stopped = verdict.reason if verdict else Reason.OVER_CEILING
            rule = verdict.rule if verdict else live.stopped
            logs.exhausted(live, rule, spending.tokens, spending.microusd)
            return rule
        spending.grant(more.tokens, more.microusd)
    return ""


def _more(used: int, granted: int, step: int) -> int:
    return used - granted + max(step, used // STEP_PART) if used > granted else 0
