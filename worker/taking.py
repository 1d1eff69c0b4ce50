"""What is counted, and put up for review, of entries that a keeper learns from."""

from collections.abc import Iterable

import structlog

from worker.metrics import Metrics
from worker.owed import Owed, Usable
from worker.records import Taken
from worker.streams.line_streams import Entry

log = structlog.get_logger()


def skip(metrics: Metrics, line: str, entries: Iterable[Entry], why: str) -> None:
    """Tell of entries that nothing is learned from."""
    for entry in entries:
        log.error(why, line=line, entry=entry.id)
        metrics.images.labels(line, "skipped").inc()


def book(metrics: Metrics, line: str, taken: Iterable[tuple[Entry, Taken]], owed: Owed, usable: Usable) -> int:
    """Count what became of entries' images; the next commit puts up those set aside. Returns how many were taken."""
    images = 0
    for entry, of_entry in taken:
        owed.set_aside(entry, of_entry.set_aside, usable)
        metrics.images.labels(line, "learned").inc(of_entry.learned)
        metrics.images.labels(line, "quarantined").inc(of_entry.quarantined)
        images += of_entry.learned + of_entry.quarantined + of_entry.calibrated
    return images
