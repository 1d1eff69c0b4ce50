"""`mhpc-worker dead`: what could not be answered, to look at, send again or delete."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.cli.options import ConfigOption, JsonFlag, LineOption, UrlOption, examples, local_time, streams_of
from worker.errors import AbsentError, ConfigurationError, ReplayError, WorkerError, one_line, printable


def complete_reason(incomplete: str) -> list[str]:
    """For a shell: the reasons of that beginning."""
    from worker.message import REASONS

    return [reason for reason in REASONS if reason.startswith(incomplete)]


dead = typer.Typer(no_args_is_help=True, help="Show, replay or purge the dead letters of a line.")

LettersArgument = Annotated[list[str] | None, typer.Argument(metavar="LETTER", help="Names, as list shows them.")]
AllFlag = Annotated[bool, typer.Option("--all", help="All of the line's letters, instead of LETTER.")]
ReasonOption = Annotated[
    str | None,
    typer.Option("--reason", "-r", help="Only those of this reason.", autocompletion=complete_reason),
]

IMAGE_WIDTH = 16  # what is longer goes on in the next line
GONE = "is gone meanwhile: replayed, purged or capped away"


@dead.command("list", epilog=examples("dead list --line press-3", "dead list -l press-3 --reason truncated --json"))
def list_letters(
    line: LineOption = None,
    config: ConfigOption = None,
    redis: UrlOption = None,
    reason: ReasonOption = None,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="The newest so many; 0 shows all.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List the letters, the newest last; times are this machine's, dlv. is how often it was tried."""
    from worker.dead import letters

    _, streams = streams_of(line, config, redis)
    found = islice(letters(streams, _known(reason), newest_first=True), count or None)
    rows = [letter.row() for letter in found][::-1]
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    if not rows:
        typer.echo(f"line {streams.line} has no dead letters" + (f" of reason {reason}" if reason else ""))
        return
    console = Console(highlight=False)
    console.print(_table(rows, console.width))
    of_all = streams.client.xlen(streams.dead)
    if reason is None and of_all > len(rows):
        typer.echo(f"the newest {len(rows)} of {of_all}; --count 0 shows all")


@dead.command(
    epilog=examples("dead show 1764150000000-0 --line press-3", "dead show 1764150000000-0 --payload part.jpg")
)
def show(
    letter: Annotated[str, typer.Argument(help="Its name, as list shows it.")],
    line: LineOption = None,
    config: ConfigOption = None,
    redis: UrlOption = None,
    payload: Annotated[Path | None, typer.Option("--payload", help="Write the payload's bytes to this file.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show all that a letter says, and whether it can be replayed."""
    from worker.dead import Replay, find

    settings, streams = streams_of(line, config, redis)
    found, cap = find(streams, letter), settings.streams.payload_bytes
    try:
        replay = Replay(streams, cap).batch(found)[1]
    except ReplayError as error:
        replay = f"impossible: {error}"
    row = {**found.row(), "cut": len(found.payload) >= cap, "replay": replay}
    if payload is not None:
        try:
            payload.write_bytes(found.payload)
        except OSError as error:
            raise ConfigurationError(f"--payload {payload}: not written: {error}; name a file that can be") from None
    if as_json:
        typer.echo(json.dumps(row))
        return
    for name, value in row.items():
        typer.echo(f"{name:<13} {printable(one_line(value))}")
    if payload is not None:
        typer.echo(f"{len(found.payload)} bytes written to {payload}")


@dead.command(epilog=examples("dead replay 1764150000000-0 --line press-3", "dead replay --all --reason failed"))
def replay(
    letters: LettersArgument = None,
    every: AllFlag = False,
    reason: ReasonOption = None,
    line: LineOption = None,
    config: ConfigOption = None,
    redis: UrlOption = None,
) -> None:
    """Send what letters hold again, each once, and remove them.

    A part is taken from its entry while the stream has that; else a JPEG or PNG from the letter itself, if it is whole.
    """
    from worker.dead import Replay

    settings, streams = streams_of(line, config, redis)
    send, sent, refused = Replay(streams, settings.streams.payload_bytes), 0, 0
    for letter in _chosen(streams, letters, every, reason):
        try:
            text = send(letter) or GONE
            sent += text != GONE
        except ReplayError as error:
            text = f"not replayed: {error}"
            refused += 1
        typer.echo(f"{letter.name}  {printable(letter.id) or '(whole entry)'} {text}")
    if refused:
        raise WorkerError(
            f"{_counted(refused)} of line {streams.line} not replayed, see above; {_counted(sent)} replayed"
        )
    typer.echo(f"{_counted(sent)} replayed into {streams.images}")


@dead.command(epilog=examples("dead purge 1764150000000-0 --line press-3", "dead purge --all --reason truncated --yes"))
def purge(
    letters: LettersArgument = None,
    every: AllFlag = False,
    reason: ReasonOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    line: LineOption = None,
    config: ConfigOption = None,
    redis: UrlOption = None,
) -> None:
    """Delete letters for good."""
    from worker.dead import purge

    _, streams = streams_of(line, config, redis)
    names = [letter.name for letter in _chosen(streams, letters, every, reason)]
    if names and not yes:
        typer.confirm(f"delete {_counted(len(names))} of line {streams.line} for good?", abort=True)
    typer.echo(f"{_counted(purge(streams, names))} of line {streams.line} purged")


def _counted(number: int) -> str:
    return "1 dead letter" if number == 1 else f"{number} dead letters"


def _known(reason: str | None) -> str | None:
    from worker.message import REASONS

    if reason is not None and reason not in REASONS:
        raise ConfigurationError(f"--reason {reason!r} is unknown; expected one of {', '.join(REASONS)}")
    return reason


def _chosen(streams: Any, names: list[str] | None, every: bool, reason: str | None) -> Iterator[Any]:
    """The letters that a command is to deal with; none unless all that were named are there."""
    from worker.dead import ensure_present, letters

    if every == bool(names):
        raise ConfigurationError("which letters? expected either LETTER ... or --all")
    if every:
        return letters(streams, _known(reason))
    if reason is not None:
        raise ConfigurationError("--reason goes with --all; which letters LETTER names is said already")
    once = list(dict.fromkeys(names or []))
    ensure_present(streams, once)
    return _still_there(streams, once)


def _still_there(streams: Any, names: list[str]) -> Iterator[Any]:
    from worker.dead import find

    for name in names:
        try:
            yield find(streams, name)
        except AbsentError:
            typer.echo(f"{name}  {GONE}")


def _table(rows: list[dict[str, Any]], width: int) -> Table:
    lines = [_cells(row) for row in rows]
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for heading in ("letter", "when", "reason", "dlv."):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "dlv." else "left")
    table.add_column("image", overflow="fold", max_width=IMAGE_WIDTH)
    # rich would take from every column what one that does not wrap has too much
    used = sum(max(4, *(len(line[place]) for line in lines)) + 1 for place in range(4))
    used += min(IMAGE_WIDTH, max(5, *(len(line[4]) for line in lines))) + 1
    table.add_column("error", no_wrap=True, overflow="ellipsis", max_width=max(5, width - used))
    for line in lines:
        table.add_row(*map(Text, line))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    deliveries = "-" if row["deliveries"] is None else str(row["deliveries"])
    texts = (
        row["letter"], local_time(row["when"]), row["reason"], deliveries, row["id"] or "(entry)",
        one_line(row["error"], 300),
    )  # fmt: skip
    return [printable(text) for text in texts]
