"""`mhpc-worker snapshots`: the versions of a line on disk."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.cli_options import (
    ByOption,
    ConfigOption,
    JsonFlag,
    LineOption,
    TimeoutOption,
    UrlOption,
    examples,
    line_of,
    settings_of,
    tell,
)
from worker.errors import AbsentError, ModelError, SnapshotError, one_line, printable

if TYPE_CHECKING:
    from worker.snapshots import SnapshotStore

snapshots = typer.Typer(no_args_is_help=True, help="List, verify, pin or roll back to the versions of a line.")

VersionArgument = Annotated[str, typer.Argument(help="Its name, as list shows it.")]
MARKS = {"committed": "*", "pinned": "p", "bad": "!"}
LEGEND = "* committed   p pinned: never pruned   ! bad: set aside, not loaded"


@snapshots.command("list", epilog=examples("snapshots list --config config.toml", "snapshots list -l press-3 --json"))
def list_versions(
    line: LineOption = None, config: ConfigOption = None, redis: UrlOption = None, as_json: JsonFlag = False
) -> None:
    """List the versions, the newest last."""
    from worker import views
    from worker.streams.line_streams import LineStreams

    settings, store = _store(line, config, redis)
    streams = LineStreams(views.connect(settings), line_of(settings, line))
    committed = streams.state().get("model") or None
    rows = _rows(store, committed)
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    if rows:
        Console(highlight=False).print(_table(rows))
        if any(row[mark] for row in rows for mark in MARKS):
            typer.echo(LEGEND)
    else:
        typer.echo(f"line {streams.line} has no versions in {store.directory}")
    if committed and committed not in [row["version"] for row in rows]:
        typer.echo(f"committed is {committed}, which is not there: set snapshots.directory to where it lies")


@snapshots.command(epilog=examples("snapshots verify --config config.toml"))
def verify(
    line: LineOption = None, config: ConfigOption = None, redis: UrlOption = None, as_json: JsonFlag = False
) -> None:
    """Load each version and check its checksum; exit code 1 if one is bad."""
    _, store = _store(line, config, redis)
    good, bad = list[str](), list[str]()
    for version in store.stems():
        problem = _problem(store, version)
        if problem and version not in store.stems():  # a worker pruned it or set it aside meanwhile
            continue
        (bad if problem else good).append(version)
        if as_json:
            typer.echo(json.dumps({"version": version, "ok": not problem, "error": problem or None}))
        else:
            typer.echo(f"BAD {version}  {printable(problem)}" if problem else f"ok  {version}")
    if bad:
        raise SnapshotError(f"{len(bad)} of {len(bad) + len(good)} versions cannot be used: {', '.join(bad)}; "
                            + _remedy(store, good))  # fmt: skip
    if not as_json:
        typer.echo(f"{len(good)} versions in {store.directory}, each is whole")


@snapshots.command(epilog=examples("snapshots pin 0000000003-0000000012 --line press-3"))
def pin(
    version: VersionArgument, line: LineOption = None, config: ConfigOption = None, redis: UrlOption = None
) -> None:
    """Keep a version until it is unpinned, however many come after it."""
    _, store = _store(line, config, redis)
    store.pin(version)
    typer.echo(f"{version} is pinned: it is kept until mhpc-worker snapshots unpin {version}")


@snapshots.command(epilog=examples("snapshots unpin 0000000003-0000000012 --line press-3"))
def unpin(
    version: VersionArgument, line: LineOption = None, config: ConfigOption = None, redis: UrlOption = None
) -> None:
    """Let a pinned version be pruned in its turn."""
    _, store = _store(line, config, redis)
    store.unpin(version)
    typer.echo(f"{version} is no longer pinned: it goes when snapshots.keep newer ones are there")


@snapshots.command(epilog=examples("snapshots rollback 0000000003-0000000012 --line press-3"))
def rollback(
    version: VersionArgument,
    by: ByOption,
    line: LineOption = None,
    config: ConfigOption = None,
    redis: UrlOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonFlag = False,
) -> None:
    """Let the line go on with the content of a version, as a new one; waits for its keeper's answer."""
    settings = settings_of(config, redis)
    tell(settings, line_of(settings, line), "rollback", [version], by, timeout, as_json)


def _store(line: str | None, config: Path | None, redis: str | None) -> "tuple[Any, SnapshotStore]":
    settings = settings_of(config, redis)
    name = line_of(settings, line)
    from worker.snapshots import SnapshotStore  # last: it loads torch, and usage errors need none

    return settings, SnapshotStore(settings.snapshots.directory, name)


def _problem(store: "SnapshotStore", version: str) -> str:
    try:
        store.load(version)
    except (SnapshotError, AbsentError, ModelError) as error:
        return one_line(error)
    return ""


def _remedy(store: "SnapshotStore", good: list[str]) -> str:
    if not good:
        return f"restore a copy into {store.directory}; a worker that starts finds no version to go on from"
    return (
        f"restore a copy into {store.directory}, or go on from {good[-1]}: mhpc-worker snapshots rollback {good[-1]} "
        f"--line {store.directory.name}; a worker that starts passes over a damaged one to the newest whole before it"
    )


def _rows(store: "SnapshotStore", committed: str | None) -> list[dict[str, Any]]:
    rows = []
    for path in store.files():
        try:
            stat = path.stat()
        except FileNotFoundError:  # pruned meanwhile
            continue
        about = store.about(path)
        rows.append(
            {
                "version": path.stem,
                "bytes": stat.st_size,
                "when": datetime.fromtimestamp(stat.st_mtime, UTC).isoformat(timespec="seconds"),
                **{name: about.get(name) for name in ("phase", "images_learned", "applied_through")},
                "committed": path.stem == committed,
                "pinned": store.pinned(path.stem),
                "bad": path.suffix == ".bad",
            }
        )
    return rows


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    table.add_column("version", no_wrap=True)
    table.add_column("size", no_wrap=True, justify="right")
    table.add_column("when", no_wrap=True)
    table.add_column("phase", no_wrap=True)
    table.add_column("learned", no_wrap=True, justify="right")
    table.add_column("applied through", overflow="fold")
    for row in rows:
        marks = "".join(sign for name, sign in MARKS.items() if row[name])
        when = datetime.fromisoformat(row["when"]).astimezone().strftime("%m-%d %H:%M")
        told = ["-" if row[name] is None else str(row[name]) for name in ("phase", "images_learned", "applied_through")]
        texts = (marks, row["version"], _size(row["bytes"]), when, *told)
        table.add_row(*[Text(printable(text)) for text in texts])
    return table


def _size(count: int) -> str:
    size = count / 1024
    for unit in ("K", "M"):
        if size < 1000:
            return f"{size:.1f}{unit}"
        size /= 1024
    return f"{size:.1f}G"
