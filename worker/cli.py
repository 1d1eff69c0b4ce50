"""`mhpc-worker`: the commands. Thin; torch is imported only by those that need it."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import redis as redis_py
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from worker.cli_bench import bench
from worker.cli_dead import dead
from worker.cli_options import (
    ByOption,
    ConfigOption,
    JsonFlag,
    LineOption,
    TimeoutOption,
    UrlOption,
    line_of,
    settings_of,
    tell,
)
from worker.cli_snapshots import snapshots
from worker.errors import ConfigurationError, RedisUnreachableError, WorkerError, one_line

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(dead, name="dead")
app.add_typer(snapshots, name="snapshots")
app.command()(bench)

SENT_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


@app.callback()
def mhpc_worker() -> None:
    """Learns what normal parts look like from Redis Streams, and publishes a verdict for every part."""


def main() -> None:
    """Run the command line; a WorkerError becomes one line on stderr and its exit code."""
    try:
        app()
    except WorkerError as error:
        _fail(str(error), error.exit_code)
    except redis_py.RedisError as error:  # after the first answer: a command that people run does not try again
        _fail(f"Redis: {error}", RedisUnreachableError.exit_code)


def _fail(text: str, code: int) -> NoReturn:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {one_line(text)}", markup=False)
    sys.exit(code)


@app.command()
def run(config: ConfigOption = None, redis: UrlOption = None) -> None:
    """Run the worker until SIGTERM or Ctrl-C; SIGHUP has it read its lines anew."""
    settings = settings_of(config, redis)
    # NumPy's products here are small: threads of its own would only fight torch's for the cores. Before NumPy loads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Between parallel regions libgomp's threads spin, by default so long that decoding, publishing and Redis wait for
    # a core: on two cores `tiny` scores a third more images so (docs/performance.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from worker.logs import configure_logs
    from worker.process import run_worker

    configure_logs(settings.log_format)
    run_worker(settings, lambda: settings_of(config, redis))


@app.command()
def check(config: ConfigOption = None, redis: UrlOption = None) -> None:
    """Check configuration, Redis, snapshot folder, port, device and weights; exit code 0 if each is well."""
    from worker.checks import run_checks

    run_checks(settings_of(config, redis), Console(highlight=False))


@app.command()
def produce(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures; subfolders too.")],
    line: LineOption = None,
    config: ConfigOption = None,
    redis: UrlOption = None,
    rate: Annotated[float, typer.Option(min=0, help="Pictures per second; 0 is as fast as they are accepted.")] = 0.0,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Pictures in an entry.")] = 8,
    loop: Annotated[bool, typer.Option("--loop", help="Again and again, until interrupted.")] = False,
) -> None:
    """Play a folder of pictures into a line's stream, as a camera would."""
    from worker import producer

    settings = settings_of(config, redis)
    console = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    client = producer.connect(settings.redis)
    player = producer.Producer(client, line_of(settings, line), rate=rate, held=say)
    total = None if loop else len(producer.picture_files(folder))
    sent = 0
    try:
        with Progress(*SENT_COLUMNS, console=console) as bars:
            bar = bars.add_task("sent", total=total)

            def advance(_entry: str, images: list[Any]) -> None:
                nonlocal sent
                sent += len(images)
                bars.advance(bar, len(images))

            pictures = producer.folder_images(folder, lambda text: say(f"left out {text}"), loop)
            producer.produce(player, pictures, batch=batch, sent=advance)
    except KeyboardInterrupt:
        pass
    console.print(f"{sent} pictures sent to line {player.line}")


@app.command()
def tail(
    line: LineOption = None,
    config: ConfigOption = None,
    redis: UrlOption = None,
    as_json: JsonFlag = False,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="Stop after so many; 0 never stops.")] = 0,
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin with the oldest result kept.")] = False,
) -> None:
    """Follow a line's results."""
    from worker import views

    settings = settings_of(config, redis)
    client = views.connect(settings)
    try:
        for number, result in enumerate(views.results(client, line_of(settings, line), from_start), start=1):
            typer.echo(views.result_json(result) if as_json else views.result_text(result))
            if number == count:
                return
    except KeyboardInterrupt:
        pass


