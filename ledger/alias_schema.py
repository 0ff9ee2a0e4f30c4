"""The sent keys that were answered through another key's claim, as step 0010 makes their table.
Never edited: a later step brings its own.
"""

from sqlite_utils.db import Database

_TABLES = (  # a step that was done and not noted is done again
    # `key` as in `claim`; `until_us`: so long it protects by itself, once its claim is done.
    """
    CREATE TABLE IF NOT EXISTS claim_alias (
        key BLOB PRIMARY KEY,
        claim INTEGER NOT NULL,
        until_us INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    # A claim goes with its aliases, and stays as long as the last of them protects.
    "CREATE INDEX IF NOT EXISTS claim_alias_claim ON claim_alias (claim, until_us)",
)


def make(db: Database) -> None:
    for statement in _TABLES:
        db.execute(statement)
