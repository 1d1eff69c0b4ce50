"""`mhpc-worker check`: all that a worker needs, tried one after the other."""

import os
import tempfile
from collections.abc import Callable
from typing import Any

from rich.console import Console

from worker.errors import ConfigurationError, RedisUnreachableError, SnapshotError, WorkerError, one_line
from worker.settings import Settings, line_configs
from worker.streams.address import shown
from worker.streams.client import OLDEST_VERSION, connect
from worker.streams.rights import missing_rights


def run_checks(settings: Settings, console: Console) -> None:
    """Print a checklist, each item with what was found or the remedy.

    Raises:
        WorkerError: the first item that failed, after all were tried; its exit code is the command's.
    """
    items: list[tuple[str, Callable[[Settings], str]]] = [
        ("lines", _lines),
        ("redis", _redis),
        ("snapshots", _snapshots),
        ("http", _http),
        ("device", _device),
        ("model", _model),
    ]
    failures = []
    for name, item in items:
        try:
            console.print(f"[green]ok  [/] {name:<10}", item(settings), soft_wrap=True)
        except WorkerError as error:
            failures.append(error)
            console.print(f"[red]FAIL[/] {name:<10} see below", soft_wrap=True)
    for further in failures[1:]:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {one_line(further)}", markup=False)
    if failures:
        raise failures[0]


def _lines(settings: Settings) -> str:
    if not settings.lines:
        raise ConfigurationError('no lines: add a table [[lines]] with a name, such as name = "press-3"')
    return ", ".join(
        f"{line.name} (learns {line.learning.images}, calibrates {line.calibration.images}, bank {line.bank_size})"
        for line in line_configs(settings)
    )


def _redis(settings: Settings) -> str:
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
    return f"{version} at {shown(settings.redis.url.get_secret_value())}"


def _version(client: Any) -> str:
    """By HELLO, which needs no right, as INFO does."""
    hello: dict[bytes, Any] = dict(zip(*[iter(client.execute_command("HELLO"))] * 2, strict=True))
    return str(hello[b"version"].decode())


def _snapshots(settings: Settings) -> str:
    directory = settings.snapshots.directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory) as file:
            file.write(b"mhpc")
            file.flush()
            os.fsync(file.fileno())
        free = os.statvfs(directory)
    except OSError as error:
        raise SnapshotError(f"snapshots.directory {directory} cannot be written: {error}") from None
    return f"{directory.resolve()}, {free.f_bavail * free.f_frsize / 1e9:.1f} GB free"


def _http(settings: Settings) -> str:
    from worker.http import bound

    with bound(settings.http) as socket:
        host, port = socket.getsockname()[:2]
    return f"{host}:{port} is free"


def _device(settings: Settings) -> str:
    from worker.engine import pick_device

    return str(pick_device(settings.worker.device))


def _model(settings: Settings) -> str:
    from worker.engine import Engine, pick_device
    from worker.metrics import Metrics

    model = settings.model
    engine = Engine(model, pick_device(settings.worker.device), Metrics())
    h, w = engine.grid
    return f"{model.backbone} ({model.weights_source or 'its own weights'}), {h} x {w} patches"
