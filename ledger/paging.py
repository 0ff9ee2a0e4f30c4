"""All calls that a filter lets through, oldest first, page by page.

Each page is a read of its own: however long the reader of the pages takes, the log of the ledger
can be taken over meanwhile, and memory holds one page.
"""

from collections.abc import Iterator

from ledger.filters import ALL, Filter
from ledger.queries import CALL_COLUMNS, Row, rows, within
from ledger.sqlite import sqlite3

PAGE_ROWS = 1_000  # some 500 KB; a page more costs one look into an index


def every_call(
    reader: sqlite3.Connection, chosen: Filter = ALL, page_rows: int = PAGE_ROWS
) -> Iterator[Row]:
    """With CALL_COLUMNS. Ends with the newest call that is there when it begins."""
    (newest,) = rows(reader, "SELECT coalesce(max(seq), 0) AS seq FROM event", ())
    where, values = within(reader, chosen)
    statement = (
        f"SELECT {', '.join(CALL_COLUMNS)}, seq FROM calls "  # noqa: S608 - values are bound
        f"WHERE {where} AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
    )
    seq, last = 0, newest["seq"]
    while True:
        page = list(rows(reader, statement, [*values, seq, last, page_rows]))
        for row in page:
            seq = row.pop("seq")
            yield row
        if len(page) < page_rows:
            return
