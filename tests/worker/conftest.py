"""What the worker's tests share."""

import os
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from tests.worker.helpers import small_settings
from tests.worker.keeping import ENTRIES, MakeKeeper, extract
from worker.engine import Engine, pick_device
from worker.keeper import Keeper
from worker.line import Line
from worker.metrics import Metrics
from worker.settings import CalibrationSettings, LearningSettings, LineConfig, ScoringSettings, SnapshotSettings
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
    for name in ("ACQUIRE_SECONDS", "TRIM_SECONDS", "RETRY_SECONDS"):
        monkeypatch.setattr(f"worker.keeper.{name}", 0.0)

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
