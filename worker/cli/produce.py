"""`mhpc-worker produce`: pictures of a folder into a line, as a camera would."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import redis as redis_py
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from worker.cli.options import ConfigOption, LineOption, UrlOption, line_of, settings_of
from worker.errors import WorkerError
from worker.settings import LINES_KEY, Settings

if TYPE_CHECKING:
    from worker.message import Image
    from worker.producer import Producer

SENT_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def produce(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures; subfolders too.")],
    line: LineOption = None,
    config: ConfigOption = None,
    redis: UrlOption = None,
    rate: Annotated[float, typer.Option(min=0, help="Pictures per second; 0 is as fast as they are accepted.")] = 0.0,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Pictures in an entry.")] = 8,
    max_ahead: Annotated[
        int,
        typer.Option(min=0, help="Entries that may wait for an answer; 0 is any number, and takes no right but XADD."),
    ] = 32,  # producer.MAX_AHEAD, which a help need not wait for
    loop: Annotated[bool, typer.Option("--loop", help="Again and again, with fresh ids, until interrupted.")] = False,
) -> None:
    """Play a folder of pictures into a line's stream, as a camera would.

    A picture's id is its path in the folder; with --loop, #2, #3, ... is added
    from the second round on. Nothing is sent twice: what a lost connection
    or an interruption leaves unsure is named.
    """
    from worker import producer

    settings = settings_of(config, redis)
    console = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    client, name = producer.connect(settings.redis), line_of(settings, line)
    player = producer.Producer(client, name, rate=rate, max_ahead=max_ahead or None, held=say)
    total = len(producer.picture_files(folder))
    if unread := _unread(settings, client, name):
        say(unread)
    pictures = producer.folder_images(folder, lambda text: say(f"left out {text}"), loop)
    _play(player, pictures, batch, None if loop else total, console)


def _unread(settings: Settings, client: Any, line: str) -> str:
    """What is to be said of a line that no worker is known to read; else "". Its stream says nothing of that: whoever
    sends makes one."""
    from worker.streams.address import shown
    from worker.streams.line_streams import LineStreams

    streams = LineStreams(client, line)
    try:
        if line in [item.name for item in settings.lines] or client.hget(LINES_KEY, line) or streams.state():
            return ""
    except redis_py.ResponseError:  # a user may have the right to XADD alone; whatever ails the look, he sends
        return ""
    where = shown(settings.redis.url.get_secret_value())
    return (
        f"line {line} is neither configured here nor declared at {where}, and no worker ever kept it: its pictures "
        "wait until one does; is its name right?"
    )


def _play(player: "Producer", pictures: Iterator["Image"], batch: int, total: int | None, console: Console) -> None:
    """Send them; raises WorkerError where an interruption leaves it open whether the last ones arrived."""
    from worker import producer

    sent = 0
    try:
        with Progress(*SENT_COLUMNS, console=console) as bars:
            bar = bars.add_task("sent", total=total)

            def advance(_entry: str, images: list["Image"]) -> None:
                nonlocal sent
                sent += len(images)
                bars.advance(bar, len(images))

            producer.produce(player, pictures, batch=batch, sent=advance)
    except KeyboardInterrupt:
        pass
    console.print(f"{sent} pictures sent to line {player.line}")
    if unsure := [image.id for image in player.uncertain]:
        which = unsure[0] if len(unsure) == 1 else f"{unsure[0]} to {unsure[-1]}"
        raise WorkerError(
            f"interrupted while {which} went out; nobody knows whether they arrived, so look for their results before "
            "sending them again"
        )
