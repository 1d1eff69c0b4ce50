"""The newest results of a line, without their heat maps: what charts and rates are made of."""

import time
from collections import deque
from typing import Any, NamedTuple

from worker.console.text import cut, number_of
from worker.console.unpacking import unpacked
from worker.message import ID_LENGTH
from worker.streams.ids import FROM_START, entry_key
from worker.streams.line_streams import LineStreams

KEPT = 2000  # points of a line whose own page is looked at
SPARK = 60  # points of a small chart: all that the list of lines shows of each
READ = 100  # results in one reply: each may carry a map of up to a megabyte
PAGES = 10  # replies in one turn; who is behind by more goes on at the newest
FILL_BYTES = 16 * 1024 * 1024  # of results read when a line is first looked at
RATE_SECONDS = 10.0
STALE_SECONDS = 5.0  # not looked at for so long, arrivals say nothing of the rate
SHARE_OF = 500  # results that the share of anomalies is of

Page = list[tuple[bytes, dict[bytes, bytes]]]


class Point(NamedTuple):
    """One result. `key` is its id in the stream of scores, `ms` the time of that; None where nothing is known."""

    key: str
    ms: int
    id: str
    score: float | None
    threshold: float | None
    anomalous: bool | None
    model: str | None
    latency_ms: float | None


class Seen(NamedTuple):
    """What was seen of a line's results up to a moment: `total` results ever, of which `points` are the newest.

    `broken` entries held no result. `per_second` is None until the line was looked at for a second. `anomalous_share`
    is that of the newest results that have a verdict, None where none has.
    """

    points: tuple[Point, ...]
    total: int
    broken: int
    per_second: float | None
    anomalous_share: float | None

    def since(self, total: int) -> tuple[Point, ...]:
        """The points taken after so many, as far as they are kept."""
        return self.points[max(0, len(self.points) - (self.total - total)) :]

    @property
    def models(self) -> list[str]:
        """Versions that gave these results, the newest first."""
        return sorted({point.model for point in self.points if point.model}, reverse=True)


NOTHING_SEEN = Seen((), 0, 0, None, None)


class Recent:
    """Follows one line's results, of which it keeps so many points. Not for several threads at once."""

    def __init__(self, streams: LineStreams, kept: int) -> None:
        self.streams = streams
        self.kept = kept
        self.points: deque[Point] = deque(maxlen=kept)
        self.total = self.broken = 0
        self._verdicts: deque[bool] = deque(maxlen=SHARE_OF)
        self._last: bytes | None = None
        self._arrivals: deque[tuple[float, int]] = deque()
        self._looked_at = float("-inf")

    def refresh(self) -> Seen:
        """Take what is new. Raises redis.RedisError."""
        before = self.total
        if self._last is None:
            self._fill()
        else:
            self._follow()
        now = time.monotonic()
        if now - self._looked_at > STALE_SECONDS:
            self._arrivals.clear()  # what came meanwhile came at times unknown
        self._arrivals.append((now, self.total - before if self._arrivals else 0))
        self._looked_at = now
        while now - self._arrivals[0][0] > RATE_SECONDS:
            self._arrivals.popleft()
        share = sum(self._verdicts) / len(self._verdicts) if self._verdicts else None
        return Seen(tuple(self.points), self.total, self.broken, self._per_second(), share)

    def _per_second(self) -> float | None:
        (first, _), *later = self._arrivals
        span = self._looked_at - first
        return sum(count for _, count in later) / span if span >= 1 else None

    def _fill(self) -> None:
        pages, size, last = list[Page](), 0, "+"
        while len(pages) < max(self.kept, SHARE_OF) // READ and size < FILL_BYTES:
            page = self.streams.client.xrevrange(self.streams.scores, max=last, count=READ)
            if not page:
                break
            pages.append(page)
            size += sum(len(value) for _, fields in page for value in fields.values())
            last = f"({page[-1][0].decode()}"
        self._last = pages[0][0][0] if pages else FROM_START.encode()
        for page in reversed(pages):
            self._take(page[::-1])

    def _follow(self) -> None:
        assert self._last is not None  # noqa: S101 - refresh fills first
        for _ in range(PAGES):
            page = self.streams.client.xrange(self.streams.scores, min=b"(" + self._last, count=READ)
            self._take(page)
            if page:
                self._last = page[-1][0]
            if len(page) < READ:
                return
        self._fill()  # what lies between is passed over, the newest counts

    def _take(self, page: Page) -> None:
        for entry, fields in page:
            if self.points and entry_key(self.points[-1].key) >= entry_key(entry.decode()):
                continue
            point = point_of(entry.decode(), unpacked(fields.get(b"result")))
            if point is None:
                self.broken += 1
            else:
                self.points.append(point)
                self.total += 1
                if point.anomalous is not None:
                    self._verdicts.append(point.anomalous)


def point_of(key: str, result: dict[str, Any] | None) -> Point | None:
    """What a chart needs of a result; None of what is none. What has no sense in it is left out."""
    if result is None or not isinstance(result.get("id"), str):
        return None
    score, threshold, latency = (number_of(result.get(name)) for name in ("score", "threshold", "latency_ms"))
    anomalous, model = result.get("anomalous"), result.get("model")
    return Point(
        key,
        entry_key(key)[0],
        cut(result["id"], ID_LENGTH),
        score,
        threshold,
        anomalous if isinstance(anomalous, bool) else None,
        cut(model) if isinstance(model, str) else None,
        latency,
    )
