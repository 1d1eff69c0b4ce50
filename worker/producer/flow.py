"""What a producer does, step by step, without doing it: the blocking and the asynchronous one carry it out alike.

A step is a call of a client, answered with its reply or with the redis-py error that it raised, or a number of seconds
to wait, answered with whether the producer was stopped meanwhile.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import redis

from worker.errors import ConfigurationError, FateUnknownError, RedisUnreachableError, WorkerError
from worker.message import Image, encode_batch
from worker.producer.collecting import check_distinct
from worker.settings import LINE_NAME
from worker.streams.ids import entry_key, line_key
from worker.streams.line_streams import ANSWERING

MAX_AHEAD = 32  # entries that the answering group has not dealt with
COUNTED = 10_000  # unread entries that a producer without max_ahead remembers
POLL_SECONDS = 0.02
HELD_SECONDS = 5.0  # held up for so long, it says so
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0  # seconds between two tries
LOST = (redis.ConnectionError, redis.TimeoutError)

log = logging.getLogger("worker.producer")

Step = Callable[[Any], Any] | float
Steps = Generator[Step, Any, Any]


@dataclass(frozen=True)
class Retry:
    """Send an entry again when its reply was lost. The worker drops what it knows by its id, so ids tell images apart.

    Attributes:
        window: the line's `streams.unique_ids`: among so many last images of the line an id is answered, and learned,
            once. It must cover all that comes to the line while an entry is sent again, this producer's and others'.
            Where the user may read the line's state, it is compared with what the keeper shows there.
        seconds: that are tried, from the first lost reply on.
    """

    window: int
    seconds: float = 60.0


class Flow:
    """One line's pace, room and repeats; see `Producer` for the arguments.

    Attributes:
        rate: images per second; it may be set at any time.
        uncertain: the images of `sending`, as they were given, from when they may have arrived on; who carries it out
            clears it once it has taken note that they did.
    """

    def __init__(
        self,
        line: str,
        rate: float,
        max_ahead: int | None,
        retry: Retry | None,
        held: Callable[[str], None] | None,
    ) -> None:
        if not LINE_NAME.match(line):
            raise ConfigurationError(f"line name {line!r}: 1 to 63 of a-z 0-9 _ -, the first a letter or a digit")
        if rate < 0 or (max_ahead is not None and max_ahead < 1):
            raise ConfigurationError(
                f"rate {rate} and max_ahead {max_ahead}: expected at least 0, and at least 1 or None"
            )
        if retry and (retry.window < 1 or retry.seconds <= 0):
            raise ConfigurationError(
                f"{retry}: expected the line's streams.unique_ids, and seconds, both above 0; with unique_ids = 0 "
                "nothing may be sent twice: leave retry out"
            )
        self.line = line
        self.rate = rate
        self.max_ahead = max_ahead
        self.retry = retry
        self.uncertain: Sequence[Image] = ()
        self._held = held or log.warning
        self._key = line_key(line, "images")
        # Ids of own entries that the group has not read; without max_ahead only `ahead` drops those that it has.
        self._unread: deque[tuple[int, int]] = deque(maxlen=COUNTED if max_ahead is None else None)
        self._dropping = Lock()  # of those: one thread may count while another sends
        self._due = 0.0  # monotonic seconds at which the next batch may go
        self._window_is_known = retry is None

    def sending(self, images: Sequence[Image]) -> Steps:
        """Wait for pace and room, then add one entry; gives its id, or None where it was stopped before."""
        self.uncertain = ()
        payload = self._packed(images)
        if not self._window_is_known:
            yield from self._compare_window()
        if (yield max(0.0, self._due - time.monotonic()) if self.rate else 0.0):
            return None
        if self.max_ahead is not None and not (yield from self._room(self.max_ahead)):
            return None
        # A camera that was held up does not hurry afterwards.
        self._due = max(self._due, time.monotonic()) + (len(images) / self.rate if self.rate else 0.0)
        entry = yield from self._adding(images, payload)
        if entry is not None:
            self._unread.append(entry_key(entry))
        return entry

    def _packed(self, images: Sequence[Image]) -> bytes:
        if not images:
            raise ConfigurationError("an entry of no images; expected at least one")
        if self.retry:
            check_distinct(images)
        if self.retry and len(images) > self.retry.window:
            raise ConfigurationError(f"{len(images)} images in an entry, more than the window of {self.retry.window}")
        return encode_batch(list(images))

    def _compare_window(self) -> Steps:
        assert self.retry is not None  # noqa: S101 - asked for only where there is one
        shown = yield from self._tried(lambda client: client.hget(line_key(self.line, "state"), "unique_ids"))
        if isinstance(shown, LOST):
            raise RedisUnreachableError(f"the connection to Redis was lost between two entries: {shown}")
        known = not isinstance(shown, redis.RedisError) and shown is not None  # refused: the caller's word counts
        if known and int(shown) < self.retry.window:
            raise ConfigurationError(
                f"retry with a window of {self.retry.window}, but line {self.line} is kept with streams.unique_ids = "
                f"{int(shown)}: raise it there, and restart the worker, or name that window (for 0, leave retry out)"
            )
        self._window_is_known = known or isinstance(shown, redis.RedisError)

    def _room(self, max_ahead: int) -> Steps:
        """Wait until fewer than so many entries wait for an answer; False where it was stopped."""
        tell = self._patience()
        while (ahead := (yield from self.counting())) >= max_ahead:
            if (yield POLL_SECONDS):
                return False
            tell(f"{ahead} entries of line {self.line} wait for an answer; does its worker run?")
        return True

    def counting(self) -> Steps:
        """Entries that wait for an answer: own unread ones, as far as it knows them, and all that are worked on."""
        length = yield from self._asked(lambda client: client.xlen(self._key))
        groups = (yield from self._asked(lambda client: client.xinfo_groups(self._key))) if length else []
        group = next((group for group in groups if group["name"] == ANSWERING.encode()), None)
        last_read = entry_key(group["last-delivered-id"].decode()) if group else (0, 0)
        with self._dropping:
            while self._unread and self._unread[0] <= last_read:
                self._unread.popleft()
        # A stream that was wiped holds fewer than were added.
        return min(len(self._unread), length) + (int(group["pending"]) if group else 0)

    def _asked(self, call: Callable[[Any], Any]) -> Steps:
        reply = yield from self._tried(call)
        if isinstance(reply, LOST):
            raise RedisUnreachableError(f"the connection to Redis was lost between two entries: {reply}")
        if isinstance(reply, redis.exceptions.NoPermissionError):
            raise WorkerError(
                f"Redis does not let this user see how far line {self.line} is: {reply}; grant it +xlen and "
                f"+xinfo|groups on {self._key}, or give max_ahead=None (mhpc-worker produce: --max-ahead 0): "
                "then only a Redis that is full holds it up"
            )
        if isinstance(reply, redis.RedisError):
            raise WorkerError(f"Redis does not say how far line {self.line} is: {reply}")
        return reply

    def _tried(self, call: Callable[[Any], Any]) -> Steps:
        """The reply to a call that may be repeated, or the error that it ended with."""
        pauses = self._pauses()
        while isinstance(reply := (yield call), LOST) and (pause := next(pauses, None)) is not None:
            if (yield pause):
                break
        return reply

    def _pauses(self) -> Generator[float]:
        """Seconds between the tries, for as long as is tried; none without `retry`."""
        ends, pause = time.monotonic() + (self.retry.seconds if self.retry else 0.0), FIRST_PAUSE
        tell = self._patience()
        while time.monotonic() < ends:
            tell(f"Redis is not reached; what is for line {self.line} waits")
            yield pause
            pause = min(2 * pause, LONGEST_PAUSE)

    def _adding(self, images: Sequence[Image], payload: bytes) -> Steps:
        lost: redis.RedisError | None = None
        pauses, tell = self._pauses(), self._patience()
        while True:
            self.uncertain = images  # also where the next line is left by an interrupt
            reply = yield lambda client: client.xadd(self._key, {"batch": payload})
            if isinstance(reply, bytes | str):
                return reply.decode() if isinstance(reply, bytes) else reply
            pause: float | None = None
            if isinstance(reply, LOST):
                lost, pause = reply, next(pauses, None)
            elif lost is None:  # what was refused was not added, whatever ends the waiting for room
                self.uncertain = ()
            if isinstance(reply, redis.exceptions.OutOfMemoryError):  # room comes as the worker goes on
                tell(f"Redis is full, and takes nothing for line {self.line} ({reply}); does its worker run?")
                pause = LONGEST_PAUSE if lost is None else next(pauses, None)  # `retry` bounds it once one was lost
            if pause is None or (yield pause):
                return self._given_up(images, lost, reply)

    def _given_up(self, images: Sequence[Image], lost: redis.RedisError | None, last: redis.RedisError) -> None:
        """Raise what there is to say; where it was stopped, and nothing was added, there is nothing."""
        if lost is not None:
            raise FateUnknownError([image.id for image in images], lost)
        if not isinstance(last, redis.exceptions.OutOfMemoryError):
            raise WorkerError(f"Redis refused an entry for line {self.line}: {last}")

    def _patience(self) -> Callable[[str], None]:
        """Tells the first text that comes HELD_SECONDS later, and no other."""
        at: float | None = time.monotonic() + HELD_SECONDS

        def tell(text: str) -> None:
            nonlocal at
            if at is not None and time.monotonic() > at:
                self._held(text)
                at = None

        return tell
