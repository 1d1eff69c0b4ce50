"""What is asked, counted, and put up for review, of entries that a keeper learns from."""

from collections.abc import Callable, Iterable

import structlog
from torch import Tensor

from worker.errors import one_line
from worker.keeping.owed import Owed, Usable
from worker.line import Line
from worker.metrics import Metrics
from worker.records import Taken
from worker.streams.line_streams import Entry, LineStreams

log = structlog.get_logger()

Extract = Callable[[str, Entry], Iterable[Tensor]]  # an entry's features, in chunks [B, P, D]
Ready = Callable[[Entry], bool]  # whether they may be asked for now; if not, later


def skip(metrics: Metrics, line: str, entries: Iterable[Entry], why: str) -> None:
    """Tell of entries that nothing is learned from."""
    for entry in entries:
        log.error(why, line=line, entry=entry.id)
        metrics.images.labels(line, "skipped").inc()


def failed(line: str, entries: list[Entry], error: Exception) -> str:
    """Tell, where an error is handled, of entries that were applied together; the line's problem."""
    which = entries[0].id if len(entries) == 1 else f"{entries[0].id} or one of {len(entries) - 1} after it"
    log.exception("an entry failed; it is tried again by itself", line=line, entry=which)
    return f"entry {which} failed: {one_line(error, 200)}"


def count_taken(metrics: Metrics, line: str, taken: Iterable[tuple[Entry, Taken]], owed: Owed, usable: Usable) -> int:
    """Count what became of entries' images; the next commit puts up those set aside. Returns how many were taken."""
    images = 0
    for entry, of_entry in taken:
        owed.set_aside(entry, of_entry.set_aside, usable)
        metrics.images.labels(line, "learned").inc(of_entry.learned)
        metrics.images.labels(line, "quarantined").inc(of_entry.quarantined)
        images += of_entry.learned + of_entry.quarantined + of_entry.calibrated
    return images


def take_set_aside(metrics: Metrics, line: Line, owed: Owed, streams: LineStreams, usable: Usable) -> None:
    """What the end of learning set aside is put up by the next commit."""
    metrics.images.labels(line.name, "quarantined").inc(len(line.set_aside))
    owed.set_aside_late(line.set_aside, streams, usable)
    line.set_aside = []
