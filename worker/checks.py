"""`mhpc-worker check`: all that a worker needs, tried one after the other."""

import json
import os
import tempfile
import urllib.request
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.check_lines import NOTE, OK, Told, look_at_room, look_at_streams, look_at_versions
from worker.errors import ConfigurationError, RedisUnreachableError, SnapshotError, StoreError, WorkerError, one_line
from worker.fleet import declared, require_lines
from worker.settings import LINES_KEY, LineSettings, Settings, line_configs
from worker.storage.folders import remedy
from worker.streams.address import shown
from worker.streams.client import OLDEST_VERSION, connect
from worker.streams.rights import missing_fleet_rights, missing_rights

if TYPE_CHECKING:
    from worker.engine import Engine

SKIPPED, FAILED = "-", "FAIL"
STYLES = {OK: "green", NOTE: "yellow", FAILED: "bold red", SKIPPED: "dim"}
PROBE_SECONDS = 2.0
BY_THE_DRIVER = "look at its driver's log (dmesg; nvidia-smi for a GPU) and at who else uses it, or set worker.device"


class Seen:
    """What one item finds, and those after it need."""

    client: Any = None
    declared: tuple[LineSettings, ...] = ()
    engine: "Engine | None" = None


def run_checks(settings: Settings, console: Console, as_json: bool = False) -> None:
    """Print a checklist, each item with what was found or the remedy.

    Raises:
        WorkerError: the first item that failed, after all were tried; its exit code is the command's.
    """
    failures = list[WorkerError]()
    for item, outcome, said in _looked_at(settings):
        if isinstance(said, WorkerError):
            failures.append(said)
            outcome = FAILED
        text = one_line(said)
        if as_json:
            code = said.exit_code if isinstance(said, WorkerError) else 0
            typer.echo(json.dumps({"item": item, "outcome": outcome, "text": text, "exit_code": code}))
        else:
            _print(console, item, outcome, text)
    if failures:
        raise failures[0]


def _looked_at(settings: Settings) -> Iterator[tuple[str, str, str | WorkerError]]:
    seen = Seen()
    items: dict[str, Callable[[Settings, Seen], Iterator[Told]]] = {
        "lines": _lines,
        "redis": _redis,
        "streams": _streams,
        "snapshots": _snapshots,
        "http": _http,
        "device": _device,
        "model": _model,
        "versions": _versions,
        "disk": _disk,
    }
    for name, item in items.items():
        try:
            for outcome, said in item(settings, seen):
                yield name, outcome, said
            own = {line.name for line in settings.lines}
            others = [line for line in seen.declared if line.name not in own]
            settings = settings.model_copy(update={"lines": (*settings.lines, *others)})
        except WorkerError as error:
            yield name, FAILED, error


def _print(console: Console, item: str, outcome: str, text: str) -> None:
    """Below each other on a terminal; elsewhere each on one line, however long."""
    if not console.is_terminal:
        console.print(f"{outcome:<4} {item:<10} {text}", soft_wrap=True, markup=False)
        return
    row = Table.grid(padding=(0, 1))
    row.add_column(width=4)
    row.add_column(width=10)
    row.add_column(overflow="fold")
    row.add_row(Text(outcome, STYLES[outcome]), item, Text(text))
    console.print(row)


def _lines(settings: Settings, _: Seen) -> Iterator[Told]:
    require_lines(settings)
    if not settings.lines:
        yield OK, "none of its own; those that are declared for the fleet come with redis"
        return
    yield (
        OK,
        ", ".join(
            f"{line.name} (learns {line.learning.images}, calibrates {line.calibration.images}, bank {line.bank_size})"
            for line in line_configs(settings)
        ),
    )


def _redis(settings: Settings, seen: Seen) -> Iterator[Told]:
    client: Any = connect(settings.redis)
    version = _version(client)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise RedisUnreachableError(f"Redis {version} is too old: {oldest} or newer is needed")
    for line in settings.lines:
        if missing := missing_rights(client, line.name):
            raise RedisUnreachableError(
                f"the Redis user may not: {', '.join(missing)}, on keys mhpc:{{{line.name}}}:*; "
                "grant it what deploy/redis/users.acl grants user worker"
            )
    if settings.worker.fleet:
        seen.declared = yield from _fleet(client)
    seen.client = client
    yield OK, f"{version} at {shown(settings.redis.url.get_secret_value())}, with all rights that a worker needs"


def _fleet(client: Any) -> Generator[Told, None, tuple[LineSettings, ...]]:
    """What is declared for all workers of the fleet."""
    for key, missing in missing_fleet_rights(client).items():
        raise RedisUnreachableError(
            f"the Redis user may not: {', '.join(missing)}, on key {key}; grant it what deploy/redis/users.acl grants "
            "user worker"
        )
    lines, problems = declared(client.hgetall(LINES_KEY))
    for name, problem in problems.items():
        yield NOTE, ConfigurationError(f"line {name}: {problem}; mhpc-worker lines add or remove mends it")
    if lines:
        yield OK, f"declared for the fleet: {', '.join(lines)}"
    else:
        yield NOTE, "no line is declared for the fleet; mhpc-worker lines add declares one"
    return tuple(lines.values())


