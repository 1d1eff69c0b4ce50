"""`mhpc-worker produce`: pictures of a folder into a line, as a camera would."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from worker.cli_options import ConfigOption, LineOption, UrlOption, line_of, settings_of

SENT_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def produce(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures; subfolders too.")],
    line: LineOption = None,
    config: ConfigOption = None,
    redis: UrlOption = None,
    rate: Annotated[float, typer.Option(min=0, help="Pictures per second; 0 is as fast as they are accepted.")] = 0.0,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Pictures in an entry.")] = 8,
    loop: Annotated[bool, typer.Option("--loop", help="Again and again, with fresh ids, until interrupted.")] = False,
) -> None:
    """Play a folder of pictures into a line's stream, as a camera would.

    A picture's id is its path in the folder; with --loop, #2, #3, ... is added
    from the second round on. Nothing is sent twice: what a lost connection
    leaves unsure is named.
    """
    from worker import producer

    settings = settings_of(config, redis)
    console = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    player = producer.Producer(producer.connect(settings.redis), line_of(settings, line), rate=rate, held=say)
    files, sent = producer.picture_files(folder), 0
    try:
        with Progress(*SENT_COLUMNS, console=console) as bars:
            bar = bars.add_task("sent", total=None if loop else len(files))

            def advance(_entry: str, images: list[Any]) -> None:
                nonlocal sent
                sent += len(images)
                bars.advance(bar, len(images))

            pictures = producer.folder_images(folder, lambda text: say(f"left out {text}"), loop)
            producer.produce(player, pictures, batch=batch, sent=advance)
    except KeyboardInterrupt:
        pass
    console.print(f"{sent} pictures sent to line {player.line}")
