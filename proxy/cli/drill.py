"""`drill`: proves here and now that the cord works, once or again and again."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.places import data_directory, data_option
from proxy.cli.terminal import Failure, counted, escaped, loud, say, say_json, say_table, warn
from proxy.cli.tokens import seconds

if TYPE_CHECKING:
    from proxy.drill import Figures, Result

FAILED = 3
UNREACHABLE = 5
TITLES = (
    "level",
    "time to return (ms)",
    "time to contain (ms)",
    "writes before",
    "writes after",
    "verdict",
)


@click.command(short_help="Prove that a halt stops what it should, at each level.")
@click.option("--every", metavar="TIME", help="Go on, a drill every 60s or 5m, until SIGTERM.")
@click.option("--global", "everyone", is_flag=True, help="Also halt everything, for a moment.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each drill.")
@data_option
def drill(every: str | None, everyone: bool, as_json: bool, data: str | None) -> None:
    """Send canaries of the drill's own through the running proxy, and stop them at each level.

    Exits with 3 when one passes or a level cannot be proven, with 5 when no proxy answers.
    """
    pause_seconds = None if every is None else float(seconds(every, "--every"))
    drills = _Drills(data_directory(data), everyone, as_json)
    raise click.exceptions.Exit(asyncio.run(drills.run(pause_seconds)))


class _Drills:
    """One drill or many, and what is printed of each. `code` is that of the last one."""

    def __init__(self, data: Path, everyone: bool, as_json: bool) -> None:
        self.code = 0
        self._data = data
        self._everyone = everyone
        self._as_json = as_json

    async def run(self, pause_seconds: float | None) -> int:
        import signal

        if self._everyone and not self._as_json:
            say("with --global every agent of this proxy is halted, for less than a second")
        if pause_seconds is None:
            await self._once()
            return self.code
        repeating = asyncio.ensure_future(self._repeat(pause_seconds))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, repeating.cancel)
        try:
            await repeating
        except asyncio.CancelledError:
            return self.code
        return self.code

    async def _repeat(self, pause_seconds: float) -> None:
        from ledger.errors import LedgerError

        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + pause_seconds
            try:
                await self._once()
            except (Failure, LedgerError) as failure:
                self.code = getattr(failure, "exit_code", FAILED)
                warn(str(failure))
            await asyncio.sleep(due - loop.time())

    async def _once(self) -> None:
        from proxy.clock import SystemClock
        from proxy.control_client import PortUnreachable, Refused, Unreachable
        from proxy.drill import drill

        try:
            result = await drill(self._data, SystemClock(), everyone=self._everyone)
        except Refused as refused:
            raise Failure(f"not drilled: {refused}", FAILED) from None
        except (PortUnreachable, Unreachable) as dead:
            raise Failure(str(dead), UNREACHABLE) from None
        self.code = 0 if result.passed else FAILED
        if self._as_json:
            say_json(_as_json(result))
        else:
            self._say(result)

    def _say(self, result: "Result") -> None:
        say_table(TITLES, [_row(each) for each in result.levels])
        if result.passed:
            levels = counted(len(result.levels), "level")
            say(f"the cord works: {levels} proven, through {counted(result.engines, 'engine')}")
        else:
            say(f"{loud('FAILED')}  {escaped(result.why)}")
        if result.halted:
            halted = loud("everything is halted")
            say(f"{halted} (setting failed_drill); undo: pullcord resume global --reason ...")
        if not self._everyone:
            say("not drilled: global, which stops every agent for a moment (drill --global)")


def _row(each: "Figures") -> tuple[object, ...]:
    times = (each.return_ms, each.contain_ms)
    return (f"{each.level} {each.scope}", *times, each.before, each.after, each.verdict)


def _as_json(result: "Result") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "passed": result.passed,
        "why": result.why,
        "engines": result.engines,
        "halted": result.halted,
        "levels": [asdict(each) for each in result.levels],
    }
