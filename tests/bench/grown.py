"""A ledger that has grown: as many rows as wanted, made in minutes instead of months.

The schema is the real one, and so are the columns, the chain of hashes and the order of rows; what
a proxy would have judged is thrown by dice with a fixed seed, so that every making is the same. One
row in some places is rare on purpose: what is rare is what a search must not look for everywhere.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ledger.chain import GENESIS, link
from ledger.sqlite import sqlite3
from ledger.store import Store
from policies.policy import Policy

START_US = 1_792_000_000_000_000
GAP_US = 500_000  # between two calls, on average: two calls a second
CALLS_OF_A_RUN = 50
LIVE_RUNS = 200
RELEASE_US = 3 * 86_400 * 1_000_000
CHUNK = 64  # calls in flight at once; their outcomes follow
KEEP_US = 90 * 86_400 * 1_000_000  # every claim protects still: the most that there can be

TENANTS = tuple(f"tenant{number}" for number in range(20))
AGENTS = tuple(f"agent{number}" for number in range(8))
RARE_TENANT, RARE_TOOL, RARE_RELEASE = "tenant.rare", "tool.rare", "release.rare"
RARE_CALLS = range(300, 340)  # the first calls: far from where a search begins

_DECISION = (
    *("type", "at_us", "call_id", "run", "tenant", "parent", "root", "agent", "release"),
    *("tool", "operation", "method", "host", "path", "effect", "decision", "reason", "rule"),
    *("state", "status", "key", "request_digest", "seen", "policy"),
)
_OUTCOME = (
    *("type", "at_us", "call_id", "reason", "state", "status", "latency_us", "response_digest"),
    *("response_bytes", "input_tokens", "output_tokens", "cost_microusd"),
)
_FAST = (
    *("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-262144"),
    *("foreign_keys=OFF", "temp_store=MEMORY"),
)


def made(data: Path, rows: int, policy: Policy) -> Path:
    """The folder of a ledger of so many rows; made when it is not there yet, whole or not at all.

    It belongs to whoever measures: what the measuring adds stays in it.
    """
    if not (data / "ledger.db").exists():
        unfinished = data.with_name(f"{data.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        Store.open(unfinished, b"k" * 32, lambda: START_US).close()
        with closing(sqlite3.connect(unfinished / "ledger.db", isolation_level=None)) as conn:
            for pragma in _FAST:
                conn.execute(f"PRAGMA {pragma}").fetchall()
            Growth(conn, policy).grow(rows)
        unfinished.rename(data)
    return data


@dataclass(slots=True)
class _Run:
    name: str
    tenant: str
    parent: str | None
    root: str
    agent: str
    left: int


@dataclass(slots=True)
class _Call:
    """One that was let through; `claim` is the key of its claim, where it has one."""

    call_id: str
    at_us: int
    effect: str
    claim: bytes | None


class Growth:
    """The dice, the rows that they make, and where the record ends with these."""

    def __init__(self, conn: sqlite3.Connection, policy: Policy) -> None:
        self._conn = conn
        self._dice = Random(5)
        self._policy = policy
        self._at_us = START_US
        self._seq, self._hash = 0, GENESIS
        self._calls = 0
        self._runs = 0
        self._live: list[_Run] = []
        self._inserts: dict[tuple[str, ...], str] = {
            columns: f"INSERT INTO event ({', '.join(columns)}, seq, hash) "
            f"VALUES ({', '.join('?' * (len(columns) + 2))})"
            for columns in (_DECISION, _OUTCOME)
        }

    def grow(self, rows: int) -> None:
        conn = self._conn
        conn.execute("BEGIN")
        newest = conn.execute("SELECT seq, hash FROM event ORDER BY seq DESC LIMIT 1").fetchone()
        self._seq, self._hash = newest or (0, GENESIS)
        conn.execute(
            "INSERT OR IGNORE INTO policy (digest, source, at_us, text) VALUES (?, ?, ?, ?)",
            (self._policy.digest, "policy.yaml", START_US, self._policy.text),
        )
        self._live = [self._started() for _ in range(LIVE_RUNS)]
        last = self._seq + rows
        while self._seq < last:
            opened = self._decided(min(CHUNK, last - self._seq))
            self._ended(opened[: last - self._seq], opened[last - self._seq :])
        conn.execute("COMMIT")

    # Who calls

    def _started(self) -> _Run:
        self._runs += 1
        name = f"run-{self._runs:06}"
        tenant = TENANTS[min(int(self._dice.expovariate(0.2)), len(TENANTS) - 1)]
        above = self._dice.choice(self._live) if self._live and self._runs % 10 == 0 else None
        run = _Run(
            name,
            tenant if above is None else above.tenant,
            above.name if above else None,
            above.root if above else name,
            self._dice.choice(AGENTS),
            round(self._dice.expovariate(1 / CALLS_OF_A_RUN)) + 1,
        )
        self._conn.execute(
            "INSERT OR REPLACE INTO run (name, tenant, ancestors, agent, release, created_us) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (name, run.tenant, f'["{run.parent}"]' if run.parent else "[]", run.agent, "", 0),
        )
        self._conn.execute(
            "INSERT INTO token (hash, id, run, actor, created_us, expires_us) "
            "VALUES (?, ?, ?, 'bench', ?, ?)",
            (hashlib.sha256(name.encode()).digest(), name, name, self._at_us, self._at_us),
        )
        self._conn.execute(
            "INSERT INTO window (window, subject, packed) VALUES ('grown', ?, ?)", (name, bytes(16))
        )
        return run

    def _caller(self) -> _Run:
        place = self._dice.randrange(LIVE_RUNS)
        run = self._live[place]
        run.left -= 1
        if not run.left:
            self._live[place] = self._started()
        return run

    # What happens

    def _decided(self, count: int) -> list[_Call]:
        """So many calls are judged; those that were let through."""
        opened: list[_Call] = []
        self._write(_DECISION, [self._decision(opened) for _ in range(count)])
        return opened

    def _decision(self, opened: list[_Call]) -> tuple[Any, ...]:
        dice = self._dice
        self._calls += 1
        self._at_us += round(dice.expovariate(1 / GAP_US))
        run, rare = self._caller(), self._calls in RARE_CALLS
        number, chance = dice.randrange(12), dice.random()
        effect = ("read", "write", "model")[(number > 5) + (number > 7)]
        call_id, digest = self._id(), dice.randbytes(32)
        kind, decision, reason, state, status = _FATES[(chance > 0.93) + (chance > 0.98)]
        claim = None
        if effect == "write" and decision == "allow":
            claim = dice.randbytes(32)
        if decision == "allow":
            opened.append(_Call(call_id, self._at_us, effect, claim))
        seen = None if effect == "read" else f'{{"bytes_up":{dice.randrange(5_000)},"keyed":true}}'
        return (
            *(f"call.{kind}", self._at_us, call_id, run.name),
            *(RARE_TENANT if rare else run.tenant, run.parent, run.root, run.agent),
            RARE_RELEASE if rare else f"release.{(self._at_us - START_US) // RELEASE_US}",
            RARE_TOOL if rare else f"tool{number}.create",
            *(f"POST /v1/things{number}/{{id}}", "POST" if effect != "read" else "GET"),
            *(f"api{number}.example.com", f"/v1/things{number}/{digest[:6].hex()}", effect),
            *(decision, reason, "allow" if decision == "allow" else "ceiling:c1", state, status),
            *(claim[:8].hex() if claim else None, digest, seen, 1),
        )

    def _id(self) -> str:
        milliseconds, micros = divmod(self._at_us, 1_000)
        tail = self._dice.getrandbits(62) | 2 << 62
        text = f"{milliseconds:012x}7{micros * 4096 // 1_000:03x}{tail:016x}"
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))

    def _ended(self, calls: list[_Call], left_open: list[_Call]) -> None:
        """Most of them well; the newest, for whose outcomes there is no row left, are in flight."""
        rows, claims = [], []
        for call in calls:
            chance, dice = self._dice.random(), self._dice
            state = "done" if chance < 0.996 else "not_sent" if chance < 0.999 else "unknown"
            model = call.effect == "model"
            status = 200 if state == "done" else None
            rows.append(
                (
                    *("call.outcome", call.at_us + 40_000, call.call_id, None, state, status),
                    *(dice.randrange(1_000, 90_000), dice.randbytes(32), dice.randrange(9_000)),
                    dice.randrange(4_000) if model else None,
                    dice.randrange(900) if model else None,
                    dice.randrange(20_000) if model else None,
                )
            )
            if call.claim and state != "not_sent":
                claims.append((call, state))
        self._write(_OUTCOME, rows)
        self._claimed([*claims, *((call, "pending") for call in left_open if call.claim)])
        for call in left_open:
            self._conn.execute(
                "INSERT INTO open_call (call_id, claim) SELECT ?1, (SELECT id FROM claim "
                "WHERE key = ?2)",
                (call.call_id, call.claim),
            )

    def _claimed(self, claims: list[tuple[_Call, str]]) -> None:
        self._conn.executemany(
            "INSERT INTO claim (key, fingerprint, call_id, state, created_us, used_us, keep_us, "
            "same_body_us, expires_us) VALUES (?, ?, ?, ?, ?, ?, ?, 600000000, ?)",
            [
                (
                    *(call.claim, call.claim, call.call_id, state, call.at_us, call.at_us),
                    *(KEEP_US, call.at_us + KEEP_US if state == "done" else None),
                )
                for call, state in claims
            ],
        )

    def _write(self, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
        self._conn.executemany(self._inserts[columns], self._linked(columns, rows))

    def _linked(
        self, columns: tuple[str, ...], rows: list[tuple[Any, ...]]
    ) -> Iterator[tuple[Any, ...]]:
        for row in rows:
            self._seq += 1
            told = dict(zip(columns, row, strict=True))
            told["seq"] = self._seq
            if "policy" in told:
                told["policy"] = self._policy.digest
            self._hash = link(self._hash, told)
            yield *row, self._seq, self._hash


_FATES = (
    ("intent", "allow", "allowed", "pending", None),
    ("refused", "refuse", "over_ceiling", "refused", 429),
    ("replayed", "replay", "replayed", "replayed", 200),
)
