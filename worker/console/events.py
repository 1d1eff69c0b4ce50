"""Server-sent events: what is new, as long as somebody looks."""

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import redis
import structlog
from anyio import CapacityLimiter, to_thread

from worker.console.lines import Lines, Watched
from worker.console.rows import calibration, card, point_row, row
from worker.console.source import AWAY, failed, why_unread

TICK_SECONDS, FLEET_SECONDS = 0.2, 1.0
BEAT_SECONDS = 10.0  # of silence, after which a comment keeps the connection open
FIRST_POINTS = 600
LOOKERS = 64  # streams at a time
FULL_MS = 15_000  # after which a browser asks again
TOO_MANY = "Too many pages look at this console at once. This one goes on by itself when another was closed."

Event = tuple[str, Any]

log = structlog.get_logger()


class FleetTurns:
    """What one looker at all lines is told, turn by turn."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines

    def __call__(self) -> Iterator[Event]:
        yield "fleet", [row(watched) for watched in self.lines.all.get()]


class LineTurns:
    """What one looker at a line is told, turn by turn: only what is new to it."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        self._total = -1
        self._version = -1
        self._status_at = 0.0
        self._told: dict[str, Any] = {}

    def __call__(self) -> Iterator[Event]:
        seen = self.watched.recent.get()
        if self._total < 0:
            yield "points", [point_row(point) for point in seen.points[-FIRST_POINTS:]]
        elif new := seen.since(self._total):
            yield "points", [point_row(point) for point in new]
        self._total = seen.total
        if time.monotonic() < self._status_at:
            return
        yield from self._changed("status", row(self.watched))
        yield from self._changed("calibration", calibration(self.watched.status.get()))
        index = self.watched.index.get()
        if index.version != self._version:
            yield "review", [card(part) for part in reversed(index.parts)]
            self._version = index.version
        yield from self._changed("journal", [told._asdict() for told in self.watched.journal.get()])
        self._status_at = time.monotonic() + 1  # not before: until all was read once, the problem stands

    def _changed(self, name: str, value: Any) -> Iterator[Event]:
        if name not in self._told or self._told[name] != value:
            yield name, value
            self._told[name] = value  # not before: what could not be encoded was not told


class Lookers:
    """Everybody who looks, and the threads that read for them."""

    def __init__(self, closing: Callable[[], bool]) -> None:
        self._threads = CapacityLimiter(12)
        self._count = 0
        self._closing = closing  # nobody who looks hangs up because the console wants to end

    async def stream(self, turns: Callable[[], Iterator[Event]], seconds: float) -> AsyncIterator[bytes]:
        """The events as they go over the wire, until the looker leaves; an outage is told, and outlasted."""
        if self._count >= LOOKERS:  # nothing else runs between this and the seat taken
            yield f"retry: {FULL_MS}\n".encode() + encoded("away", TOO_MANY)
            return
        self._count += 1
        try:
            away, said_at = "", time.monotonic()
            while not self._closing():
                told, problem = await to_thread.run_sync(_turn, turns, limiter=self._threads)
                if problem != away:
                    log.warning("what a page shows", problem=problem or "none any more")
                    away = problem
                    told += encoded("away", problem)
                if told:
                    said_at = time.monotonic()
                    yield told
                elif time.monotonic() - said_at > BEAT_SECONDS:
                    said_at = time.monotonic()
                    yield b": still here\n\n"
                await anyio.sleep(seconds)
        finally:
            self._count -= 1


def _turn(turns: Callable[[], Iterator[Event]]) -> tuple[bytes, str]:
    """What there is to tell, and what kept it from being all."""
    told = b""
    try:
        for event in turns():
            told += encoded(*event)
    except (redis.RedisError, *AWAY) as error:
        return told, why_unread(error)
    except Exception as error:
        return told, failed(error)
    return told, ""


def encoded(name: str, value: Any) -> bytes:
    """One event; JSON without line ends."""
    return f"event: {name}\ndata: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n".encode(errors="replace")
