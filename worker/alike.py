"""Warns where a line's keeper goes by other settings for it than this worker; the keeper's hold."""

import hashlib
import time

import structlog

from worker.keeping.keeper import Keeper
from worker.metrics import Metrics
from worker.settings import LineConfig
from worker.streams.ids import worker_of

LOOK_SECONDS = 2.0
FIELD = "settings"  # of the line's state: its keeper's digest

log = structlog.get_logger()


def digest(config: LineConfig) -> str:
    """Of what a line's keeper goes by; the weight is each worker's own."""
    return hashlib.sha256(config.model_dump_json(exclude={"weight"}).encode()).hexdigest()[:12]


class Alike:
    """Compares this worker's settings of lines that others keep with those that they are kept by."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.digests: dict[str, str] = {}  # by line, this worker's
        self._look_at: dict[str, float] = {}
        self._told: dict[str, str] = {}  # line -> the other digest that was told of

    def is_due(self, keeper: Keeper) -> bool:
        """Now and then; not before it is loaded: the lease may be that of this worker's last process until then."""
        return keeper.loaded and time.monotonic() >= self._look_at.get(keeper.line.name, 0.0)

    def look(self, keeper: Keeper) -> None:
        """Each difference is told once, and shown for as long as it is there."""
        name = keeper.line.name
        self._look_at[name] = time.monotonic() + LOOK_SECONDS
        holder = _other_holder(keeper)
        own = self.digests.get(name)
        shown = keeper.streams.state().get(FIELD, own) if holder else own  # a release before this shows none
        differs = shown != own
        self.metrics.line_settings_differ.labels(name).set(differs)
        if not differs:
            self._told.pop(name, None)
        elif self._told.get(name) != shown:
            self._told[name] = str(shown)
            log.warning(
                "a line is kept by other settings than this worker's, or by another release: it is as its keeper is "
                "told; let all have the same",
                line=name,
                keeper=worker_of(holder),
            )

    def forget(self, name: str) -> None:
        """The line is served no more."""
        self._look_at.pop(name, None)
        self._told.pop(name, None)


def _other_holder(keeper: Keeper) -> str:
    """Who else holds the line's lease; "" where nobody does: what its state shows is of a keeper that is gone."""
    held = None if keeper.epoch else keeper.streams.client.get(keeper.streams.lease)
    holder = held.decode(errors="replace") if held else ""
    return "" if holder == keeper.streams.holder else holder
