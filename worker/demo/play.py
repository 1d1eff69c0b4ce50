"""Plays parts into the demo's line and follows what the worker publishes of them."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any, cast

import redis
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from worker.demo.parts import Part
from worker.demo.processes import Child
from worker.errors import RedisUnreachableError, WorkerError
from worker.message import Image, decode_result
from worker.producer import Producer, as_image, produce
from worker.streams.ids import entry_key, line_key
from worker.streams.line_streams import LEARNING

LINE = "demo"
SCORING = "scoring"
POLL_SECONDS = 0.1
STALL_SECONDS = 300.0  # nothing at all from a worker for so long is an error
READ = 500  # results at a time

Result = dict[str, Any]
Entries = list[tuple[bytes, dict[bytes, bytes]]]


class Watch:
    """Reads the line's results, dead letters and phase.

    `results` holds the first result of each id, `repeated` counts the others, `dead` holds each dead letter's reason,
    `outside_share` is the share of new patches that are unlike all in the bank, `learned_through` the newest entry that
    the learner has taken.
    """

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.results: dict[str, Result] = {}
        self.repeated = 0
        self.dead: dict[str, str] = {}
        self.phase: str | None = None
        self.outside_share: float | None = None
        self.learned_through = "0-0"
        self._last = {"scores": b"0", "dead": b"0"}

    def poll(self) -> list[Result]:
        """Read what is new; returns the new results."""
        try:
            new = [decode_result(fields[b"result"]) for fields in self._read("scores")]
            dead = list(self._read("dead"))
            phase, outside = self.client.hmget(line_key(LINE, "state"), "phase", "outside_share")
            images = line_key(LINE, "images")
            groups = self.client.xinfo_groups(images) if self.client.exists(images) else []
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise RedisUnreachableError(f"the demo's own Redis no longer answers: {error}") from None
        for result in new:
            if self.results.setdefault(result["id"], result) is not result:
                self.repeated += 1
        for fields in dead:
            self.dead[_text(fields, b"id")] = f"{_text(fields, b'reason')}: {_text(fields, b'error')}"
        self.phase = phase.decode() if isinstance(phase, bytes) else phase
        self.outside_share = float(outside) if outside else None
        for group in groups:
            if group["name"] == LEARNING.encode():
                self.learned_through = group["last-delivered-id"].decode()
        return new

    def _read(self, stream: str) -> Iterator[dict[bytes, bytes]]:
        # The client's types allow for decoded replies; this client decodes none.
        key = line_key(LINE, stream)
        while entries := cast(Entries, self.client.xrange(key, min=b"(" + self._last[stream], count=READ)):
            for entry, fields in entries:
                self._last[stream] = entry
                yield fields

    def answered(self, parts: Iterable[Part]) -> int:
        """How many of these parts have a result or a dead letter."""
        return sum(part.id in self.results or part.id in self.dead for part in parts)


def _text(fields: dict[bytes, bytes], name: bytes) -> str:
    return fields.get(name, b"").decode(errors="replace")


class Player:
    """Sends parts from a thread of its own, as a camera's computer beside the worker would."""

    def __init__(self, producer: Producer, watch: Watch, worker: Child) -> None:
        self.producer = producer
        self.watch = watch
        self.worker = worker
        self._sent: list[tuple[str, int]] = []  # entry, images in it

    def trained(self) -> int:
        """How many of the images sent the learner has taken, to learn or to calibrate."""
        through = entry_key(self.watch.learned_through)
        return sum(count for entry, count in self._sent if entry_key(entry) <= through)

    def play(self, images: Iterable[Image], done: Callable[[], bool], seen: Callable[[list[Result]], None]) -> None:
        """Send the images and follow the results, which `seen` is given as they come, until all are sent and `done`.

        Raises:
            WorkerError: the worker ended, or nothing came from it for STALL_SECONDS.
        """
        rate, stop = self.producer.rate, Event()
        batch = 8 if rate == 0 else max(1, min(8, round(rate / 4)))
        patience = STALL_SECONDS + (3 * batch / rate if rate else 0)
        with ThreadPoolExecutor(1, thread_name_prefix="camera") as thread:
            sending = thread.submit(produce, self.producer, images, batch=batch, stop=stop, sent=self._count)
            try:
                news, before = time.monotonic(), self.watch.phase
                while not (sending.done() and done()):
                    if sending.done():
                        sending.result()  # raises what went wrong in the thread
                    self.worker.check()
                    new = self.watch.poll()
                    seen(new)
                    if new or self.watch.phase != before:
                        news, before = time.monotonic(), self.watch.phase
                    elif time.monotonic() - news > patience:
                        raise WorkerError(self._stalled(patience))
                    time.sleep(POLL_SECONDS)
                sending.result()
            finally:
                stop.set()

    def _count(self, entry: str, images: list[Image]) -> None:
        if self.watch.phase != SCORING:  # what comes later is not for the learner
            self._sent.append((entry, len(images)))

    def _stalled(self, patience: float) -> str:
        return (
            f"nothing came from the worker for {patience:.0f} s, in phase {self.watch.phase}, with "
            f"{len(self.watch.results)} results and {len(self.watch.dead)} dead letters; the end of its log:\n"
            f"{self.worker.tail()}"
        )


def images_of(parts: Iterable[Part]) -> Iterator[Image]:
    """The parts as they travel, each read when its turn comes."""
    for part in parts:
        yield as_image(part.id, part.read())


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        elapsed = task.finished_time or task.elapsed
        return Text(f"{task.completed / elapsed:6.1f} images/s" if elapsed else "", style="progress.data.speed")


def progress_bars(console: Console) -> Progress:
    """Bars with a count and images per second, narrow enough for 80 columns."""
    columns = TextColumn("{task.description:<17}"), BarColumn(24), MofNCompleteColumn(), _Speed(), TimeElapsedColumn()
    return Progress(*columns, console=console, refresh_per_second=4)
