"""Which images are judged next: of all lines, fairly, decoded ahead on threads."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from typing import NamedTuple

from torch import Tensor

from worker.answering.answers import Opened
from worker.message import Image, Rejected
from worker.pictures.bounds import decoding_bytes
from worker.runtime.threads import compute_on
from worker.settings import MIB

AHEAD = 2  # batches that are decoded ahead
TASKS = 8  # of decoding, for a batch of one line: a task costs as much of the interpreter's time as its pictures do
LINE_AHEAD_BYTES = MIB  # of a line's images that are decoded at once, or one image: huge ones leave threads to others
DECODING_SECONDS = 0.05  # that are waited at most for a picture to be decoded, before the loop turns
FRESH_SECONDS = 0.003  # in which small pictures are decoded: one that has just come need not miss the batch

Waiting = tuple[Opened, int, Image, int]  # an opened entry, an image by its place there, its `decoding_bytes`


class Picture(NamedTuple):
    """An image of an opened entry, by its place there, the `number`-th of those that are decoded together."""

    opened: Opened
    place: int
    image: Image
    size: int  # its `decoding_bytes`
    decoded: "Future[list[Tensor | Rejected]]"
    number: int
    since: float

    @property
    def pixels(self) -> Tensor | Rejected:
        """What the engine takes, or why not."""
        return self.decoded.result()[self.number]


@dataclass
class _Queue:
    """One line's images: those that wait, and those on their way. Having drained, it stays until its next turn."""

    turn: float  # images that it may take in a round
    carried: float  # of them, at most, that are left for the next
    credit: float  # that it may take now
    drained: bool = True  # since its last turn; so is one that is new
    in_turn: bool = False
    put_off: bool = False  # whether its turn begins a batch, since too little of it would have fitted the one before
    waiting: "deque[Waiting]" = field(default_factory=deque)
    ahead: "deque[Picture]" = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.waiting) + len(self.ahead)

    @property
    def ready(self) -> bool:
        """Whether its next image is decoded."""
        return bool(self.ahead) and self.ahead[0].decoded.done()

    @property
    def early(self) -> bool:
        """Whether it is served before any turn: it sends little, and has not had its share of this round."""
        return self.drained and self.credit >= 1

    @property
    def credit_of_next_turn(self) -> float:
        return self.turn + min(self.credit, self.carried)

    @property
    def due(self) -> float:
        """Images that it may take when it is served next."""
        return self.credit if self.early or self.in_turn else self.credit_of_next_turn

    @property
    def decoded(self) -> int:
        """Images that are decoded, up to the first that is not."""
        return sum(1 for _ in takewhile(lambda picture: picture.decoded.done(), self.ahead))

    @property
    def run(self) -> int:
        """Images that it can take now."""
        return min(int(self.credit), self.decoded)

    def begin_turn(self) -> None:
        """It goes on with the one that it has, if it has one."""
        if not self.in_turn:
            self.credit, self.in_turn, self.drained = self.credit_of_next_turn, True, False

    def keep_early(self) -> None:
        """Its turn passes while it is decoded: it comes before all turns still, as it would have, decoded at once."""
        if len(self) <= self.turn:
            self.credit = self.credit_of_next_turn

    def serve(self, batch: list[Picture], size: int) -> None:
        """Move images to a batch of that size."""
        taken = min(self.run, size - len(batch))
        batch += [self.ahead.popleft() for _ in range(taken)]
        self.credit -= taken
        self.drained |= not len(self)


