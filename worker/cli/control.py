"""`mhpc-worker control`: commands to a line's keeper, and its answers."""

from typing import Annotated

import typer

from worker.cli.options import (
    ByOption,
    ConfigOption,
    JsonFlag,
    TimeoutOption,
    UrlOption,
    complete_line,
    line_of,
    settings_of,
    tell,
)


def complete_command(incomplete: str) -> list[str]:
    """For a shell: the commands of that beginning."""
    from worker.streams.control import COMMANDS

    return [name for name in COMMANDS if name.startswith(incomplete)]


def control(
    line: Annotated[str, typer.Argument(help="The line.", autocompletion=complete_line)],
    name: Annotated[str, typer.Argument(help="What it is to do.", autocompletion=complete_command)],
    by: ByOption,
    args: Annotated[list[str] | None, typer.Argument(help="What that takes, such as ENTRY ID.")] = None,
    config: ConfigOption = None,
    redis: UrlOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonFlag = False,
) -> None:
    """Tell a line what to do, and wait for its keeper's answer.

    relearn [FORGETTING]   learn anew; the model that there is answers meanwhile
    calibrate              find the threshold anew
    rate RATE              another false-positive rate, such as 0.001
    pause, resume          neither learn nor calibrate; go on
    normal ENTRY ID        this part is fine: learn it
    anomalous ENTRY ID     this part is bad: what it alone taught is taken
                           back; one that was set aside leaves review
    release ENTRY ID       a part that was set aside is fine: learn it if it
                           was not learned, and is still learned from; else
                           as normal does
    drop ENTRY ID          take a part out of review; what it taught stays
    rollback [VERSION]     go on with the content of an earlier version; without
                           VERSION, of the one before the last change
    resync                 go on where the stream lost entries

    ENTRY and ID are of a part that mhpc-worker review list shows: one that
    was flagged or set aside. What review does not hold is refused.

    Exit code 1 where the keeper refuses, or does not answer in time. Who no
    longer waits (Ctrl-C) takes nothing back: the command is sent by then.

    A paused line goes on answering by the version that it has. Its threshold
    stands still and drift is not watched; parts that come meanwhile are not
    learned from later.
    """
    settings = settings_of(config, redis)
    tell(settings, line_of(settings, line), name, args or [], by, timeout, as_json)
