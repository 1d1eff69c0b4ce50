"""`mhpc-worker snapshots`: the versions of a line, on disk or in an object store."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.cli.options import (
    ByOption,
    ConfigOption,
    JsonFlag,
    LineOption,
    TimeoutOption,
    UrlOption,
    examples,
    line_of,
    local_time,
    settings_of,
    tell,
)
from worker.errors import AbsentError, ModelError, SnapshotError, StoreError, one_line, printable

if TYPE_CHECKING:
    from worker.settings import Settings
    from worker.snapshots import Kept
    from worker.storage.stores import Store

T = TypeVar("T")

snapshots = typer.Typer(no_args_is_help=True, help="List, verify, pin or roll back to the versions of a line.")

VersionArgument = Annotated[str, typer.Argument(help="Its name, as list shows it.")]
MARKS = {"committed": "*", "before": "<", "pinned": "p", "bad": "!"}
LEGEND = "* committed   < for rollback   p pinned: never pruned   ! bad: not loaded"


@snapshots.command("list", epilog=examples("snapshots list --config config.toml", "snapshots list -l press-3 --json"))
def list_versions(
    line: LineOption = None, config: ConfigOption = None, redis: UrlOption = None, as_json: JsonFlag = False
) -> None:
    """List the versions, the newest last; times are this machine's."""
    from worker import views
    from worker.streams.line_streams import LineStreams

    settings, store = _store(line, config, redis)
    streams = LineStreams(views.connect(settings), line_of(settings, line))
    committed = streams.state().get("model") or None
    rows = _rows(_within(settings, store, store.kept), committed)
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    if rows:
        Console(highlight=False).print(_table(rows))
        if any(row[mark] for row in rows for mark in MARKS):
            typer.echo(LEGEND)
    else:
        typer.echo(f"line {streams.line} has no versions in {store.place}")
    if committed and committed not in [row["version"] for row in rows]:
        typer.echo(f"committed is {committed}, which is not there: set snapshots.directory to where it lies")


@snapshots.command(epilog=examples("snapshots verify --config config.toml"))
def verify(
    line: LineOption = None, config: ConfigOption = None, redis: UrlOption = None, as_json: JsonFlag = False
) -> None:
    """Load each version and check its checksum; exit code 1 if one is bad, or there is none."""
    settings, store = _store(line, config, redis)
    good, bad = list[str](), list[str]()
    for version in _within(settings, store, store.stems):
        problem = _problem(settings, store, version)
        if problem and version not in _within(
            settings, store, store.stems
        ):  # a worker pruned it or set it aside meanwhile
            continue
        (bad if problem else good).append(version)
        if as_json:
            typer.echo(json.dumps({"version": version, "ok": not problem, "error": problem or None}))
        else:
            typer.echo(f"BAD {version}  {printable(problem)}" if problem else f"ok  {version}")
    if bad:
        raise SnapshotError(f"{len(bad)} of {len(bad) + len(good)} versions cannot be used: {', '.join(bad)}; "
                            + _remedy(store.place, line_of(settings, line), good))  # fmt: skip
    if not good:
        raise SnapshotError(f"{store.place} holds no version: set snapshots.directory to where they lie")
    if not as_json:
        typer.echo(f"{len(good)} versions in {store.place}, each is whole")


@snapshots.command(epilog=examples("snapshots pin 0000000003-0000000012 --line press-3"))
def pin(
    version: VersionArgument, line: LineOption = None, config: ConfigOption = None, redis: UrlOption = None
) -> None:
    """Keep a version until it is unpinned, however many come after it."""
    settings, store = _store(line, config, redis)
    _within(settings, store, lambda: store.pin(version))
    typer.echo(f"{version} is pinned: it is kept until mhpc-worker snapshots unpin {version}")


@snapshots.command(epilog=examples("snapshots unpin 0000000003-0000000012 --line press-3"))
def unpin(
    version: VersionArgument, line: LineOption = None, config: ConfigOption = None, redis: UrlOption = None
) -> None:
    """Let a pinned version be pruned in its turn."""
    settings, store = _store(line, config, redis)
    _within(settings, store, lambda: store.unpin(version))
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


def _store(line: str | None, config: Path | None, redis: str | None) -> "tuple[Settings, Store]":
    settings = settings_of(config, redis)
    name = line_of(settings, line)
    from worker.storage.stores import open_store  # last: it loads torch, and usage errors need none

    return settings, open_store(settings.snapshots, name)


def _within(settings: "Settings", store: "Store", work: Callable[[], T]) -> T:
    """A store may be slow, or away."""
    from worker.runtime.errands import run_within

    return run_within(work, store.remote, settings.snapshots.timeout_seconds, store.place)


def _problem(settings: "Settings", store: "Store", version: str) -> str:
    try:
        _within(settings, store, lambda: store.verify(version))
    except StoreError:  # it says nothing of the version
        raise
    except (SnapshotError, AbsentError, ModelError) as error:
        return one_line(error)
    return ""


def _remedy(place: str, line: str, good: list[str]) -> str:
    if not good:
        return f"restore a copy into {place}; a worker that starts finds no version to go on from"
    return (
        f"restore a copy into {place}, or go on from {good[-1]}: mhpc-worker snapshots rollback {good[-1]} "
        f"--line {line}; a worker that starts passes over a damaged one to the newest whole before it"
    )


def _rows(kept: "list[Kept]", committed: str | None) -> list[dict[str, Any]]:
    before = next((version.about.get("before") for version in kept if version.stem == committed), None)
    return [
        {
            "version": version.stem,
            "bytes": version.bytes,
            "when": version.when.isoformat(timespec="seconds"),
            **{name: version.about.get(name) for name in ("phase", "images_learned", "applied_through")},
            "committed": version.stem == committed,
            "before": version.stem == before,
            "pinned": version.pinned,
            "bad": version.bad,
        }
        for version in kept
    ]


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
        when = local_time(row["when"])
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