def _version(client: Any) -> str:
    """By HELLO, which needs no right, as INFO does."""
    hello: dict[bytes, Any] = dict(zip(*[iter(client.execute_command("HELLO"))] * 2, strict=True))
    return str(hello[b"version"].decode())


def _streams(settings: Settings, seen: Seen) -> Iterator[Told]:
    if seen.client is None:
        yield SKIPPED, "not looked at: redis comes first"
    else:
        yield from look_at_streams(settings, seen.client)


def _snapshots(settings: Settings, _: Seen) -> Iterator[Told]:
    directory = settings.snapshots.directory
    if isinstance(directory, str):
        yield _object_store(directory, settings.snapshots.timeout_seconds)
        if problem := unwritable(settings.snapshots.cache, "snapshots.cache"):
            raise SnapshotError(problem)
        yield OK, f"{settings.snapshots.cache.resolve()} can be written"
        return
    if problem := unwritable(directory):
        raise SnapshotError(problem)
    yield OK, f"{directory.resolve()} can be written"


def unwritable(directory: Path, key: str = "snapshots.directory") -> str:
    """What is to be said where versions cannot be written to the folder of that key, else ""; the folder is made."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory) as file:
            file.write(b"mhpc")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"{key} {directory} cannot be written: {error}; {remedy(error, 'mend its rights, or name another')}"
    return ""


def _object_store(url: str, seconds: float) -> Told:
    from worker.runtime.errands import run_within
    from worker.storage.objects import probe

    try:
        run_within(lambda: probe(url), True, seconds, url)
    except StoreError as error:
        raise SnapshotError(str(error)) from None
    return OK, f"{url} can be written and read, and overwrites nothing"


def _http(settings: Settings, _: Seen) -> Iterator[Told]:
    from worker.http import bound

    try:
        with bound(settings.http) as socket:
            host, port = socket.getsockname()[:2]
    except ConfigurationError:
        if not _worker_answers(settings):
            raise
        yield (
            NOTE,
            f"{settings.http.host}:{settings.http.port} is a worker's that runs; another needs another http.port",
        )
    else:
        yield OK, f"{host}:{port} is free"


def _worker_answers(settings: Settings) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.http.host, settings.http.host)  # noqa: S104 - compared
    host = f"[{host}]" if ":" in host else host
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{host}:{settings.http.port}/metrics", timeout=PROBE_SECONDS) as reply:
            return b"mhpc_build_info" in reply.read()
    except (OSError, ValueError):  # nobody, or somebody else
        return False


def _device(settings: Settings, _: Seen) -> Iterator[Told]:
    from worker.engine import pick_device

    yield OK, str(pick_device(settings.worker.device))


def _model(settings: Settings, seen: Seen) -> Iterator[Told]:
    from worker.devices import device_failures
    from worker.engine import Engine, pick_device
    from worker.metrics import Metrics

    model, weights = settings.model, _weights(settings)
    with device_failures(settings.worker.device, BY_THE_DRIVER):
        seen.engine = Engine(model, pick_device(settings.worker.device), Metrics())
    h, w = seen.engine.grid
    yield OK, f"{model.backbone} ({weights}), {h} x {w} patches"


def _weights(settings: Settings) -> str:
    """Where they come from; a file's checksums are compared, where it has some."""
    model = settings.model
    source = model.weights_source
    if source is None:
        return "its own weights"
    if source in ("bundled", "pretrained") or source.startswith("random:") or not Path(source).exists():
        return source
    from worker.weights import verify

    return f"{source}; {', '.join(verify(Path(source), model.backbone).checked)}"


def _versions(settings: Settings, seen: Seen) -> Iterator[Told]:
    if seen.client is None or seen.engine is None:
        yield SKIPPED, "not looked at: redis and model come first"
    else:
        yield from look_at_versions(settings, seen.client, seen.engine.fingerprint)


def _disk(settings: Settings, seen: Seen) -> Iterator[Told]:
    directory = settings.snapshots.directory
    if isinstance(directory, Path) and not directory.is_dir():
        yield SKIPPED, "not looked at: snapshots come first"
        return
    yield from look_at_room(settings, None if seen.engine is None else _features(seen.engine))


def _features(engine: "Engine") -> int:
    import torch

    from worker.devices import device_failures

    H, W = engine.settings.input_shape
    with device_failures(str(engine.device), BY_THE_DRIVER):
        return engine.forward([torch.zeros(3, H, W, dtype=torch.uint8)]).shape[2]
