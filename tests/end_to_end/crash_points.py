"""The crash matrix: each step at which a process is killed, and what its call is then.

Pure data, for the test and for the processes that it kills.
"""

from dataclasses import dataclass

ALONE, EVERYTHING = "the process", "everything"
VICTIMS = (ALONE, EVERYTHING)

NO_ROW = "no row"
"""Nothing of the call is recorded: it was never let through."""

ENGINE, DECIDER, SUPERVISOR = "engine", "decider", "supervisor"


@dataclass(frozen=True, slots=True)
class Point:
    """`alone` and `everything` are what the record says of the call at the point, once its process
    or all of them were killed; empty where the point is not in a call. `after` is the process whose
    death leads to the point."""

    name: str
    process: str
    alone: str = ""
    everything: str = ""
    after: str = ""


ASKED = Point("asked, before the admission", DECIDER, NO_ROW, NO_ROW)
IN_ADMISSION = Point("admission, before its commit", DECIDER, NO_ROW, NO_ROW)
# An engine that lives says of what it asked and never heard of that nothing was sent.
ADMITTED = Point("admission, after its commit", DECIDER, "not_sent", "unknown")
ALLOWED = Point("verdict heard, before dialling", ENGINE, "unknown", "unknown")
CONNECTED = Point("connected, before the first byte", ENGINE, "unknown", "unknown")
HEAD_SENT = Point("head sent", ENGINE, "unknown", "unknown")
SENT = Point("request sent", ENGINE, "unknown", "unknown")
ANSWERED = Point("answer read, before settling", ENGINE, "unknown", "unknown")
# An engine that lives offers its outcomes again.
IN_SETTLEMENT = Point("settlement, before its commit", DECIDER, "done", "unknown")
SETTLED = Point("settlement, after its commit", DECIDER, "done", "done")
RECORDED = Point("outcome recorded, before the answer", ENGINE, "done", "done")
IN_RECOVERY = Point("recovery, before its commit", DECIDER, after=DECIDER)
IN_LOSS = Point("loss of an engine, before its commit", DECIDER, after=ENGINE)
IN_CHECKPOINT = Point("checkpoint", DECIDER)
SUPERVISING = Point("an engine's end noticed", SUPERVISOR, after=ENGINE)

POINTS = (
    *(ASKED, IN_ADMISSION, ADMITTED, ALLOWED, CONNECTED, HEAD_SENT, SENT, ANSWERED),
    *(IN_SETTLEMENT, SETTLED, RECORDED, IN_RECOVERY, IN_LOSS, IN_CHECKPOINT, SUPERVISING),
)
