"""`pullcord`, with one thing changed: what it does by the clock, it does more rarely.

Under valgrind everything takes fifty times as long, and on a busy machine longer still. What comes
once a second would count for some calls, not for some thousand; and what waits some milliseconds
for the next call to share a commit with would wait in vain. What is caught for the trace is not
sent to the tracer at all, which is some three thousandths of a call.
"""

from unittest.mock import patch

from ledger import incidents
from proxy import decider, deciding, notifying, sealing, sharing, tracing
from proxy.cli.main import main
from proxy.engines import waits

FAR_SECONDS, FAR_BATCHES = 1_000.0, 1_000_000  # beyond the end of the count


def stretched() -> None:
    with (
        patch.object(decider, "PROBE_SECONDS", FAR_SECONDS),
        patch.object(sharing, "LATE_SECONDS", FAR_SECONDS),
        patch.object(decider, "REAP_BATCHES", FAR_BATCHES),
        patch.object(sealing, "LOOK_SECONDS", FAR_SECONDS),
        patch.object(notifying, "LOOK_SECONDS", FAR_SECONDS),
        patch.object(incidents, "REFRESH_SECONDS", FAR_SECONDS),  # replays make one
        patch.object(deciding, "WATCH_SECONDS", FAR_SECONDS),
        patch.object(tracing, "GATHER_SECONDS", FAR_SECONDS),
        patch.object(waits, "SWEEP_SECONDS", FAR_SECONDS),  # before an engine takes it from there
    ):
        main()


if __name__ == "__main__":
    stretched()
