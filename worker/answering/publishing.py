"""Publishing through the gate, while the next batch is judged."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import Any, NamedTuple

import redis

from worker.answering.answers import Opened, answer_of
from worker.failpoints import failpoint
from worker.metrics import Metrics
from worker.settings import StreamSettings
from worker.streams.ids import entry_key
from worker.streams.line_streams import LineStreams, ReviewCaps


class Published(NamedTuple):
    """A finished entry, whether this process published it, and when, by Redis' clock in milliseconds."""

    opened: Opened
    once: bool
    now_ms: float


class Publisher:
    """Sends what is finished on a thread of its own; the loop learns of it, and of its errors, by `settle`."""

    def __init__(self, streams: Mapping[str, LineStreams], caps: StreamSettings, review: ReviewCaps) -> None:
        self.streams = streams
        self.caps = caps
        self.review = review
        self.under_way: list[Opened] = []  # on their way
        self._thread = ThreadPoolExecutor(1, "publish")
        self._sent: Future[tuple[list[Published], dict[str, str]]] | None = None

    def send(self, client: Any, entries: list[Opened]) -> None:
        """Begin to publish finished entries; those before must have been settled."""
        self.under_way, self._sent = entries, self._thread.submit(self._publish, client, entries)

    def settle(self) -> tuple[list[Published], dict[str, str]]:
        """What came of those that were sent: published entries, and by line what Redis refused, which stays pending.

        Raises:
            redis.ConnectionError, redis.TimeoutError: it is not known which were published.
        """
        sent, self._sent, self.under_way = self._sent, None, []
        return ([], {}) if sent is None else sent.result()

    def _publish(self, client: Any, entries: list[Opened]) -> tuple[list[Published], dict[str, str]]:
        failpoint("gate")
        seconds, microseconds = client.time()
        now_ms = seconds * 1000 + microseconds / 1000
        published, refused = list[Published](), dict[str, str]()
        by_line: Callable[[Opened], str] = lambda opened: opened.name  # noqa: E731 - sorts and groups by the same
        for name, run in groupby(sorted(entries, key=by_line), key=by_line):
            of_line = list(run)
            answers = [answer_of(opened, now_ms, self.caps.payload_bytes) for opened in of_line]
            try:
                once = self.streams[name].publish(answers, self.caps.scores_max, self.caps.dead_max, self.review)
            except redis.ResponseError as error:
                refused[name] = str(error)
                continue
            published += [Published(opened, first, now_ms) for opened, first in zip(of_line, once, strict=True)]
        failpoint("gate_done")
        return published, refused

    def close(self) -> None:
        self._thread.shutdown()


def count(published: Published, metrics: Metrics) -> None:
    """Count what came of an entry."""
    opened, name = published.opened, published.opened.name
    seconds = max(0.0, published.now_ms - entry_key(opened.entry.id)[0]) / 1000
    end_to_end, ratios = metrics.end_to_end_seconds.labels(name), metrics.score_to_threshold.labels(name)
    for _, verdict, serving in opened.judged:
        end_to_end.observe(seconds)
        if verdict.score is not None and serving.threshold:
            ratios.observe(verdict.score / serving.threshold)
    scored = sum(verdict.score is not None for _, verdict, _ in opened.judged)
    metrics.images.labels(name, "scored").inc(scored)
    metrics.images.labels(name, "unscored").inc(len(opened.judged) - scored)
    metrics.anomalies.labels(name).inc(sum(bool(judged.anomalous) for judged in opened.judged))
    for rejected in opened.rejected:
        metrics.images.labels(name, "dead").inc()
        metrics.dead_letters.labels(name, rejected.reason).inc()
        metrics.entries_lost.labels(name).inc(rejected.reason == "lost")
