"""Which images are judged next: of all lines, fairly, decoded ahead on threads."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from worker.answers import Opened
from worker.message import Image, Rejected
from worker.settings import MIB

AHEAD = 2  # batches that are decoded ahead
LINE_AHEAD_BYTES = MIB  # of a line's images that are decoded at once, or one image: huge ones leave threads to others
DECODING_SECONDS = 0.05  # that are waited at most for a picture to be decoded, before the loop turns
FRESH_SECONDS = 0.003  # in which small pictures are decoded: one that has just come need not miss the batch


class Picture(NamedTuple):
    """An image of an opened entry, by its place there; `pixels` gives what the engine takes, or why not."""

    part: Opened
    place: int
    image: Image
    pixels: "Future[Tensor | Rejected]"
    since: float


@dataclass
class _Queue:
    """One line's images: those that wait, those on their way, and what the line may still take in this round."""

    waiting: "deque[tuple[Opened, int, Image]]"
    ahead: "deque[Picture]"
    credit: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether its next image is decoded."""
        return bool(self.ahead) and self.ahead[0].pixels.done()


class Batcher:
    """Forms batches across lines by deficit round-robin (Shreedhar & Varghese, 1996), a line's images in order.

    A line's turn is of as many images as a batch has, times its weight: those of one line are searched for together.
    A line that had nothing waiting comes first, as in FQ-CoDel (RFC 8290): who sends little waits for no queue. Only
    images that are decoded are taken, so that a line whose images take long holds nobody up.

    Args:
        decode: from an image to what the engine takes, or why it has none; runs on threads.
        max_batch: images in a batch.
        max_wait: seconds that an image waits for others.
        threads: that decode.
        weights: of the lines, where another than 1.
    """

    def __init__(
        self,
        decode: Callable[[Image], Tensor | Rejected],
        max_batch: int,
        max_wait: float,
        threads: int,
        weights: Mapping[str, float],
    ) -> None:
        self.decode = decode
        self.max_batch = max_batch
        self.max_wait = max_wait
        self.weights = weights
        self._pool = ThreadPoolExecutor(threads, "decode", initializer=torch.set_num_threads, initargs=(1,))
        self._queues: dict[str, _Queue] = {}  # the line whose turn is next stands first

    def put(self, opened: Iterable[tuple[Opened, list[Image]]]) -> None:
        """Let the images of opened entries wait for their turn."""
        new: dict[str, _Queue] = {}
        for part, images in opened:
            if images:
                queue = self._queues.get(part.name) or new.setdefault(part.name, _Queue(deque(), deque()))
                queue.waiting.extend((part, place, image) for place, image in enumerate(images))
        self._queues = new | self._queues
        self._decode_ahead()

    def drop(self, line: str) -> None:
        """Forget a line's images: its entries come again."""
        if queue := self._queues.pop(line, None):
            for picture in queue.ahead:
                picture.pixels.cancel()

    def waiting(self, line: str) -> int:
        """Images of a line that are not taken yet."""
        queue = self._queues.get(line)
        return 0 if queue is None else len(queue.waiting) + len(queue.ahead)

    def patience(self) -> float:
        """Seconds until a batch is to go although it is not full."""
        queues = self._queues.values()
        if not queues or sum(len(queue.waiting) + len(queue.ahead) for queue in queues) >= self.max_batch:
            return 0.0
        oldest = min((picture.since for queue in queues for picture in queue.ahead), default=0.0)
        return max(0.0, oldest + self.max_wait - time.monotonic())

    def take(self) -> list[Picture]:
        """The next batch, of decoded images; empty if none is ready in a moment."""
        ahead = [picture for queue in self._queues.values() for picture in queue.ahead]
        if not any(queue.ready for queue in self._queues.values()):
            wait(
                [queue.ahead[0].pixels for queue in self._queues.values() if queue.ahead],
                DECODING_SECONDS,
                FIRST_COMPLETED,
            )
        if sum(picture.pixels.done() for picture in ahead) < self.max_batch:
            fresh = time.monotonic() - FRESH_SECONDS
            wait([picture.pixels for picture in ahead if picture.since > fresh], FRESH_SECONDS)
        batch = list(self._round_robin())
        self._queues = {name: queue for name, queue in self._queues.items() if queue.waiting or queue.ahead}
        self._decode_ahead()
        return batch

    def _round_robin(self) -> Iterable[Picture]:
        """A line that has nothing ready keeps no credit; one that is cut off goes on with what it has left."""
        left, idle = self.max_batch, 0  # lines in a row that had nothing ready
        while left and idle < len(self._queues):
            name, queue = next(iter(self._queues.items()))
            idle = 0 if queue.ready else idle + 1
            if queue.ready and queue.credit < 1:
                queue.credit += self._turn(name)
            while left and queue.credit >= 1 and queue.ready:
                yield queue.ahead.popleft()
                queue.credit, left = queue.credit - 1, left - 1
            if not queue.ready:
                queue.credit = 0.0
            if queue.credit < 1:
                self._queues[name] = self._queues.pop(name)  # to the end

    def _turn(self, line: str) -> float:
        """Images of a line in its turn."""
        return self.max_batch * self.weights.get(line, 1.0)

    def _decode_ahead(self) -> None:
        """Keep the threads busy with what is taken next: a few batches, in the order of the lines' turns."""
        room = AHEAD * self.max_batch
        for name, queue in self._queues.items():
            most = room if len(self._queues) == 1 else min(room, math.ceil(self._turn(name)))
            undone = sum(len(picture.image.data) for picture in queue.ahead if not picture.pixels.done())
            while queue.waiting and len(queue.ahead) < most:
                size = len(queue.waiting[0][2].data)
                if undone and undone + size > LINE_AHEAD_BYTES:
                    break
                part, place, image = queue.waiting.popleft()
                queue.ahead.append(Picture(part, place, image, self._pool.submit(self.decode, image), time.monotonic()))
                undone += size
            room -= len(queue.ahead)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
