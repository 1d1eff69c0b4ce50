"""`mhpc-worker`: the commands. Thin; torch is imported only by those that need it."""

import sys
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import redis as redis_py
import typer
from rich.console import Console

from worker.cli.bench import bench
from worker.cli.config import config as config_commands
from worker.cli.console import console
from worker.cli.control import control
from worker.cli.dead import dead
from worker.cli.lines import lines
from worker.cli.options import ConfigOption, JsonFlag, UrlOption, examples, settings_of
from worker.cli.plan import plan_fleet
from worker.cli.produce import produce
from worker.cli.review import review
from worker.cli.snapshots import snapshots
from worker.cli.status import status
from worker.cli.tail import tail
from worker.cli.weights import weights
from worker.errors import ConfigurationError, RedisUnreachableError, WorkerError, one_line
from worker.runtime.environment import OF_A_WORKER, set_unless_set, steady_memory, uncollected

RUN, LOOK, ACT, PREPARE = "Run", "Look", "Act", "Prepare"  # panels of the help

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"mhpc {metadata.version('mhpc')}")
        raise typer.Exit


@app.callback(
    epilog=examples(
        "demo                         see it work; nothing else is needed",
        "check --config config.toml   what a worker needs, with remedies",
        "run --config config.toml     the worker itself",
        "control --help               each command has help and examples",
    )
)
def mhpc_worker(
    version: Annotated[
        bool, typer.Option("--version", help="Show the release.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Learns what normal parts look like from Redis Streams, and publishes a verdict for every part.

    Exit codes: 0 done, 2 bad usage or configuration, 3 Redis not reached,
    4 model or weights unusable, 5 the device failed, 1 anything else.
    """


def main() -> None:
    """Run the command line; whatever ends a command becomes one line on stderr and its exit code."""
    if isinstance(sys.stdout, TextIOWrapper):  # ids have any characters, a terminal or a pipe some encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
    except WorkerError as error:
        _fail(str(error), error.exit_code)
    except (redis_py.ConnectionError, redis_py.TimeoutError) as error:
        # After the first answer: a command that people run does not try again.
        _fail(f"the connection to Redis was lost: {error}", RedisUnreachableError.exit_code)
    except redis_py.RedisError as error:
        from worker.views import refused

        _fail(refused(error), WorkerError.exit_code)
    except typer.TyperException as error:  # a usage that is unknown
        if not (text := error.format_message()):  # no command at all: its help was printed
            sys.exit(error.exit_code)
        context = getattr(error, "ctx", None)
        _fail(f"{text.rstrip('.')}; see {context.command_path if context else 'mhpc-worker'} --help", error.exit_code)
    except typer.Abort:
        _fail("aborted, nothing was done", 1)
    except OSError as error:  # of the output, most often: a disk that is full
        _fail(str(error), WorkerError.exit_code)
    sys.exit(code or 0)


def _fail(text: str, code: int) -> NoReturn:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {one_line(text)}", markup=False)
    sys.exit(code)


@app.command(
    rich_help_panel=RUN,
    epilog=examples(
        "run --config config.toml",
        "run -c config.toml --redis redis://10.0.0.5:6379/0",
    ),
)
def run(
    config: ConfigOption = None,
    redis: UrlOption = None,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Be one of torchrun's processes, which learn one line together.")
    ] = False,
) -> None:
    """Run the worker until SIGTERM or Ctrl-C; SIGHUP has it read its lines anew.

    A line too fast for one device is learned by many processes together, which
    torchrun starts: docs/scale.md.
    """
    settings = settings_of(config, redis)
    set_unless_set(OF_A_WORKER)
    steady_memory()
    with uncollected():
        from worker.process import run_worker
        from worker.runtime.logs import configure_logs, log_crash

    tell_rest = configure_logs(settings.log_format)
    try:
        if distributed:
            from worker.ranks.distributed import run_distributed

            run_distributed(settings)
        else:
            run_worker(settings, lambda: settings_of(config, redis))
    except (WorkerError, redis_py.RedisError):
        raise
    except Exception:  # a defect: told as the rest is, so that what reads the log understands it
        log_crash()
        raise typer.Exit(1) from None
    finally:
        tell_rest()


@app.command(
    rich_help_panel=PREPARE,
    epilog=examples("check --config config.toml", "check -c config.toml --json"),
)
def check(config: ConfigOption = None, redis: UrlOption = None, as_json: JsonFlag = False) -> None:
    """Check all that a worker needs: a list of what was found, with the remedy where something is missing.

    lines       those of the configuration
    redis       reached, new enough, and with the rights that a worker needs
    streams     keys of the right type, not behind what was learned, what waits
    snapshots   the folder can be written
    http        the port is free
    device      is there
    model       backbone and weights load; a file's checksums hold
    versions    what was learned is there, and of this backbone
    disk        room for the versions that are kept

    A note is worth a look and fails nothing. The exit code is that of the first
    item that failed. Nothing is changed, but that the folder of snapshots, or of
    their cache, is made.
    """
    from worker.checks import run_checks

    run_checks(settings_of(config, redis), Console(highlight=False), as_json)


@app.command(
    rich_help_panel=RUN,
    epilog=examples(
        "demo",
        "demo --images path/to/bottle",
        "demo --images path/to/bottle --backbone wide_resnet50_2",
        "demo --json figures.json --serve",
    ),
)
def demo(
    images: Annotated[Path | None, typer.Option(help="Pictures, in the MVTec layout or flat; else rendered.")] = None,
    backbone: Annotated[str, typer.Option(help='"tiny", torchvision\'s name, or "module:function".')] = "tiny",
    weights: Annotated[str | None, typer.Option(help='"bundled", "pretrained", "random:SEED" or a path.')] = None,
    layers: Annotated[str | None, typer.Option(help="Layers of the backbone, comma-separated.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there, too.")] = None,
    report: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("demo-report"),
    rate: Annotated[float, typer.Option(min=0, help="Pictures per second; 0 is as fast as it goes.")] = 0.0,
    serve: Annotated[bool, typer.Option("--serve", help="Open the live page; go on until interrupted.")] = False,
    backbones: Annotated[bool, typer.Option(help="Compare backbones at the end, without --serve.")] = True,
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


app.command(
    rich_help_panel=LOOK,
    epilog=examples("console --config config.toml", "console --redis redis://10.0.0.5:6379/0 --port 8080"),
)(console)
app.command(
    rich_help_panel=LOOK,
    epilog=examples("status --config config.toml --watch", "status --redis redis://127.0.0.1:6379/0 --json"),
)(status)
app.command(
    rich_help_panel=LOOK,
    epilog=examples(
        "tail --config config.toml",
        "tail --line press-3 --anomalies",
        "tail --line press-3 --from-start -n 100 --json > results.jsonl",
    ),
)(tail)
app.command(
    rich_help_panel=ACT,
    epilog=examples(
        "control press-3 normal 1764150000000-0 part-0042",
        "control press-3 rate 0.001 -c config.toml",
        "control press-3 pause --by anna",
    ),
)(control)
app.add_typer(review, name="review", rich_help_panel=LOOK)
app.add_typer(dead, name="dead", rich_help_panel=ACT)
app.add_typer(lines, name="lines", rich_help_panel=ACT)
app.add_typer(snapshots, name="snapshots", rich_help_panel=ACT)
app.command(
    rich_help_panel=RUN,
    epilog=examples("produce pictures --line press-3 --rate 5", "produce pictures -c config.toml --loop"),
)(produce)
app.add_typer(config_commands, name="config", rich_help_panel=PREPARE)
app.add_typer(weights, name="weights", rich_help_panel=PREPARE)
app.command(
    rich_help_panel=PREPARE,
    epilog=examples("bench --json bench.json", "bench --backbone resnet18 --weights random:0 --lines 1,8,64"),
)(bench)
app.command(
    "plan",
    rich_help_panel=PREPARE,
    epilog=examples(
        "plan --lines 10000 --rate 50 --image-kb 80",
        "plan --lines 200 --rate 2 --costs bench.json --json",
    ),
)(plan_fleet)
