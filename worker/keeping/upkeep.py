"""What a keeper sees to now and then."""

import time

import structlog

from worker.metrics import Metrics
from worker.streams.line_streams import LineStreams
from worker.streams.upkeep import delete_idle_consumers, unread_lost, used_up

TRIM_SECONDS, TIDY_SECONDS = 5.0, 3600.0  # from one time to the next

log = structlog.get_logger()


class Upkeep:
    """Trims a line's stream, counts what somebody else took from it, removes consumers that are long gone.

    Attributes:
        problem: that only a person can mend; "" for none.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.problem = ""
        self._trim_at = self._tidy_at = 0.0

    def __call__(self, streams: LineStreams, epoch: int, groups: list[str]) -> None:
        """See to it, where it is time.

        Args:
            groups: those in use, whose entries stay.

        Raises:
            FencedError: another keeper took over.
        """
        if time.monotonic() < self._trim_at:
            return
        self._trim_at = time.monotonic() + TRIM_SECONDS
        streams.trim(epoch, groups)
        self._tell(used_up(streams), streams, epoch)
        if lost := unread_lost(streams, epoch):
            log.error("entries left the stream before anybody read them", line=streams.line, entries=lost)
            self.metrics.entries_lost.labels(streams.line).inc(lost)
        if time.monotonic() >= self._tidy_at:
            self._tidy_at = time.monotonic() + TIDY_SECONDS
            if gone := delete_idle_consumers(streams, epoch):
                log.info("consumers that were long idle are removed", line=streams.line, consumers=gone)

    def _tell(self, problem: str, streams: LineStreams, epoch: int) -> None:
        if problem or self.problem:  # again and again: each commit says that there is none
            streams.show(epoch, {"problem": problem})
        if problem and not self.problem:
            log.error("the stream takes no more entries", line=streams.line, problem=problem)
        elif self.problem and not problem:
            log.info("the stream takes entries again", line=streams.line)
        self.problem = problem
