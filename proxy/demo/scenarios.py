"""The rehearsals of `pullcord demo --scenario NAME`: who runs away how, and what mends it."""

from collections.abc import Mapping
from dataclasses import dataclass

GOOD, BAD = "2026-11-20.3", "2026-11-22.1"
TENANT = "acme"

_POLICY = """\
# The policy of a rehearsal. Its port is that of the payments of this showing.
version: 1
unlisted: refuse
tools:
  refunds.create:
    match: {{host: localhost, port: {port}, method: POST, path: /v1/refunds}}
    allow_addresses: [127.0.0.0/8, "::1"]
    value: {{from: request.amount, scale: 0.01, currency: usd}}
    undo: {{tool: refunds.cancel, path: "/v1/refunds/{{response.id}}/cancel"}}
  refunds.cancel:
    match: {{host: localhost, port: {port}, method: POST, path: "/v1/refunds/{{refund}}/cancel"}}
    allow_addresses: [127.0.0.0/8, "::1"]
  model:
    match: {{host: localhost, port: {port}, path: /v1/chat/completions}}
    model_api: openai
    allow_addresses: [127.0.0.0/8, "::1"]
releases: {{known_good: ["{good}"]}}
detectors: {{{detectors}}}
"""


@dataclass(frozen=True, slots=True)
class Scenario:
    """`does` is what the agents do (runaway.py), `halt` what a person halts at once, `mend` what is
    written into the policy so that it cannot come again."""

    name: str
    about: str
    does: str
    runs: tuple[str, ...]
    calls_max: int
    detectors: str
    halt: tuple[str, str]
    mend: str
    writes: bool = True

    def policy(self, port: int, *, mended: bool = False) -> str:
        text = _POLICY.format(port=port, good=GOOD, detectors=self.detectors)
        return f"{text}ceilings:\n  - {{{self.mend}}}\n" if mended else text


_ALL = (
    Scenario(
        "refund-loop",
        "An agent takes each refund for lost, and refunds the next charge.",
        "refund-loop",
        ("support-31",),
        40,
        "write_spike: {mode: enforce, limits: {run_writes: 12}}",
        ("run", "support-31"),
        "per: run, tool: refunds.create, count: writes, at_most: 4, within: 1m, then: halt",
    ),
    Scenario(
        "reflection-spiral",
        "An agent asks its model what it thinks of what the model thinks.",
        "reflection-spiral",
        ("support-32",),
        40,
        "spiral: enforce",
        ("run", "support-32"),
        "per: run, count: spend_usd, at_most: 0.30, then: halt",
        writes=False,
    ),
    Scenario(
        "fan-out",
        "An agent starts a run for each charge, and each of them refunds it.",
        "fan-out",
        ("support-33",),
        40,
        "fan_out: enforce",
        ("run", "support-33"),
        "per: tree, count: spawned, at_most: 5, then: halt",
    ),
    Scenario(
        "bad-release",
        "A new release refunds what nobody asked for, in run after run.",
        "refund-loop",
        ("shop-1", "shop-2", "shop-3", "shop-4"),
        40,
        "write_spike: {mode: enforce, limits: {run_writes: 8}}",
        ("release", BAD),
        "per: release, tool: refunds.create, count: writes, at_most: 6, within: 1m, then: halt",
    ),
)
SCENARIOS: Mapping[str, Scenario] = {one.name: one for one in _ALL}
