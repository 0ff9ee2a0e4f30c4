"""What an engine's gate knows of `pullcord drill`: which canary may fly, and who sends one.

The canary's tool is in every policy (policies/policy.py). Its host is always this machine's
loopback; so that no agent can reach what listens there, only the drill's own tenant may use the
tool, and only the port that the running drill registered.
"""

from dataclasses import replace

from ledger.records import Claimant
from policies.call import Request, ToolCall
from policies.match import identify
from policies.policy import CANARY, RESERVED, Policy
from policies.verdict import Reason
from proxy import identity
from proxy.identity import Credentials, Mode


def identified(policy: Policy, request: Request, canary_port: int) -> ToolCall:
    """The tool that a request means; a canary to any other port than this is unlisted."""
    call = identify(policy, request)
    if call.tool == CANARY and request.port != canary_port:
        return replace(call, fault=Reason.DESTINATION_UNLISTED)
    return call


def claimant(credentials: Credentials | None, mode: Mode) -> Claimant:
    """What the store resolves. In `open` mode, too, the drill's names need the drill's token."""
    if credentials is not None:
        names = (credentials.run, credentials.secret)
        mode = "token" if any(name.startswith(RESERVED) for name in names) else mode
    return identity.claimant(credentials, mode)
