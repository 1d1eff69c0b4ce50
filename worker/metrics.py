"""Every Prometheus name of the worker, once."""

import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from worker.message import REASONS

OUTCOMES = ("scored", "unscored", "dead", "learned", "quarantined", "skipped")
STAGES = ("read", "decode", "forward", "learn", "score", "publish", "snapshot")
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
OF_THE_KEEPER = (
    "threshold", "drift", "line_phase", "bank_anchors", "bank_radius", "pca_components", "learning_outside_share",
    "learning_subspace_change",
)  # fmt: skip
OF_THE_BACKLOG = ("stream_lag", "pending", "oldest_pending")
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.25, 1.5, 2, 3, 5)


class Metrics:
    """The worker's metrics, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        self._name_answering()
        self._name_learning()
        self._name_fleet()
        self.build_info = self._gauge("build_info", "1; the versions are labels.", "version", "python", "torch")
        self.build_info.labels(version("mhpc"), platform.python_version(), version("torch")).set(1)
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        self._inner = [0.0]  # seconds of the stages within the one that is under way

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"mhpc_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"mhpc_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"mhpc_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _name_answering(self) -> None:
        self.images = self._counter("images_total", "Images by what became of them.", "line", "outcome")
        self.stage_seconds = self._histogram("stage_seconds", "Time spent in a stage, per call.", SECONDS, "stage")
        self.end_to_end_seconds = self._histogram(
            "end_to_end_seconds", "From the entry's id to its result, by Redis' clock.", SECONDS, "line"
        )
        self.stream_lag = self._gauge(
            "stream_lag_entries", "Entries not read for answering; NaN before Redis 7.", "line"
        )
        self.pending = self._gauge("pending_entries", "Entries read for answering and not yet answered.", "line")
        self.oldest_pending = self._gauge("oldest_pending_seconds", "Age of the oldest of those.", "line")
        self.score_to_threshold = self._histogram(
            "score_to_threshold", "Scores in parts of the line's threshold.", RATIOS, "line"
        )
        self.threshold = self._gauge("threshold", "Scores above it are anomalous.", "line")
        self.anomalies = self._counter("anomalies_total", "Images that were found anomalous.", "line")
        self.dead_letters = self._counter("dead_letters_total", "Dead letters by reason.", "line", "reason")
        self.entries_lost = self._counter("entries_lost_total", "Entries trimmed before they were answered.", "line")
        self.redis_reconnects = self._counter(
            "redis_reconnects_total", "Times that Redis was not reached for a while, and was again."
        )

    def _name_learning(self) -> None:
        self.drift = self._gauge("drift", "Distance of recent images from calibration's; above 1 is an alarm.", "line")
        self.learning_outside_share = self._gauge(
            "learning_outside_share", "Share of new patches that are unlike all in the bank, while it learns.", "line"
        )
        self.learning_subspace_change = self._gauge(
            "learning_subspace_change", "Share of the space that the last refresh turned to.", "line"
        )
        self.bank_anchors = self._gauge("bank_anchors", "Anchors in the memory bank.", "line")
        self.bank_radius = self._gauge("bank_radius", "Radius that the anchors cover, in standard deviations.", "line")
        self.pca_components = self._gauge("pca_components", "Dimensions of the whitened space.", "line")
        self.snapshot_last_success = self._gauge(
            "snapshot_last_success_timestamp_seconds", "When the last snapshot was committed.", "line"
        )
        self.snapshot_owed_seconds = self._gauge(
            "snapshot_owed_seconds",
            "How long what was learned or commanded waits for a snapshot; 0: all is in one.",
            "line",
        )
        self.line_keeper = self._gauge(
            "line_keeper", "1 where this worker keeps the line: it learns, and commits.", "line"
        )
        self.line_phase = self._gauge("line_phase", "1 for the phase that the line is in.", "line", "phase")

        self.line_settings_differ = self._gauge(
            "line_settings_differ", "1 where another worker keeps the line, by other settings than this one's.", "line"
        )

    def _name_fleet(self) -> None:
        self.fleet_workers = self._gauge("fleet_workers", "Workers of the fleet that are there; 0: this is in none.")
        self.fleet_problems = self._gauge(
            "fleet_problems", "Lines that are declared for the fleet so that it does not hold here."
        )

    def open_line(self, line: str) -> None:
        """Begin a line's counters at zero, so that the first increase of each is seen as one."""
        for outcome in OUTCOMES:
            self.images.labels(line, outcome)
        for reason in REASONS:
            self.dead_letters.labels(line, reason)
        self.anomalies.labels(line)
        self.entries_lost.labels(line)

    def forget_keeping(self, line: str) -> None:
        """Drop what only a line's keeper knows: another one tells it now, and an alert must not go on by the old."""
        self._drop(line, [getattr(self, name) for name in OF_THE_KEEPER])

    def forget_backlog(self, line: str) -> None:
        """Drop what waits of a line of which Redis does not tell: an alert must not go on by the old."""
        self._drop(line, [getattr(self, name) for name in OF_THE_BACKLOG])

    def close_line(self, line: str) -> None:
        """Drop a line's series: it is served no more."""
        self._drop(line, vars(self).values())

    def _drop(self, line: str, collectors: Iterable[Any]) -> None:
        for collector in collectors:
            if isinstance(collector, MetricWrapperBase) and "line" in collector._labelnames:
                collector.remove_by_labels({"line": line})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, one of STAGES, less those within it; on the thread of the work loop alone.

        So the stages add up to the loop's time.
        """
        with self.stages({name: 1.0}):
            yield

    @contextmanager
    def stages(self, parts: Mapping[str, float], waited: float = 0.0) -> Iterator[None]:
        """Time stages that the loop goes through, or waits for, all at once; each has its part of the time in their
        sum, as it is in the end.

        Args:
            waited: seconds that the loop has waited for them already, outside of any stage.
        """
        began = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            own = waited + seconds - self._inner.pop()
            self._inner[-1] += seconds
            for name, part in parts.items():
                self.stage_seconds.labels(name).observe(own * part / (sum(parts.values()) or 1.0))
