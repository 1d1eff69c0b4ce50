"""`mhpc-worker review`: the parts that were flagged or set aside, with their pictures."""

import json
import math
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.cli.options import ConfigOption, JsonFlag, LineOption, UrlOption, examples, local_time, streams_of
from worker.errors import AbsentError, ConfigurationError, RejectedError, one_line, printable

if TYPE_CHECKING:
    from worker.message import Image
    from worker.settings import LimitSettings
    from worker.streams.line_streams import LineStreams, ReviewPart


def complete_why(incomplete: str) -> list[str]:
    """For a shell: the reasons of that beginning."""
    from worker.streams.review import WHYS

    return [why for why in WHYS if why.startswith(incomplete)]


review = typer.Typer(no_args_is_help=True, help="Look at the parts of a line that were flagged or set aside.")

WhyOption = Annotated[
    str | None,
    typer.Option("--why", "-w", help="Only anomalous, or only quarantined ones.", autocompletion=complete_why),
]
PictureOption = Annotated[
    Path | None, typer.Option("--picture", help="Write its picture to this file, raw pixels as a PNG.")
]


@review.command("list", epilog=examples("review list --line press-3", "review list -l press-3 --why anomalous --json"))
def list_parts(
    line: LineOption = None,
    config: ConfigOption = None,
    redis: UrlOption = None,
    why: WhyOption = None,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="The newest so many; 0 shows all.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List the parts, the newest last; times are this machine's.

    anomalous     scored above the threshold; both are shown
    quarantined   set aside: while the line learned, and so not learned, or
                  when learning ended, after it was learned from

    ENTRY and ID are for mhpc-worker control LINE normal ENTRY ID (it is fine),
    anomalous, release or drop; drop takes it off this list. --json and show
    tell the two kinds of quarantined parts apart by "learned".
    """
    from worker.streams.review import WHYS, parts

    if why not in (None, *WHYS):
        raise ConfigurationError(f"--why {why!r} is unknown; expected one of {', '.join(WHYS)}")
    _, streams = streams_of(line, config, redis)
    found = (_row(key, part) for key, part in parts(streams) if why in (None, part.why))
    rows = list(islice(found, count or None))[::-1]
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    if not rows:
        typer.echo(f"review of line {streams.line} holds no part" + (f" that is {why}" if why else ""))
        return
    Console(highlight=False).print(_table(rows))
    of_all = streams.client.xlen(streams.review)
    if why is None and of_all > len(rows):
        typer.echo(f"the newest {len(rows)} of {of_all}; --count 0 shows all")


@review.command(epilog=examples("review show 1764150000000-0 part-0042 --picture part.jpg"))
def show(
    entry: Annotated[str, typer.Argument(metavar="ENTRY", help="The part's entry, as list shows it.")],
    identity: Annotated[str, typer.Argument(metavar="ID", help="Its id.")],
    line: LineOption = None,
    config: ConfigOption = None,
    redis: UrlOption = None,
    picture: PictureOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show all that review holds of a part, and save its picture."""
    from worker.streams.review import image_kept

    settings, streams = streams_of(line, config, redis)
    key, part = _find(streams, entry, identity)
    row = _row(key, part)
    try:
        image = image_kept(part.image, settings.limits)
        row["picture"] = f"{image.format}, {len(image.data)} bytes"
        if picture is not None:
            _write(picture, image, settings.limits)
    except RejectedError as error:
        if picture is not None:
            raise AbsentError(f"--picture {picture}: not written: {error}") from None
        row["picture"] = f"none: {error}"
    if as_json:
        typer.echo(json.dumps(row))
        return
    for name, value in row.items():
        typer.echo(f"{name:<10} {'-' if value is None else printable(one_line(value))}")
    if picture is not None:
        typer.echo(f"written to {picture}")


def _find(streams: "LineStreams", entry: str, identity: str) -> tuple[str, "ReviewPart"]:
    from worker.streams.review import find

    if found := find(streams, entry, identity):
        return found[0]
    raise AbsentError(
        f"review of line {streams.line} holds no part {identity!r} of entry {entry!r}: never there, dropped, or gone "
        f"as the oldest; mhpc-worker review list --line {streams.line} shows those there are"
    )


def _write(path: Path, image: "Image", limits: "LimitSettings") -> None:
    from PIL import Image as Pillow

    from worker.message import raw_pixels

    try:
        if image.format == "raw":
            pixels = raw_pixels(image, limits)  # [h, w, c]
            Pillow.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(path, "PNG")
        else:
            path.write_bytes(image.data)
    except OSError as error:
        raise ConfigurationError(f"--picture {path}: not written: {error}; name a file that can be") from None


def _row(key: str, part: "ReviewPart") -> dict[str, Any]:
    """All but the picture, for JSON."""
    from worker.streams.ids import entry_time

    return {
        "entry": part.entry,
        "id": part.id,
        "why": part.why,
        "score": _number(part.score),
        "threshold": _number(part.threshold),
        "model": part.model or None,
        "learned": bool(part.learned) if part.why == "quarantined" else None,
        "when": entry_time(key),
    }


def _number(text: str) -> float | None:
    """What was set aside has no score, and who may write there may write anything."""
    try:
        return value if math.isfinite(value := float(text)) else None
    except ValueError:
        return None


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for heading in ("why", "when", "score", "limit", "entry"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("score", "limit") else "left")
    table.add_column("id", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, _cells(row)))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    from worker.results import figure

    figures = figure(row["score"]), figure(row["threshold"])
    texts = [row["why"], local_time(row["when"]), *figures, row["entry"], row["id"]]
    return [printable(text) for text in texts]
