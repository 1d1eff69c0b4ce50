"""What the keeper sees of a line that scores: the threshold that its scores ask for, and what people are shown."""

import time

import numpy as np

from mhpc.core.calibration import Threshold, track_threshold, tracked_scores
from worker.line import PHASES, SCORING, Line
from worker.message import decode_result
from worker.metrics import Metrics
from worker.streams.line_streams import LineStreams, newest_id

READ = 500  # results in one turn
REFIT_EVERY = 64  # scores
MOVED = 0.01  # share of the threshold: what is less is no news
REFIT_SECONDS = 300.0  # between versions that differ by the threshold alone


class ThresholdTracker:
    """Follows a line's results, of all workers, from the moment it is made."""

    def __init__(self, streams: LineStreams) -> None:
        self.streams = streams
        self._last = newest_id(streams.client, streams.scores)
        self._recent: list[float] = []
        self._since_refit = 0
        self._refit_at = time.monotonic()

    def refit(self, line: Line) -> Threshold | None:
        """The threshold that the newest scores ask for, where it is news."""
        self._read(line)
        scoring, current = line.config.scoring, line.threshold
        due = self._since_refit >= REFIT_EVERY and time.monotonic() >= self._refit_at
        if not due or current is None or not scoring.track_threshold:
            return None
        self._since_refit = 0
        scores = np.concatenate([line.calibration_scores.numpy(), self._recent])
        window = scores[-tracked_scores(line.false_positive_rate) :]
        tracked = track_threshold(line.fitted(), window, line.false_positive_rate, scoring.track_bound)
        news = abs(tracked.value / current.value - 1) > MOVED or tracked.provisional != current.provisional
        if news:
            self._refit_at = time.monotonic() + REFIT_SECONDS
        return tracked if news else None

    def _read(self, line: Line) -> None:
        for entry, fields in self.streams.client.xrange(self.streams.scores, min=f"({self._last}", count=READ):
            self._last = entry.decode()
            result = decode_result(fields[b"result"])
            if result["phase"] == SCORING and result["score"] is not None:
                self._recent.append(result["score"])
                self._since_refit += 1
        del self._recent[: -tracked_scores(line.false_positive_rate)]


def shown(line: Line) -> dict[str, str]:
    """What the state hash says to people beside what is committed."""
    done, wanted = line.progress
    outside, change = line.learner.convergence_[:2]
    return {
        "progress": "" if line.phase == SCORING else f"{done}/{wanted}",
        "outside_share": f"{outside:.4g}",
        "subspace_change": f"{change:.4g}",
        "quarantined": str(line.learner.images_quarantined_),
        "drift": "" if line.monitor is None else f"{line.monitor.drift_:.4g}",
    }


def set_gauges(metrics: Metrics, line: Line) -> None:
    """The line's gauges."""
    name = line.name
    for phase in PHASES:
        metrics.line_phase.labels(name, phase).set(phase == line.shown_phase)
    outside, change = line.learner.convergence_[:2]
    metrics.learning_outside_share.labels(name).set(outside)
    metrics.learning_subspace_change.labels(name).set(change)
    if line.monitor is not None:
        metrics.drift.labels(name).set(line.monitor.drift_)
    if (threshold := line.serving.threshold) is not None:
        metrics.threshold.labels(name).set(threshold)
    if (bank := line.learner.bank_) is not None:
        metrics.bank_anchors.labels(name).set(len(bank))
        metrics.bank_radius.labels(name).set(bank.radius)
        metrics.pca_components.labels(name).set(bank.images.shape[1])
