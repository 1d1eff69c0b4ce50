"""The producer of a program that waits."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, RLock, Thread, Timer, current_thread
from types import TracebackType
from typing import Any, Self

import redis
from pydantic import SecretStr, ValidationError

from worker.errors import ConfigurationError
from worker.message import Image
from worker.producer.collecting import BATCH_BYTES, Collector, batches, check, check_entry
from worker.producer.flow import MAX_AHEAD, Flow, Retry, Steps
from worker.settings import LimitSettings, RedisSettings
from worker.streams.address import shown
from worker.streams.client import connect as _connect

STOP_SECONDS = 0.05  # between looks at it while another thread sends

Sent = Callable[[str, list[Image]], None]


def connect(to: str | RedisSettings) -> redis.Redis:
    """A client of a url or the [redis] table; it repeats nothing. Raises as `worker.streams.client.connect` does.

    A user with the right to XADD alone is well.
    """
    return _connect(redis_settings(to), only_adds=True)


def redis_settings(to: str | RedisSettings) -> RedisSettings:
    """The [redis] table with a url alone, or as it was given; raises ConfigurationError for what is no url."""
    if isinstance(to, RedisSettings):
        return to
    try:
        return RedisSettings(url=SecretStr(to))
    except ValidationError as error:
        where = shown(to) if "://" in to else to.rpartition("@")[2]
        raise ConfigurationError(f"{where}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


class Producer:
    """Adds entries to one line, no faster than `rate` and no further ahead of the answering group than `max_ahead`.

    `add` collects images into entries; `send` makes one of a list, at once. As a context manager it sends what is
    collected at the end of the block, or leaves it in `unsent` where the block ended by an exception. Threads may share
    it: one sends at a time, and where that waits for room, `stop` ends another one's waiting for its turn.

    Args:
        client: from `connect`; one with retries could add an entry twice.
        line: the line's name.
        rate: images per second; 0 is as fast as they are accepted.
        max_ahead: entries that may wait for an answer, this producer's unread ones and all that are being worked on.
            They bound what Redis has to hold; with no worker running, sending stops there until one comes. It takes
            the rights to XLEN and XINFO GROUPS. None: nothing but a Redis that is full (OOM) holds it up.
        retry: send again what may have been lost; None: raise FateUnknownError.
        batch: images in an entry, of those that `add` collects;
        batch_bytes: and bytes of their pictures, a larger picture goes alone.
        linger: seconds that an image waits at most for others to fill its entry; None: for as long as it takes.
        limits: what the worker accepts, where that differs from the defaults.
        held: is told, once each time, when sending has been held up for HELD_SECONDS; by default the log is.
        sent: is told of every entry that was added. What it raises comes to the caller; the entry stays added.
    """

    def __init__(
        self,
        client: redis.Redis,
        line: str,
        *,
        rate: float = 0.0,
        max_ahead: int | None = MAX_AHEAD,
        retry: Retry | None = None,
        batch: int = 8,
        batch_bytes: int = BATCH_BYTES,
        linger: float | None = None,
        limits: LimitSettings | None = None,
        held: Callable[[str], None] | None = None,
        sent: Sent | None = None,
    ) -> None:
        self.client = client
        self.sent = sent
        self._flow = Flow(line, rate, max_ahead, retry, held)
        self._collector = Collector(batch, batch_bytes, linger, limits, distinct=retry is not None)
        self._timer: Timer | None = None
        self._failure: Exception | None = None  # of the timer's thread; the next call raises it
        self._lock = RLock()  # of who sends, while it waits for room, too
        self._collecting = RLock()  # of who takes an image or looks, and never waits
        self._lingered: tuple[Thread, Event] | None = None  # the timer's thread, while that is sending, and its `stop`

    @property
    def line(self) -> str:
        return self._flow.line

    @property
    def rate(self) -> float:
        """Images per second; 0 is as fast as they are accepted."""
        return self._flow.rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._flow.rate = rate

    @property
    def unsent(self) -> list[Image]:
        """Images that `add` took and that are not in Redis, for certain; the next call sends those of full entries."""
        with self._collecting:
            return self._collector.unsent(self._flow.uncertain)

    @property
    def uncertain(self) -> list[Image]:
        """Images of the entry that is going out or went out last, while nobody knows whether it arrived."""
        return list(self._flow.uncertain)

    def add(self, image: Image, stop: Event | None = None) -> None:
        """Put an image into the entry that is being collected, and send what is full, as `send` does.

        After an error `unsent` says what waits for the next call. Setting `stop` ends the waiting, and no more: the
        image is taken.

        Raises:
            RejectedError: a worker would refuse this image, as shows without decoding it; it was not taken.
            ConfigurationError: `retry`, and its id stands in the entry already; it was not taken.
            WorkerError: as `send`, also of an entry that went out since the call before, because it had lingered.
        """
        beside = check(image, self._collector.limits)
        with self._alone(stop) as alone:
            if alone:
                self._send_full(stop)  # of an earlier call that failed: what cannot be sent does not pile up
            self._take(image, beside)
            if alone:
                self._send_full(stop)

    def flush(self, stop: Event | None = None) -> None:
        """Send all that is collected; raises as `send` does."""
        with self._alone(stop) as alone:
            self._close_entry()
            if alone:
                self._send_full(stop)

    def send(self, images: Sequence[Image], stop: Event | None = None) -> str | None:
        """Wait for the camera's pace and for room, then add one entry, ahead of what `add` has collected.

        Returns:
            The entry's id, or None when `stop` was set while it waited: then nothing was added.

        Raises:
            RejectedError: a worker would refuse one of the images, as shows without decoding it.
            ConfigurationError: there is none, or `retry` fits neither the entry nor the line.
            FateUnknownError: the connection was lost during the XADD; with `retry`, for as long as was tried.
            RedisUnreachableError: it was lost before; nothing was added.
            WorkerError: Redis refused it; nothing was added.
        """
        check_entry(images, self._collector.limits)
        with self._alone(stop) as alone:
            entry = self._send(list(images), stop) if alone else None
            if entry is not None:
                self._added(entry, images)
        return entry

    def ahead(self) -> int:
        """Entries that wait for an answer: own ones that are not read, and all that are read but not answered.

        With `max_ahead=None` the last 10,000 of its own are known. It waits for no thread that sends.
        """
        return int(self._carry_out(self._flow.counting(), None))

    def close(self) -> None:
        """Send what is collected; raises as `send` does, and what is `unsent` stays so. The client stays open."""
        try:
            self.flush()
        finally:
            self._end_lingering()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._end_lingering()

    def _end_lingering(self) -> None:
        """What lingers stays unsent: no thread sends it later, behind the back of one who reads `unsent`."""
        with self._collecting:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if (lingered := self._lingered) is not None:
            thread, stop = lingered
            stop.set()
            if thread is not current_thread():
                thread.join()  # what is on its way arrives, or is lost

    @contextmanager
    def _alone(self, stop: Event | None) -> Iterator[bool]:
        """Whether this thread may send: not where `stop` was set while another one did, or waited for room."""
        while not (alone := self._lock.acquire(timeout=STOP_SECONDS)):
            if stop is not None and stop.is_set():
                break
        try:
            yield alone
        finally:
            if alone:
                self._lock.release()

    def _take(self, image: Image, beside: int) -> None:
        with self._collecting:
            if self._collector.add(image, beside, timed=self._timer is not None):
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = Timer(self._collector.linger or 0.0, self._linger_over)
                self._timer.daemon = True
                self._timer.start()

    def _close_entry(self) -> None:
        with self._collecting:
            self._collector.close()

    def _send(self, images: Sequence[Image], stop: Event | None) -> str | None:
        entry: str | None = self._carry_out(self._flow.sending(images), stop)
        return entry

    def _added(self, entry: str, images: Sequence[Image]) -> None:
        self._flow.uncertain = ()  # before anyone is told, who may raise
        if self.sent is not None:
            self.sent(entry, list(images))

    def _send_full(self, stop: Event | None) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        while self._collector.full:
            images = self._collector.full[0]
            try:
                entry = self._send(images, stop)
            finally:
                if self._flow.uncertain is images:  # it is there, or may be, and then it is the caller's to decide
                    del self._collector.full[0]
            if entry is None:
                return
            self._added(entry, images)

    def _linger_over(self) -> None:
        thread, stop = current_thread(), Event()
        with self._lock:
            self._lingered = thread, stop  # before the look: who ends lingering looks at both the other way round
            try:
                if self._timer is thread:  # else its entry was filled meanwhile, and another one is collected
                    self.flush(stop)
            except Exception as error:  # also of `sent`: this thread has nobody to tell
                self._failure = error
            self._lingered = None

    def _carry_out(self, steps: Steps, stop: Event | None) -> Any:
        stop, answer = stop or Event(), None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as done:
                return done.value
            if callable(step):
                try:
                    answer = step(self.client)
                except redis.RedisError as error:
                    answer = error
            else:
                answer = stop.wait(step)


def produce(
    producer: Producer,
    images: Iterable[Image],
    *,
    batch: int = 8,
    stop: Event | None = None,
    sent: Sent | None = None,
) -> int:
    """Send images in batches; `sent` hears of every entry. Returns how many images went."""
    count = 0
    for group in batches(images, batch):
        entry = producer.send(group, stop)
        if entry is None:
            break
        count += len(group)
        if sent is not None:
            sent(entry, group)
    return count
