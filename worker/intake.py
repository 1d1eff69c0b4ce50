"""What is answered next: own pending entries first, then new ones; what dead consumers left is claimed."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import redis
import structlog

from worker.keeper import Keeper
from worker.metrics import Metrics
from worker.settings import MIB, StreamSettings
from worker.streams.line_streams import Entry, read_answering

READ_ENTRIES = 8  # per line and call
CLAIM_SECONDS = 10.0  # between looks for entries of dead consumers
FADING = 0.9  # of the largest entry seen, with each read

log = structlog.get_logger()


class Taken(NamedTuple):
    """Entries by line; `alone`: one that is to be tried by itself, since something failed with it in hand."""

    entries: list[tuple[str, Entry]]
    alone: bool = False


class Intake:
    """Reads the answering group of all lines as one consumer."""

    def __init__(self, settings: StreamSettings, consumer: str, metrics: Metrics) -> None:
        self.settings = settings
        self.consumer = consumer
        self.metrics = metrics
        self._pending: dict[str, bool] = {}  # lines whose own pending entries come first -> one by one
        self._claim_at = 0.0
        self._largest = float(MIB)  # bytes of an entry, of late

    def rewind(self, lines: Iterable[str], alone: bool = False) -> None:
        """After a start or an error: what was delivered and not answered comes again, before anything new."""
        for name in lines:
            self._pending[name] = alone or self._pending.get(name, False)

    def recovering(self, line: str) -> bool:
        """Whether own pending entries are still to come: what fails is found by answering, which gives it up."""
        return line in self._pending

    def read(self, client: Any, keepers: Mapping[str, Keeper], block_ms: int | None) -> Taken:
        """One read's worth of entries; waits up to block_ms for the first new one."""
        self._claim(keepers)
        for name in sorted(set(self._pending) & set(keepers)):
            alone = self._pending[name]
            own = keepers[name].streams.own_pending(self.consumer, 1 if alone else self._count(1))
            if own:
                self._see(own)
                return Taken([(name, entry) for entry in own], alone)
            del self._pending[name]
        if not keepers:
            time.sleep((block_ms or 0) / 1000)
            return Taken([])
        streams = [keeper.streams for keeper in keepers.values()]
        batches = read_answering(client, streams, self.consumer, self._count(len(streams)), block_ms)
        self._see([entry for _, entries in batches for entry in entries])
        return Taken([(name, entry) for name, entries in batches for entry in entries])

    def _count(self, lines: int) -> int:
        """Entries per line that a read asks for: XREADGROUP counts entries, memory is bytes."""
        return int(max(1, min(READ_ENTRIES, self.settings.prefetch_bytes / (lines * self._largest))))

    def _see(self, entries: list[Entry]) -> None:
        sizes = [len(entry.batch or b"") for entry in entries]
        if sizes:
            self._largest = max(1.0, FADING * self._largest, *sizes)

    def _claim(self, keepers: Mapping[str, Keeper]) -> None:
        """Take over entries whose consumer has left them; an early claim costs work alone, the gate lets one answer."""
        if time.monotonic() < self._claim_at:
            return
        self._claim_at = time.monotonic() + CLAIM_SECONDS
        idle_ms = int(self.settings.claim_seconds * 1000)
        for name, keeper in keepers.items():
            try:
                claimed, lost = keeper.streams.claim(self.consumer, idle_ms, self.settings.dead_max)
            except redis.ResponseError:  # the line's next read or answer is refused for the same reason, and says so
                continue
            self.metrics.images.labels(name, "dead").inc(lost)
            self.metrics.dead_letters.labels(name, "lost").inc(lost)
            self.metrics.entries_lost.labels(name).inc(lost)
            if claimed:
                log.warning("entries that their consumer left are taken over", line=name, entries=claimed, lost=lost)
                self.rewind([name], alone=True)