@app.command()
def status(
    config: ConfigOption = None,
    redis: UrlOption = None,
    as_json: JsonFlag = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again every second, until interrupted.")] = False,
) -> None:
    """Show what each line is doing."""
    from worker import views

    settings = settings_of(config, redis)
    client = views.connect(settings)
    names = [item.name for item in settings.lines] or views.known_lines(client)
    try:
        while True:
            rows = [views.line_status(client, name) for name in names]
            if as_json:
                for row in rows:
                    typer.echo(json.dumps(row))
            else:
                Console(highlight=False).print(_status_table(rows) if rows else "no line has a stream yet")
            if not watch:
                return
            time.sleep(1)
    except KeyboardInterrupt:
        pass


@app.command()
def control(
    line: Annotated[str, typer.Argument(help="The line.")],
    name: Annotated[str, typer.Argument(help="What it is to do.")],
    by: ByOption,
    args: Annotated[list[str] | None, typer.Argument(help="What that takes, such as ENTRY ID.")] = None,
    config: ConfigOption = None,
    redis: UrlOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonFlag = False,
) -> None:
    """Tell a line what to do, and wait for its keeper's answer.

    relearn [FORGETTING] | calibrate | pause | resume | rate RATE | rollback [VERSION] |
    normal ENTRY ID | anomalous ENTRY ID | release ENTRY ID | drop ENTRY ID | resync

    A paused line goes on answering by the version that it has. It neither learns nor calibrates, its threshold stands
    still and drift is not watched; parts that come meanwhile are not learned from later.
    """
    settings = settings_of(config, redis)
    tell(settings, line_of(settings, line), name, args or [], by, timeout, as_json)


@app.command()
def demo(
    images: Annotated[Path | None, typer.Option(help="Pictures, in the MVTec layout or flat; else rendered.")] = None,
    backbone: Annotated[str, typer.Option(help='"tiny", torchvision\'s name, or "module:function".')] = "tiny",
    weights: Annotated[str | None, typer.Option(help='"bundled", "pretrained", "random:SEED" or a path.')] = None,
    layers: Annotated[str | None, typer.Option(help="Layers of the backbone, comma-separated.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there, too.")] = None,
    report: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("demo-report"),
    rate: Annotated[float, typer.Option(min=0, help="Pictures per second; 0 is as fast as it goes.")] = 0.0,
    serve: Annotated[bool, typer.Option("--serve", help="Go on until interrupted.")] = False,
    backbones: Annotated[bool, typer.Option(help="Compare backbones at the end: half a minute or more.")] = True,
) -> None:
    """See it work: a private Redis, a camera, the worker, and a report at the end."""
    try:
        from worker.demo.run import DemoOptions, run_demo
    except ModuleNotFoundError as error:
        raise ConfigurationError(f'the demo needs {error.name}: pip install "mhpc[demo]"') from None
    chosen = tuple(name.strip() for name in layers.split(",")) if layers else None
    run_demo(
        DemoOptions(
            images=images, backbone=backbone, weights=weights, layers=chosen, json=json_file,
            report=report, rate=rate, serve=serve, backbones=backbones,
        )
    )  # fmt: skip


def _status_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    right, names = {"threshold", "lag", "dead", "quar."}, {"line", "keeper"}
    for heading in ("line", "phase", "progress", "threshold", "drift", "lag", "dead", "quar.", "keeper"):
        justify: Literal["left", "right"] = "right" if heading in right else "left"
        table.add_column(heading, justify=justify, no_wrap=heading not in names, overflow="fold")
    for row in rows:
        threshold = f"{row['threshold']:.4g}" if row["threshold"] is not None else "-"
        threshold += "?" if row["provisional"] else ""
        new = f" {row['outside_share']:.0%} new" if row["progress"] and row["outside_share"] is not None else ""
        drift = f"{row['drift']:.2f}" if row["drift"] is not None else "-"
        cells = (
            row["line"],
            "stopped" if row["problem"] else row["phase"] or "-",
            (row["progress"] or "-") + new,
            threshold,
            drift,
            _or_dash(row["lag"]),
        )
        table.add_row(*cells, str(row["dead"]), str(row["quarantined"] or 0), row["keeper"] or "none")
    return table


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
