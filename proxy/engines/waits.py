"""How long an engine waits, and how much it lets wait, whichever library it speaks HTTP with."""

from dataclasses import dataclass

# Clients

ACCEPTS_AT_ONCE = 100  # then other work has its turn
ACCEPT_PAUSE_SECONDS = 1.0  # after the kernel had no room for one more connection
FIRST_CALL_SECONDS = 30.0  # from connecting until somebody we know has asked for something
LINGER_SECONDS = 10.0  # a client that was refused mid-upload may go on sending, to read the answer
UPLOAD_LINGER_SECONDS = 60.0  # a known client that was refused may go on sending for so long
PIPELINED_BYTES_MAX = 1024 * 1024  # what a client may send before the last answer; more hangs up
DRAIN_BYTES_MAX = 64 * 1024 * 1024  # a refused upload is read this far so that the 413 arrives

# Calls

SWEEP_SECONDS = 1.0  # how often deadlines are looked at; a deadline is late by this at most
CUT_SECONDS = 2.0  # what a cut may take before we go on without it
ANSWER_HELD_BYTES_MAX = 1024 * 1024  # a write's answer up to this is held until it is durable

# WebSockets

MESSAGE_BYTES_MAX = 16 * 1024 * 1024  # one WebSocket message, all its fragments
FRAGMENTS_MAX = 1000  # of one message; each costs more than its bytes


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. A model may think for minutes before its first byte."""

    first_byte_seconds: float = 300.0
    idle_seconds: float = 300.0
    client_idle_seconds: float = 900.0
