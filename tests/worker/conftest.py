"""What the worker's tests share."""

import logging
import math
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog
import torch

from tests.worker import bucket
from tests.worker.calling import Call, Ended
from tests.worker.faults.proxy import Proxy
from tests.worker.faulty import Faults
from tests.worker.faulty import faults as _faults
from tests.worker.helpers import picture, small_settings
from tests.worker.keepers import ENTRIES, MakeKeeper, extract
from tests.worker.station import State
from tests.worker.turning import Run, running
from worker.cli.app import main
from worker.engine import Engine, pick_device
from worker.keeping.keeper import Keeper
from worker.line import CALIBRATING, LEARNING, SCORING, Line
from worker.metrics import Metrics
from worker.runtime.logs import ToStructlog
from worker.settings import (
    CalibrationSettings,
    LearningSettings,
    LineConfig,
    ScoringSettings,
    Settings,
    SnapshotSettings,
    line_configs,
)
from worker.snapshots import SnapshotStore
from worker.streams.line_streams import Entry, LineStreams


@pytest.fixture
def line() -> str:
    """A line that no other test uses."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture(autouse=True)
def _no_outer_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("MHPC_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """Judging takes its share of them for the process that it is in; the next test is another one's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def engine() -> Engine:
    """A real backbone on the CPU, small inputs: 8 x 8 patches of 384 features."""
    return Engine(small_settings().model, pick_device("cpu"), Metrics())


@pytest.fixture
def streams(client: redis.Redis, line: str) -> LineStreams:
    streams = LineStreams(client, line)
    streams.ensure_groups()
    return streams


@pytest.fixture
def make_keeper(streams: LineStreams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeKeeper:
    """A process that may keep the line, and waits for nothing; each call is another one."""
    for name in ("keeping.keeper.ACQUIRE_SECONDS", "keeping.upkeep.TRIM_SECONDS", "keeping.schedule.RETRY_SECONDS"):
        monkeypatch.setattr(f"worker.{name}", 0.0)
    monkeypatch.setattr(
        "worker.keeping.schedule.BRIEF", math.inf
    )  # a disk that is slow for once changes no test's versions

    def make_keeper(fingerprint: str = "f", **settings: Any) -> Keeper:
        config = LineConfig(
            name=streams.line,
            bank_size=60,
            learning=LearningSettings(images=24),
            calibration=CalibrationSettings(images=20, false_positive_rate=0.05),
            scoring=ScoringSettings(top_k=3),
        )
        return Keeper(
            lambda: Line(config, 0.99, torch.device("cpu")),
            LineStreams(streams.client, streams.line),
            SnapshotStore(tmp_path, streams.line),
            SnapshotSettings(**{"directory": tmp_path, "every_images": 8, "every_seconds": 1000, **settings}),
            fingerprint,
            Metrics(),
        )

    return make_keeper


@pytest.fixture
def unbroken(make_keeper: MakeKeeper) -> Line:
    """The line as it is after all ENTRIES, learned without interruption and without Redis."""
    line = make_keeper().line
    for entry in ENTRIES:
        if line.learns:
            line.apply(entry, extract("", Entry(entry, entry.encode())))
    return line


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    """A way to Redis that can be broken."""
    proxy = Proxy(redis.Redis.from_url(redis_url).connection_pool.connection_kwargs["port"])
    yield proxy
    proxy.close()


@pytest.fixture
def faults() -> Iterator[Faults]:
    """What goes wrong at faulty://."""
    _faults.reset()
    yield _faults
    _faults.reset()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """An S3 of this machine's own, at that address."""
    with bucket.serving() as address:
        yield address


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Run a command in this process, as the console script does."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def call(*arguments: str | Path) -> Ended:
        monkeypatch.setattr("sys.argv", ["mhpc-worker", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        return Ended(code, *capfd.readouterr())

    yield call
    structlog.reset_defaults()  # logs go to this test's stderr
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if not isinstance(handler, ToStructlog)]
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def config(tmp_path: Path, redis_url: str, line: str) -> Callable[..., Path]:
    """A file with a line and a small model; the text is put in front, other tables after it."""

    def write(
        top: str = "", model: str = 'backbone = "resnet18"\nweights = "random:0"', lines: str = "", url: str = redis_url
    ) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(
            f"{top}\n[redis]\nurl = {url!r}\n[model]\ninput_shape = [64, 64]\n{model}\n"
            f"[snapshots]\ndirectory = '{tmp_path / 'snapshots'}'\n[http]\nport = 0\n"
            + (lines or f"[[lines]]\nname = {line!r}")
        )
        return path

    return write


@pytest.fixture
def run() -> Iterator[Run]:
    with ExitStack() as stack:
        yield lambda settings: stack.enter_context(running(settings))


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> Callable[..., Settings]:
    def settings(*names: str, url: str = redis_url, **sections: Any) -> Settings:
        snapshots = {"directory": tmp_path / "snapshots", "every_images": 8, "every_seconds": 0.5}
        return small_settings(*names, **{"redis": {"url": url}, "snapshots": snapshots, **sections})

    return settings


@pytest.fixture(scope="session")
def states(engine: Engine) -> dict[str, State]:
    """What a line has learned when it begins to calibrate, and when it begins to score."""
    line = Line(line_configs(small_settings("any"))[0], 0.99, torch.device("cpu"))
    reached = {}
    for number in range(9):
        images = [engine.prepare(picture(2000 + 4 * number + i)) for i in range(4)]
        line.apply(f"{number + 1}-0", engine.batches(images))
        reached[line.phase] = line.state()
    assert set(reached) == {LEARNING, CALIBRATING, SCORING}
    return reached
