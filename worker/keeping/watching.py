"""What the keeper sees of a line that scores: the threshold that its scores ask for, and what people are shown."""

import json
import math
import time
from collections.abc import Iterable
from typing import Any

import msgpack
import numpy as np
import structlog
from torch import Tensor

from mhpc.core.calibration import Threshold
from worker.learners import fitted_threshold
from worker.line import PHASES, SCORING, Line
from worker.metrics import Metrics
from worker.records import Serving
from worker.streams.ids import entry_key
from worker.streams.line_streams import LineStreams, newest_id
from worker.streams.reads import backlogs

READ, PAGES = 500, 10  # results in one call, calls in one turn
REFIT_EVERY = 64  # scores
BINS = 24  # of calibration's scores at most, as people are shown them; fewer where these are few
BACKLOG_SECONDS = 2.0  # between looks at what waits
MOVED = 0.01  # share of the threshold: what is less is no news

log = structlog.get_logger()


class ThresholdTracker:
    """Follows a line's results, those of all workers, and keeps `seconds` between versions for the threshold alone."""

    def __init__(self, streams: LineStreams, seconds: float) -> None:
        self.streams = streams
        self.seconds = seconds
        self._since_refit = 0
        self._refit_at = time.monotonic()

    def refit(self, line: Line) -> Threshold | None:
        """The threshold that the newest scores ask for, where it is news."""
        current = line.threshold
        if line.phase != SCORING or line.paused or current is None or not line.config.scoring.track_threshold:
            return None
        caught_up = self._read(line)  # what lies far back says little of now
        if not caught_up or self._since_refit < REFIT_EVERY or time.monotonic() < self._refit_at:
            return None
        self._since_refit = 0
        tracked = line.fitted()
        if abs(tracked.value / current.value - 1) <= MOVED and tracked.provisional == current.provisional:
            return None
        self._refit_at = time.monotonic() + self.seconds
        return tracked

    def _read(self, line: Line) -> bool:
        """Let the line follow the results behind those that it knows; returns whether that was all of them."""
        if not line.scores_through:
            line.follow([], newest_id(self.streams.client, self.streams.scores))
            self._since_refit = 0
        for _ in range(PAGES):
            page = self.streams.client.xrange(self.streams.scores, min=f"({line.scores_through}", count=READ)
            if page:
                found = (_score(fields.get(b"result"), line.scores_since) for _, fields in page)
                scores = [score for score in found if score is not None]
                line.follow(scores, page[-1][0].decode())
                self._since_refit += len(scores)
            if len(page) < READ:
                return True
        return False


def _score(packed: bytes | None, since: str) -> float | None:
    """The score of a result in phase scoring, by the version `since` or one after it: who has not loaded that yet goes
    on with the one before. None of any other, and of what is no result: anybody may write there."""
    try:
        result = msgpack.unpackb(packed or b"")
    except (ValueError, msgpack.UnpackException, RecursionError):
        return None
    if not isinstance(result, dict) or result.get("phase") != SCORING:
        return None
    model, score = result.get("model"), result.get("score")
    followed = type(model) is str and model >= since and type(score) is float and 0 <= score < math.inf
    return score if followed else None


def fit_to_rate(line: Line) -> bool:
    """Have the threshold that the line's rate asks for, if the restored one is for another; whether it is to be
    committed yet. That is its keeper's to do: under one version's name all answer by one threshold."""
    if line.threshold is None:
        return False
    if line.fitted_rate != line.false_positive_rate:
        line.threshold = line.fitted()
    return line.threshold.value != line.serving.threshold


def state_fields(line: Line, model: str, serving: Serving) -> dict[str, str]:
    """What the state hash says of a version."""
    limit = line.threshold
    return {
        "phase": line.shown_phase,
        "model": model,
        "applied_through": line.applied_through,
        "commands_through": line.commands_through,
        "taken": str(sum(line.counts)),
        "threshold": "" if serving.threshold is None else repr(serving.threshold),
        "provisional": str(int(serving.provisional)),
        "problem": "",
        "rate": repr(line.false_positive_rate),
        "rate_interval": "" if limit is None else f"{limit.rate_low:.4g} {limit.rate_high:.4g}",
        "calibration": score_bins(line.calibration_scores),
        **display_fields(line, serving),
    }


