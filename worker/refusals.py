"""Lines that are left alone for a while, since something is wrong with them that concerns no other line."""

import time
from collections.abc import Container
from contextlib import suppress

import redis
import structlog

from worker.streams.line_streams import LineStreams
from worker.streams.state import tell_unkept

REFUSED_SECONDS = 1.0
QUIET_SECONDS = 30.0  # longer than any attempt is apart from the next: one that goes well proves nothing yet
REDIS, VERSION, STORE = "Redis refuses", "its version cannot be loaded", "the store of its versions cannot be asked"
SECONDS = {REDIS: REFUSED_SECONDS, VERSION: 5.0, STORE: 2.0}  # to load one takes longer than to ask

log = structlog.get_logger()


class Refusals:
    """By line, what is wrong and when it is tried again; each thing is logged once, until it is over."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[str, float]] = {}
        self._told: dict[str, tuple[str, float]] = {}  # and when it counts as over

    def __contains__(self, name: str) -> bool:
        return name in self._lines

    def add(self, name: str, error: str, why: str = REDIS) -> None:
        """Leave a line alone: a group that is gone, a key of another type, a right or a version that is missing."""
        error = error.rpartition("caused error: ")[2]  # redis-py puts the whole pipeline before it
        if name not in self._told or self._told[name][0] != error:
            log.error(f"{why}; the line is tried again and again", line=name, error=error)
        self._told[name] = error, time.monotonic() + QUIET_SECONDS
        self._lines[name] = f"{why}: {error}", time.monotonic() + SECONDS[why]

    def withhold(self, streams: LineStreams, error: str, why: str) -> None:
        """Leave a line alone whose version this worker does not have; where nobody keeps it, its state says so, too."""
        self.add(streams.line, error, why)
        with suppress(redis.ResponseError):  # what is wrong with that key, `status` finds out itself
            tell_unkept(streams, f"{why}: {error}")

    def tried_again(self) -> list[str]:
        """The lines whose time is up; they are left alone no more."""
        names = [name for name, (_, again_at) in self._lines.items() if time.monotonic() >= again_at]
        for name in names:
            del self._lines[name]
        return names

    def forget(self, name: str) -> None:
        """The line is served no more."""
        self._lines.pop(name, None)
        self._told.pop(name, None)

    def went_on(self, served: Container[str]) -> None:
        """What has not been wrong for so long is over: what goes wrong with that line from now on is news.

        Of a line that is not `served` nothing is asked that could be refused.
        """
        over = [name for name, (_, over_at) in self._told.items() if time.monotonic() >= over_at and name in served]
        for name in over:
            del self._told[name]
            log.info("the line goes on", line=name)

    @property
    def unloadable(self) -> list[str]:
        """The lines whose version is missing, of another backbone, or in a store that cannot be asked."""
        return [name for name, (problem, _) in self._lines.items() if problem.startswith((VERSION, STORE))]

    @property
    def problems(self) -> dict[str, str]:
        """What is to be said of each; asked for on other threads."""
        return {name: problem for name, (problem, _) in dict(self._lines).items()}
