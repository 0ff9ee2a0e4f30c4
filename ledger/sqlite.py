"""The SQLite library of this process: pysqlite3 where it has a wheel, else the standard one.

sqlite-utils chooses; all others take it from here, because two libraries on one file break each
other's locks (notes/store.md, section 1).
"""

from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # it is meant to be used

__all__ = ["STATEMENTS_KEPT", "sqlite3"]

STATEMENTS_KEPT = 1024
"""Prepared statements of a connection. pysqlite3 drops, of more, those used least so far: where
what a start runs once has filled its 128, each call's statements push each other out and are
compiled again and again (a third of the time of an admission)."""