class Batcher:
    """Forms batches across lines by deficit round-robin (Shreedhar & Varghese, 1996), a line's images in order.

    A line's turn is of as many images as a batch has, times its weight: those of one line are searched for together,
    so turns and batches are kept in step. Where a batch is full and a turn nearly used up, the turn ends, and what was
    left of it is added to the line's next. A line that is new, or had nothing waiting, comes before all turns, with
    what is left of its share of the round: who sends little waits for no queue, as in FQ-CoDel (RFC 8290). A turn of
    which less than half would fit behind such lines begins the next batch, and this one goes as it is. Only what is
    decoded is taken: a line whose images take long holds nobody up; where all wait for decoding, shares are not kept.

    Args:
        decode: from images to what the engine takes of each, or why it has none; runs on threads.
        max_batch: images in a batch.
        max_wait: seconds that an image waits for others.
        threads: that decode.
        weights: of the lines, where another than 1.
        apart: whether what comes before all turns has a batch of its own, which is through the sooner.
    """

    def __init__(
        self,
        decode: Callable[[list[Image]], list[Tensor | Rejected]],
        max_batch: int,
        max_wait: float,
        threads: int,
        weights: Mapping[str, float],
        apart: bool = False,
    ) -> None:
        self.decode = decode
        self.max_batch = max_batch
        self.max_wait = max_wait
        self.together = -(-max_batch // TASKS)
        self.weights = weights
        self.apart = apart
        self.was_early = False  # the last batch was of what comes before all turns, alone; turns come after it
        self._pool = ThreadPoolExecutor(threads, "decode", initializer=compute_on, initargs=(1,))
        self._queues: dict[str, _Queue] = {}  # in the order of their turns

    def put(self, entries: Iterable[tuple[Opened, list[Image]]]) -> None:
        """Let the images of opened entries wait for their turn."""
        for opened, images in entries:
            if images:
                turn = self.max_batch * self.weights.get(opened.name, 1.0)
                queue = self._queues.setdefault(opened.name, _Queue(turn, max(1.0, self.max_batch / 2), turn))
                queue.turn, queue.credit = turn, min(queue.credit, turn + queue.carried)  # weights change
                for place, image in enumerate(images):
                    queue.waiting.append((opened, place, image, decoding_bytes(image.format, image.data)))
        self._decode_ahead()

    def drop(self, line: str) -> None:
        """Forget a line's images: its entries come again."""
        if queue := self._queues.pop(line, None):
            for picture in queue.ahead:
                picture.decoded.cancel()

    def waiting(self, line: str) -> int:
        """Images of a line that are not taken yet."""
        queue = self._queues.get(line)
        return 0 if queue is None else len(queue)

    def at(self, line: str) -> str:
        """The entry whose images are a line's next, some of which are not taken yet; "" if none is waiting."""
        if not (queue := self._queues.get(line)):
            return ""
        return (queue.ahead[0].opened if queue.ahead else queue.waiting[0][0]).entry.id

    def patience(self) -> float:
        """Seconds until a batch is to go although it is not full."""
        queues = self._queues.values()
        if not 0 < sum(map(len, queues)) < self.max_batch:
            return 0.0
        oldest = min((picture.since for queue in queues for picture in queue.ahead), default=0.0)
        return max(0.0, oldest + self.max_wait - time.monotonic())

    def take(self, only_early: bool = False, busy: bool = False) -> list[Picture]:
        """The next batch, of decoded images; empty if none is ready in a moment.

        Args:
            only_early: it is to be of those that come before all turns.
            busy: nothing that is not decoded is waited for long.
        """
        heads = [queue.ahead[0] for queue in self._queues.values() if queue.ahead and (queue.early or not only_early)]
        if not any(picture.decoded.done() for picture in heads):
            wait([picture.decoded for picture in heads], 0.0 if busy else DECODING_SECONDS, FIRST_COMPLETED)
        ahead = [picture for queue in self._queues.values() for picture in queue.ahead]
        if sum(queue.decoded for queue in self._queues.values()) >= self.max_batch:
            ahead = heads  # of a line that has come just now
        fresh = time.monotonic() - FRESH_SECONDS
        wait([picture.decoded for picture in ahead if picture.since > fresh], FRESH_SECONDS)
        batch = self._form(only_early)
        self._decode_ahead()
        return batch

    def _form(self, only_early: bool) -> list[Picture]:
        batch: list[Picture] = []
        # 1. Lines that come before any turn.
        for queue in self._in_order():
            if queue.early:
                queue.serve(batch, self.max_batch)
        if only_early or (batch and self.apart and not self.was_early):
            self.was_early |= bool(batch)
            return batch
        self.was_early = False
        # 2. Turns.
        self._serve_turns(batch)
        return batch

    def _serve_turns(self, batch: list[Picture]) -> None:
        """Fill up a batch by the lines whose turn it is, until a round of them had nothing ready."""
        before, idle = len(batch), 0
        while len(batch) < self.max_batch and idle < len(self._queues):
            name, queue = next(iter(self._queues.items()))
            if not len(queue):
                del self._queues[name]
                continue
            idle = 0 if queue.ready else idle + 1
            if queue.early and not queue.ready:
                queue.keep_early()
            else:
                queue.begin_turn()
                if before and self._is_to_begin_a_batch(queue, self.max_batch - len(batch)):
                    queue.put_off = True
                    return
                queue.serve(batch, self.max_batch)
                if len(batch) == self.max_batch and queue.ready and queue.credit >= self.max_batch / 2:
                    return  # the next batch goes on with it
                queue.in_turn = queue.put_off = False
            self._queues[name] = self._queues.pop(name)  # to the end

    def _is_to_begin_a_batch(self, queue: _Queue, left: int) -> bool:
        """Whether less than half of what a batch could have of a turn would fit; once alone, and only beside others."""
        if queue.put_off or min(queue.run, self.max_batch) <= 2 * left:
            return False
        return any(len(other) for other in self._queues.values() if other is not queue)

    def _in_order(self) -> list[_Queue]:
        """Queues in the order in which they are served; of those before any turn the shortest first."""
        return sorted(self._queues.values(), key=lambda queue: len(queue) if queue.early else math.inf)

    def _decode_ahead(self) -> None:
        """Keep the threads busy with what is taken next: a few batches, by as many rounds of turns as they hold."""
        queues, rounds = self._in_order(), 0.0
        while queues:
            room, hungry = AHEAD * self.max_batch, list[_Queue]()
            for queue in queues:
                most = min(room, math.ceil(queue.due + rounds * queue.turn))
                if self._submit(queue, most):
                    hungry.append(queue)
                room -= min(len(queue.ahead), most)
            if room <= 0 or not hungry:
                break
            rounds += max(1.0, 1 / max(queue.turn for queue in hungry))

    def _submit(self, queue: _Queue, most: int) -> bool:
        """Have so many of a line's images decoded, or on their way; whether more could be."""
        undone = sum(picture.size for picture in queue.ahead if not picture.decoded.done())
        taken, full = list[Waiting](), False
        while queue.waiting:
            size = queue.waiting[0][3]
            if undone and undone + size > LINE_AHEAD_BYTES:
                break
            if full := len(queue.ahead) + len(taken) >= most:
                break
            taken.append(queue.waiting.popleft())
            undone += size
        for of_task in self._tasks(taken):
            decoded = self._pool.submit(self.decode, [image for _, _, image, _ in of_task])
            queue.ahead += [Picture(*each, decoded, n, time.monotonic()) for n, each in enumerate(of_task)]
        return full

    def _tasks(self, taken: list[Waiting]) -> Iterator[list[Waiting]]:
        """What is decoded together: an eighth of a batch, and of what may be decoded at once; or one picture."""
        while taken:
            sizes = accumulate(each[3] for each in taken[: self.together])
            count = max(1, sum(size <= LINE_AHEAD_BYTES / TASKS for size in sizes))
            yield taken[:count]
            taken = taken[count:]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
