"""Whether the bodies of the trace are those that its messages name by their digests.

Bodies are no part of the chain, but each message's digest is: so a body that was changed is told
from what was kept, and one that is gone while its message stands is missed.
"""

from collections.abc import Iterator

from ledger.bodies import UNPACKED_BYTES_MAX, is_whole
from ledger.seal_checks import Problem
from ledger.sqlite import sqlite3

MESSAGES_AT_ONCE = 100  # in one read, so that whoever writes goes on
FOUND_MAX = 20  # that are told

# Each body with the first message that names it, however many do. Too long a one is not loaded.
_SELECT = """
SELECT m.seq, m.call_id, m.digest, b.id IS NOT NULL,
    CASE WHEN length(b.zstd) <= :most THEN b.zstd END
FROM message m LEFT JOIN body b ON b.digest = m.digest
WHERE m.seq > :after AND m.why IS NULL AND NOT EXISTS (
    SELECT 1 FROM message e
    WHERE e.digest = m.digest AND e.seq >= 1 AND e.seq < m.seq AND e.why IS NULL
)
ORDER BY m.seq LIMIT :limit
"""


def check_bodies(conn: sqlite3.Connection) -> tuple[int, list[Problem]]:
    """How many bodies are as they were kept, and which messages' are not, in their order."""
    good, found = 0, list[Problem]()
    for seq, call, digest, is_there, packed in _bodies(conn):
        if is_whole(packed, digest):
            good += 1
            continue
        if len(found) == FOUND_MAX:
            found.append(Problem("and the bodies of further messages of the trace"))
            break
        what = "is not what was kept" if is_there else "is gone"
        found.append(Problem(f"the body of message {seq} of the trace {what}", None, str(call)))
    return good, found


def _bodies(conn: sqlite3.Connection) -> Iterator[tuple[int, object, object, int, object]]:
    after, more = 0, True
    while more:
        more = False
        told = {"after": after, "limit": MESSAGES_AT_ONCE, "most": UNPACKED_BYTES_MAX}
        for row in conn.execute(_SELECT, told):
            after, more = row[0], True
            yield row