def check_loadable(line: Line, model: str) -> None:
    """What a keeper will make of a version that was loaded; raises where its tensors do not go together."""
    state_fields(line, model, line.serving)
    if line.threshold is not None:
        fitted_threshold(line.calibration_scores, line.recent_scores, line.false_positive_rate, line.config.scoring)


def score_bins(scores: Tensor) -> str:
    """How calibration's scores [N] lie, as JSON of some 200 bytes: equal bins' counts, `low` to `high`; "" for none."""
    if not len(scores):
        return ""
    counts, edges = np.histogram(scores.numpy(), min(BINS, round(2 * len(scores) ** (1 / 3))))  # Rice's rule
    low, high = (float(f"{edge:.6g}") for edge in (edges[0], edges[-1]))
    return json.dumps({"low": low, "high": high, "counts": counts.tolist()}, separators=(",", ":"))


def display_fields(line: Line, serving: Serving) -> dict[str, str]:
    """What the state hash says to people beside what is committed, while this answers."""
    done, wanted = line.progress
    outside, change = line.convergence[:2]
    return {
        "progress": "" if line.phase == SCORING else f"{done}/{wanted}",
        "outside_share": f"{outside:.4g}",
        "subspace_change": f"{change:.4g}",
        "quarantined": str(line.counts[1] + line.doubted),
        "drift": "" if (drift := serving.drift) is None else f"{drift:.4g}",
    }


def set_gauges(metrics: Metrics, line: Line) -> None:
    """The line's gauges."""
    name = line.name
    for phase in PHASES:
        metrics.line_phase.labels(name, phase).set(phase == line.shown_phase)
    outside, change = line.convergence[:2]
    metrics.learning_outside_share.labels(name).set(outside)
    metrics.learning_subspace_change.labels(name).set(change)
    # 0 where nobody watches: an alert must not go on by what was before a relearn.
    metrics.drift.labels(name).set(line.serving.drift or 0.0)
    if (threshold := line.serving.threshold) is not None:
        metrics.threshold.labels(name).set(threshold)
    if (bank := line.learner.bank_) is not None:
        metrics.bank_anchors.labels(name).set(len(bank))
        metrics.bank_radius.labels(name).set(bank.radius)
        metrics.pca_components.labels(name).set(bank.images.shape[1])


def tell_opened(line: Line, epoch: int) -> None:
    """Log that the line is kept from now on, and where a command's rate stands over the configured one."""
    (done, wanted), configured = line.progress, line.config.calibration.false_positive_rate
    log.info("line opened", line=line.name, epoch=epoch, phase=line.phase, images=done, of=wanted)
    if line.false_positive_rate != configured:
        log.warning(
            "the false-positive rate is what a command set, not calibration.false_positive_rate; "
            f"mhpc-worker control {line.name} rate {configured:g} has the configured one hold again",
            line=line.name,
            rate=line.rate,
            configured=configured,
        )


class Backlogs:
    """What waits to be answered, and for how long, of each line."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._at = 0.0

    def __call__(self, client: Any, lines: Iterable[LineStreams]) -> None:
        """Show it now and then; of a line that Redis does not tell of, nothing rather than what was."""
        if time.monotonic() < self._at:
            return
        self._at = time.monotonic() + BACKLOG_SECONDS
        seconds, _ = client.time()
        asked, metrics = list(lines), self.metrics
        told = backlogs(client, asked)
        for name in {streams.line for streams in asked} - told.keys():
            metrics.forget_backlog(name)
        for name, (lag, pending, oldest) in told.items():
            age = seconds - entry_key(oldest)[0] / 1000 if oldest else 0.0
            metrics.stream_lag.labels(name).set(float("nan") if lag is None else lag)
            metrics.pending.labels(name).set(pending)
            metrics.oldest_pending.labels(name).set(max(0.0, age))
