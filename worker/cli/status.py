"""`mhpc-worker status`: what each line is doing, once or live."""

import json
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import redis as redis_py
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from worker.cli.options import ConfigOption, JsonFlag, UrlOption, settings_of
from worker.errors import RedisUnreachableError, one_line, printable
from worker.settings import Settings

WATCH_SECONDS = 1.0
DRIFTING = 1.0  # from here on the alert in deploy/prometheus fires
STYLES = {"learning": "cyan", "calibrating": "yellow", "scoring": "green", "paused": "dim", "problem": "bold red"}
HEADINGS = ("line", "phase", "progress", "threshold", "drift", "lag", "dead", "quar.", "keeper")
NO_LINE = "no line has a stream yet"

Row = dict[str, Any]


def status(
    config: ConfigOption = None,
    redis: UrlOption = None,
    as_json: JsonFlag = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Live, until q or Ctrl-C.")] = False,
) -> None:
    """Show what each line is doing: those of the configuration, else all that Redis knows.

    progress   images learned or calibrated, of how many; patches that are new
    threshold  ? behind it: it rests on too few images yet
    drift      how far recent scores lie from calibration's; above 1 look into it
    lag        entries that nobody has read yet; - where Redis cannot tell
    dead       dead letters: mhpc-worker dead list
    quar.      images that were set aside while it learned
    keeper     the worker that learns; none: why, stands below, as far as a
               worker has said so
    /s         with --watch: images answered in a second, from Redis 7.0 on
    """
    from worker import views

    settings = settings_of(config, redis)
    client = views.connect(settings)
    try:
        if watch and not as_json and sys.stdout.isatty():
            _watch(settings, client)
            return
        while True:
            _print(_rows(settings, client), as_json)
            if not watch:
                return
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        pass


def _rows(settings: Settings, client: Any) -> list[Row]:
    from worker import views

    names = [item.name for item in settings.lines] or views.known_lines(client)
    return [views.line_status(client, name) for name in names]


def _print(rows: list[Row], as_json: bool) -> None:
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
    elif rows:
        Console(highlight=False).print(status_table(rows), *_problems(rows), sep="\n")
    else:
        typer.echo(NO_LINE)


# -- live --------------------------------------------------------------------------------------------------------------


def _watch(settings: Settings, client: Any) -> None:
    from worker.streams.address import shown

    where = shown(settings.redis.url.get_secret_value())
    rates, rows, lost = Rates(client), list[Row](), ""
    with _keys() as pressed, Live(screen=True, auto_refresh=False, console=Console(highlight=False)) as live:
        while True:
            try:
                rows, lost = _rows(settings, client), ""
                rates.look([row["line"] for row in rows])
            except (redis_py.ConnectionError, redis_py.TimeoutError, RedisUnreachableError) as error:
                lost = f"Redis is not reached, this is what was seen last: {one_line(error, 200)}"
            head = Text(f"{time.strftime('%H:%M:%S')}  {where}   q ends", style="dim", overflow="ellipsis")
            body = status_table(rows, rates.per_second) if rows else Text(NO_LINE)
            told = [Text(lost, style="bold red")] if lost else []
            live.update(Group(head, Text(), body, *_problems(rows), *told), refresh=True)
            if pressed(WATCH_SECONDS) in ("q", "Q"):
                return


class Rates:
    """Images answered in a second, by line, from one look to the next."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.per_second = dict[str, float]()
        self._seen = dict[str, tuple[float, int]]()

    def look(self, names: list[str]) -> None:
        from worker import views

        before, self._seen = self._seen, {}
        for name in names:
            if (answered := views.answered(self.client, name)) is not None:
                self._seen[name] = now, count = time.monotonic(), answered
                at, was = before.get(name, (now, count))
                self.per_second[name] = max(0, count - was) / (now - at) if now > at else 0.0


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so many seconds for a key; where nobody has a keyboard, it waits."""

    def wait(seconds: float) -> str:
        time.sleep(seconds)
        return ""

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return os.read(descriptor, 1).decode(errors="replace") if ready else ""

    if not sys.stdin.isatty():
        yield wait
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)  # keys come one by one; Ctrl-C stays what it is
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


# -- the table ---------------------------------------------------------------------------------------------------------


def status_table(rows: list[Row], per_second: dict[str, float] | None = None) -> Table:
    """A row for each line; with `per_second`, images answered in a second, by line."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    right, names = {"threshold", "lag", "dead", "quar.", "/s"}, {"line", "keeper"}
    headings = HEADINGS if per_second is None else (*HEADINGS[:-1], "/s", HEADINGS[-1])
    for heading in headings:
        justify: Literal["left", "right"] = "right" if heading in right else "left"
        table.add_column(
            heading, justify=justify, no_wrap=heading not in names, overflow="fold", min_width=len(heading)
        )
    for row in rows:
        cells = _cells(row)
        if per_second is not None:
            rate = per_second.get(row["line"])
            cells.insert(-1, Text("-" if rate is None else f"{rate:.{0 if rate >= 10 else 1}f}"))
        table.add_row(*cells)
    return table


def _cells(row: Row) -> list[Text]:
    phase = "problem" if row["problem"] else row["phase"] or "-"
    threshold = f"{row['threshold']:.4g}" if row["threshold"] is not None else "-"
    new = f" {row['outside_share']:.0%} new" if row["progress"] and row["outside_share"] is not None else ""
    drift = row["drift"]
    return [
        Text(printable(row["line"])),
        Text(printable(phase), STYLES.get(phase, "")),
        Text(printable(row["progress"] or "-") + new),
        Text(threshold + "?" * row["provisional"]),
        Text("-" if drift is None else f"{drift:.2f}", "yellow" if (drift or 0) > DRIFTING else ""),
        Text("-" if row["lag"] is None else str(row["lag"])),
        Text(str(row["dead"])),
        Text(str(row["quarantined"])),
        Text(printable(row["keeper"])) if row["keeper"] else Text("none", "red"),
    ]


def _problems(rows: list[Row]) -> list[Text]:
    """What keeps lines from working, below the table."""
    return [Text(printable(f"{row['line']}: {row['problem']}"), "red") for row in rows if row["problem"]]
