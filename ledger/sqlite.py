"""The SQLite library of this process: pysqlite3 where it has a wheel, else the standard one.

sqlite-utils chooses; all others take it from here, because two libraries on one file break each
other's locks (notes/store.md, section 1).
"""

from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # it is meant to be used

__all__ = ["sqlite3"]
