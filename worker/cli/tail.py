"""`mhpc-worker tail`: a line's results as they come."""

from typing import Annotated, Any

import typer

from worker.cli.options import ConfigOption, JsonFlag, LineOption, UrlOption, line_of, settings_of
from worker.errors import printable

COLOURS = {True: typer.colors.RED, False: typer.colors.GREEN, None: typer.colors.BRIGHT_BLACK}  # by the verdict


def tail(
    line: LineOption = None,
    config: ConfigOption = None,
    redis: UrlOption = None,
    as_json: JsonFlag = False,
    anomalies: Annotated[bool, typer.Option("--anomalies", "-a", help="Only parts that are anomalous.")] = False,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="Stop after so many; 0 never stops.")] = 0,
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin with the oldest result kept.")] = False,
) -> None:
    """Follow a line's results: verdict, score / threshold, latency, phase, id.

    A verdict is ANOMALOUS or ok, or - until the line is scoring. An anomalous
    part ends with its entry, for mhpc-worker control LINE normal ENTRY ID. With
    --json each result is one document with all that was published, the heat map
    as nested lists; bytes are base64, and what JSON has no number for is null.
    A Redis that goes away is waited for.
    """
    from worker import results, views

    settings = settings_of(config, redis)
    name = line_of(settings, line)
    client = views.connect(settings)
    if problem := views.unknown(settings, client, name):
        typer.echo(f"{problem} Waiting.", err=True)
    shown = 0
    try:
        for result in results.follow(client, name, from_start, _tell):
            if anomalies and not result["anomalous"]:
                continue
            typer.echo(results.as_json(result) if as_json else _coloured(result))
            shown += 1
            if shown == count:
                return
    except KeyboardInterrupt:
        pass


def _coloured(result: dict[str, Any]) -> str:
    """Where no terminal is, typer.echo takes the colours out."""
    from worker.results import as_text

    verdict, rest = as_text(result).split(" ", 1)
    return typer.style(verdict, fg=COLOURS[result["anomalous"]], bold=result["anomalous"]) + " " + rest


def _tell(text: str) -> None:
    typer.echo(printable(text), err=True)
