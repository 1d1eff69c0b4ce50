"""Answering as a worker has it, without a loop around it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.worker.helpers import encoded, picture, small_settings
from worker.answering.features import FeatureCache
from worker.answering.turns import Answering
from worker.engine import Engine
from worker.keeping.keeper import Keeper
from worker.line import Line
from worker.message import decode_result
from worker.metrics import Metrics
from worker.settings import line_configs
from worker.snapshots import SnapshotStore
from worker.streams.line_streams import ANSWERING, LineStreams

MODEL = "0000000001-0000000001"
State = tuple[dict[str, Tensor], dict[str, Any]]


class Station:
    """Answering for some lines, as a worker has it, without a loop around it."""

    def __init__(
        self, client: Any, engine: Engine, folder: Path, *names: str, room: int = 2**28, unique_ids: int = 0
    ) -> None:
        settings = small_settings(*names, streams={"payload_bytes": 100, "unique_ids": unique_ids})
        self.client, self.engine, self.metrics, self.cache = client, engine, Metrics(), FeatureCache(room)
        self.keepers = {
            config.name: Keeper(
                lambda config=config: Line(config, 0.99, torch.device("cpu")),  # type: ignore[misc]  # binds the loop's
                LineStreams(client, config.name),
                SnapshotStore(folder, config.name),
                settings.snapshots,
                engine.fingerprint,
                self.metrics,
            )
            for config in line_configs(settings)
        }
        streams = {name: keeper.streams for name, keeper in self.keepers.items()}
        self.answering = Answering(settings, engine, self.metrics, streams, {}, self.cache)
        for keeper in self.keepers.values():
            keeper.streams.ensure_groups()
            keeper.epoch = 1  # it keeps the line, as far as answering is concerned

    def line(self, name: str) -> Line:
        return self.keepers[name].line

    def streams(self, name: str) -> LineStreams:
        return self.keepers[name].streams

    def restore(self, name: str, state: State) -> None:
        """Answer by this version."""
        self.line(name).restore(*state)
        self.line(name).serving = self.line(name).served_by(MODEL)

    def send(self, name: str, batch: bytes) -> str:
        return str(self.client.xadd(self.streams(name).images, {"batch": batch}).decode())

    def turn(self) -> int:
        """Answer one read's worth of entries; returns how many there were."""
        read = self.answering.turn(self.client, self.keepers, block_ms=None)
        self.answering.finish(self.client, self.keepers, 60)
        return read

    def results(self, name: str) -> list[dict[str, Any]]:
        return [decode_result(fields[b"result"]) for _, fields in self.client.xrange(self.streams(name).scores)]

    def letters(self, name: str) -> list[dict[str, str]]:
        entries = self.client.xrange(self.streams(name).dead)
        return [{key.decode(): value.decode("latin1") for key, value in fields.items()} for _, fields in entries]

    def pending(self, name: str) -> int:
        return self.streams(name).backlog(ANSWERING).pending

    def counted(self, metric: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"mhpc_{metric}", labels) or 0.0


def forwards(engine: Engine) -> float:
    """Forward passes so far."""
    return engine.metrics.registry.get_sample_value("mhpc_stage_seconds_count", {"stage": "forward"}) or 0.0


def stained(seed: int) -> bytes:
    pixels = picture(seed)
    pixels[10:30, 10:30] = (255, 0, 0)
    return encoded(pixels)
