"""What an engine tells the record of a call that broke off."""

from policies.verdict import Reason
from proxy.dial import AddressRefused, NotDialled
from proxy.live import Live

_UNTRUSTED = "Certificate verify failed"  # as the engines begin it
_WORDS_CHARACTERS = 200
CLIENT_LEFT = "client left"
OWN_FAILURE = "our own failure"


def fault_of(live: Live, cut_by: str, refused: NotDialled | None, error: str) -> Reason | None:
    """What went wrong, where that is known; else the gate tells by what had left."""
    if live.stopped is not None:
        return None
    if cut_by and cut_by != "timeout":
        return Reason.CUT
    if refused is not None:
        own = not isinstance(refused, AddressRefused)
        return Reason.OWN_LISTENER if own else Reason.ADDRESS_REFUSED
    if not live.sent and error.startswith(_UNTRUSTED):
        return Reason.UPSTREAM_UNTRUSTED
    return None


def words_of(live: Live, cut_by: str, message: str) -> str:
    """Words fit for the record: what follows a colon may quote the upstream, and so a secret."""
    if live.sent and not cut_by:
        message = message.partition(":")[0]
    return message[:_WORDS_CHARACTERS]


def left_after(body_bytes: int, told: str) -> str:
    """How far an upload was when its client left."""
    whole = f" of {int(told) / 1e6:.1f}" if told.isascii() and told.isdigit() else ""
    return f"the client left after {body_bytes / 1e6:.1f}{whole} MB"
