"""What the page knows of each line, read once for all who look."""

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import redis

from worker.console.cached import Cached
from worker.console.journal import Told, journal
from worker.console.recent import KEPT, NOTHING_SEEN, SPARK, Recent, Seen
from worker.console.review import Index, Shown
from worker.console.source import Source
from worker.errors import RejectedError
from worker.settings import LINE_NAME
from worker.streams.line_streams import LineStreams
from worker.views import known_lines, line_status

LIVE_SECONDS, STATUS_SECONDS = 0.15, 1.0
NAMES_SECONDS = 10.0  # all keys are looked through for them, whosever they are
OPENED_SECONDS = 300.0  # that a line's own page is remembered by when nobody looks at it any more
OPENED = 64  # lines whose own pages are remembered: each takes a megabyte

Status = dict[str, Any]
T = TypeVar("T")


class Watched:
    """One line: its status, so many of its newest results, what lies in review, and what it was told."""

    def __init__(self, source: Source, name: str, kept: int) -> None:
        self.name = name
        self._source = source
        self._kept = kept
        self._recent: Recent | None = None
        self._index: Index | None = None
        self.recent = Cached(LIVE_SECONDS, self._read_recent)
        self.index = Cached(STATUS_SECONDS, self._read_index)
        self.status = Cached(STATUS_SECONDS, self._read_status)
        self.journal = Cached(STATUS_SECONDS, self._read_journal)

    @property
    def streams(self) -> LineStreams:
        """Raises RedisUnreachableError."""
        return LineStreams(self._source.client, self.name)

    def _read_recent(self) -> Seen:
        self._recent = self._recent or Recent(self.streams, self._kept)
        return unless_of_another_type(self._recent.refresh, NOTHING_SEEN)

    def _read_index(self) -> Shown:
        self._index = self._index or Index(self.streams)
        return unless_of_another_type(self._index.refresh, Shown((), 0))

    def _read_journal(self) -> list[Told]:
        return unless_of_another_type(lambda: journal(self.streams), list[Told]())

    def _read_status(self) -> Status:
        """line_status, with the bins of calibration's scores; a value that is none is the line's problem."""
        client, key = self._source.client, self.streams.state_key
        try:
            status = line_status(client, self.name)
        except ValueError as error:
            return {"line": self.name, "problem": f"what Redis holds of it cannot be read: {error}"}
        status["calibration"] = unless_of_another_type(lambda: client.hget(key, "calibration"), b"")
        return status


def unless_of_another_type(read: Callable[[], T], otherwise: T) -> T:
    """What a key holds; nothing where it is of another type: line_status tells that, and the rest is there to see."""
    try:
        return read()
    except redis.ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        return otherwise


class Lines:
    """All lines: those that are configured, and those that have a stream.

    A line is followed twice: with few of its results for the list of lines, and for its own pages with many, as long
    as somebody asks for these.
    """

    def __init__(self, source: Source, configured: list[str]) -> None:
        self.source = source
        self._configured = configured
        self._listed: dict[str, Watched] = {}
        self._opened: dict[str, Watched] = {}
        self._lock = threading.Lock()
        self.all = Cached(NAMES_SECONDS, self._read_all)

    def watched(self, name: str) -> Watched:
        """A line by its name, for its own pages. Raises RejectedError: there is none of that name."""
        known = name in self._opened or name in self._listed or name in self._configured
        if not (known or (LINE_NAME.match(name) and self._exists(name))):
            raise RejectedError("lost", "no such line: it is not configured, and has no stream in Redis")
        with self._lock:
            self._let_go()
            return self._opened.setdefault(name, Watched(self.source, name, KEPT))

    def _let_go(self) -> None:
        """Of lines whose own pages nobody has asked for in a while; who still looks at one follows it on his own."""
        newest = sorted(self._opened.values(), key=lambda watched: watched.recent.asked_at)[-OPENED:]
        since = time.monotonic() - OPENED_SECONDS
        self._opened = {watched.name: watched for watched in newest if watched.recent.asked_at > since}

    def _exists(self, name: str) -> bool:
        client = self.source.client
        return bool(client.exists(LineStreams(client, name).images))

    def _read_all(self) -> list[Watched]:
        """For the list of lines: sorted by name; those that no line can have are left to `mhpc-worker status`."""
        found = [name for name in known_lines(self.source.client) if LINE_NAME.match(name)]
        with self._lock:
            self._let_go()
            self._listed = {
                name: self._listed.get(name) or Watched(self.source, name, SPARK)
                for name in sorted({*self._configured, *found})
            }
            return list(self._listed.values())
