"""How many rows of the record a simulation reads in a second, over a ledger that has grown.

`python -m tests.bench.simulated --rows 1000000 --data DIR` makes the ledger where there is none
and leaves it there.
"""

import argparse
import resource
import time
from contextlib import closing
from pathlib import Path

from ledger.connection import open_reader
from ledger.replaying import Replay, period, scratch
from policies.comparing import Comparison
from policies.decide import decide
from policies.load import load
from policies.policy import Policy
from policies.recognizing import Recognizing
from policies.simulating import Simulation
from tests.bench.grown import made

ROWS_PER_SECOND_MIN = 1_000_000 / 60
TOOLS = "".join(
    f"  tool{number}.create: {{match: {{host: api{number}.example.com}}}}\n" for number in range(12)
)
POLICY = f"""\
version: 1
tools:
{TOOLS}\
  tool.rare: {{match: {{host: rare.example.com}}}}
ceilings:
  - {{per: run, count: calls, at_most: 20, within: 1m}}
  - {{per: tenant, count: writes, at_most: 500, within: 10m, then: freeze}}
  - {{per: tree, count: spend_usd, at_most: 5}}
detectors:
  loop: {{mode: enforce}}
  burn: {{mode: enforce}}
"""


def measured(data: Path, policy: Policy) -> tuple[int, float, Comparison]:
    """Rows, seconds of this process, and what was found."""
    with closing(open_reader(data)) as reader, scratch() as windows:
        chosen = period(reader, 0, None, policy)
        simulation = Simulation(policy, windows, Recognizing(policy, lambda digest: None), decide)
        found = Comparison(simulation.is_told)
        before, rows = time.process_time(), 0
        for read in Replay(reader, chosen, simulation, windows, found).pieces():
            rows = read
        return rows, time.process_time() - before, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path, required=True)
    chosen = parser.parse_args()
    policy = load(POLICY)
    began = time.monotonic()
    data = made(chosen.data, chosen.rows, policy)
    print(f"ledger of {chosen.rows:,} rows: {time.monotonic() - began:.0f} s")
    rows, seconds, found = measured(data, policy)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{rows:,} rows in {seconds:.1f} s of one core: {rows / seconds:,.0f} rows/s")
    print(f"1 M rows would take {1e6 * seconds / rows:.0f} s (at most 60); peak {peak_mb:.0f} MB")
    print(f"{found.calls:,} decisions, {sum(one.calls for one in found.flips.values()):,} flips")
    if rows / seconds < ROWS_PER_SECOND_MIN:
        raise SystemExit("slower than 1 M rows in a minute")


if __name__ == "__main__":
    main()
