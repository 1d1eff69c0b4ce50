"""Answering: every image of every line gets its result or its dead letter, through the gate."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import redis
import structlog

from mhpc.core.devices import is_device_failure
from worker.answering.alone import GivesUpLaterError, judge_alone
from worker.answering.answers import Opened
from worker.answering.batching import Batcher
from worker.answering.features import FeatureCache, cache_on
from worker.answering.intake import Intake, Read
from worker.answering.judging import Judging
from worker.answering.opening import Opening
from worker.answering.publishing import Publisher, count
from worker.engine import Engine
from worker.failpoints import failpoint
from worker.keeping.keeper import Keeper
from worker.message import Image
from worker.metrics import Metrics
from worker.pictures.decoding import decoding_threads
from worker.runtime.pulse import Timed
from worker.runtime.threads import compute_behind
from worker.settings import Settings
from worker.streams.client import CONNECTION_ERRORS
from worker.streams.ids import entry_key
from worker.streams.line_streams import LineStreams
from worker.streams.review import review_caps

ALONE_SECONDS = 0.1  # of a turn, for images that are tried one by one, beyond the one in hand
READ_AHEAD = {"cuda": 2}  # batches of a line that wait at least, if it has as many: decoding 64 pictures takes a while

log = structlog.get_logger()


class Answering:
    """Reads the answering group of all lines, judges in batches across them, and publishes.

    A turn 1. reads, 2. has images decoded ahead, 3. begins to judge one batch, 4. takes the verdicts of that batch, or
    of those before where a GPU computes meanwhile, 5. sends what is finished by it, which goes on while the next turn
    judges. What is in hand is pending in Redis: who drops it reads it again.

    One entry that is tried alone is in hand beside the others, a few of its images a turn, while no batch is under way.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        metrics: Metrics,
        streams: Mapping[str, LineStreams],
        weights: Mapping[str, float],
        cache: FeatureCache | None = None,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.cache = cache_on(engine.device) if cache is None else cache
        if settings.streams.unique_ids:  # learning finds its own features: it may see parts in another order
            self.cache.capacity = 0
        self.metrics = metrics
        self.opening = Opening(settings, engine, self.cache, metrics, streams)
        self.intake = Intake(settings.streams, settings.worker.name, metrics, engine.max_batch)
        self.decoding = Timed(self.opening.prepared)
        self.batcher = Batcher(
            self.decoding,
            engine.max_batch,
            settings.model.max_wait_ms / 1000,
            decoding_threads(),
            weights,
            apart=engine.passes > 1,
        )
        self._for_learning = ThreadPoolExecutor(1, "decode-behind", initializer=compute_behind, initargs=(1,))
        self.publisher = Publisher(streams, settings.streams, review_caps(settings))
        self.stands_still = False  # whether the last turn but waited for threads
        self.refused: dict[str, str] = {}  # what Redis said to the last turn, by line
        self._hand: list[Opened] = []  # entries in hand that are not sent yet, in the order that they were read
        self._alone: tuple[Opened, Iterator[None]] | None = None  # that of them which is tried alone
        self.judging = Judging(self.opening, self.cache, self._blame)

    def turn(self, client: Any, keepers: Mapping[str, Keeper], block_ms: int | None) -> int:
        """Judge one batch and send what it finishes; returns the number of entries that were in hand.

        Waits up to block_ms for the first entry, or for a batch to fill up as long as it may; not at all for None.
        `refused` then says which lines failed.
        """
        self.refused = {}
        self.opening.let_keep(any(keeper.line.learns and keeper.epoch for keeper in keepers.values()))
        self.rewind([opened.name for opened in self._hand if opened.name not in keepers])
        with self.metrics.stage("read"):
            read = self._read(client, keepers, block_ms)
        failpoint("read")
        self.refused |= read.refused
        entries = [Opened(name, entry) for name, entry in read.entries]
        self._hand += entries
        in_hand = len(self._hand)
        if read.alone:
            self._begin_alone(entries.pop(), keepers)
        with self.metrics.stage("decode"):
            self._open(entries)
        tried = self._go_on_alone()
        with self.metrics.stage("decode"):
            waits = block_ms is not None and self.batcher.patience() > 0
            room = self.judging.room
            places = room + 1 if self._will_learn(keepers) else room
            only_early = places == 1  # the last one is kept for what comes before all turns
            batch = [] if waits or not places else self.batcher.take(only_early, busy=room <= self.engine.passes)
        self.judging.launch(batch, keepers, self.batcher.was_early)
        stay = self.judging.may_stay_under_way(keepers, bool(batch), busy=block_ms is None)
        landed = self.judging.land(self._hand, stay)
        self.stands_still = self.judging.under_way and not (batch or landed or tried)
        self._publish(client, keepers)
        return in_hand

    def rewind(self, lines: list[str]) -> None:
        """Let go of what is in hand of lines: it is pending, and comes again, with all that is."""
        for name in lines:
            self.batcher.drop(name)
        # In place: batches are landed by it.
        self._hand[:] = [opened for opened in self._hand if opened.name not in lines]
        if self._alone and self._alone[0].name in lines:
            self._alone = None
        self.intake.rewind(lines)

    def forget(self, line: str) -> None:
        """The line is served no more."""
        self.rewind([line])
        self.intake.forget(line)
        self.cache.drop(line)

    def finish(self, client: Any, keepers: Mapping[str, Keeper], seconds: float) -> None:
        """Answer what is in hand, without reading more; what takes longer comes again after the next start."""
        self.refused = {}
        deadline = time.monotonic() + seconds
        self.rewind([opened.name for opened in self._hand if opened.name not in keepers])
        while self._hand and time.monotonic() < deadline:
            self._go_on_alone()
            batch = self.batcher.take()
            self.judging.launch(batch, keepers)
            self.judging.land(self._hand, self.engine.passes - 1 if batch else 0)
            self._publish(client, keepers)
        self.settle()

    def gives_features_soon(self, line: str) -> bool:
        """Whether a line's entries are in hand, and no features of those before them are left for learning."""
        if not self.cache.capacity or self.cache.holds(line):  # or none are left
            return False
        return any(opened.name == line for opened in self._hand)

    def decode_for_learning(self, images: Sequence[Image]) -> "Future[Any]":
        """Have a thread decode large pictures, behind what is answered; done with the last. Their pixels are kept."""

        def decode(image: Image) -> None:
            self.opening.keep(image, *self.decoding([image]))

        return [self._for_learning.submit(decode, image) for image in images][-1]

    @property
    def would_wait(self) -> bool:
        """Whether answers wait for a loop that does something else; where threads judge they come meanwhile."""
        return self.judging.under_way or (self.engine.device.type == "cuda" and bool(self._hand))

    def close(self) -> None:
        """Stop the threads."""
        self._for_learning.shutdown(wait=True, cancel_futures=True)
        self.batcher.close()
        self.judging.close()
        self.publisher.close()

    def _read(self, client: Any, keepers: Mapping[str, Keeper], block_ms: int | None) -> Read:
        held: dict[str, dict[str, int]] = {}
        for opened in self._hand + self.publisher.under_way:
            held.setdefault(opened.name, {})[opened.entry.id] = len(opened.entry.batch or b"")
        ahead = READ_AHEAD.get(self.engine.device.type, 1) * self.engine.max_batch
        enough = {name for name in held if self.batcher.waiting(name) >= ahead}
        if block_ms is not None and self._hand:  # results that are under way wait for no batch to fill up
            block_ms = 0 if self.judging.under_way or self._alone else math.ceil(1000 * self.batcher.patience())
        return self.intake.read(client, keepers, held, enough, block_ms or 0)

    def _will_learn(self, keepers: Mapping[str, Keeper]) -> bool:
        """Whether this loop learns from what is in hand before it answers on. That takes as long as a batch: so one
        more batch is begun first, and no thread waits for the next."""
        lines = [keepers[name] for name in {opened.name for opened in self._hand} if name in keepers]
        return any(keeper.line.learns and keeper.epoch for keeper in lines)

    def _open(self, entries: list[Opened]) -> None:
        """Let the images of entries wait for their turn."""
        found: list[tuple[Opened, list[Image]]] = []
        for opened in entries:
            try:
                found.append((opened, self.opening.images(opened.entry, opened.rejected)))
            except Exception:
                self._try_alone(opened.name)
        found = [(opened, images) for opened, images in found if opened in self._hand]
        for opened, images in found:
            opened.left = len(images)
        self.batcher.put(found)

    def _blame(self, error: Exception, *lines: str) -> None:
        """Where an error is handled: have the lines' entries read again. What is lost for all lines, the device or
        Redis, is raised again."""
        if isinstance(error, CONNECTION_ERRORS) or is_device_failure(error):
            raise error
        if isinstance(error, redis.ResponseError):
            self.rewind(list(lines))
            self.refused |= dict.fromkeys(lines, str(error))
            return
        for name in lines:
            self._try_alone(name)

    def _try_alone(self, line: str) -> None:
        log.exception("a batch failed; the line's entries are tried one by one", line=line)
        self.rewind([line])
        self.intake.rewind([line], alone=True)

    def _begin_alone(self, opened: Opened, keepers: Mapping[str, Keeper]) -> None:
        opened.left = 1  # as a whole
        judge = partial(self.judging.judge, keepers[opened.name])
        self._alone = opened, judge_alone(self.opening, opened, judge)

    def _go_on_alone(self) -> bool:
        """Try images of the entry one by one, for a while; whether there was one.

        Nothing else is judged or sent meanwhile: what ends the process is an image's that is marked.
        """
        if not self._alone:
            return False
        self.judging.land(self._hand)
        self.settle()
        if not self._alone:  # what was landed failed
            return True
        (opened, steps), self._alone = self._alone, None
        self._hand.remove(opened)  # what fails is let go of
        until = time.monotonic() + ALONE_SECONDS
        try:
            for _ in steps:
                if time.monotonic() >= until:
                    self._alone = opened, steps
                    break
            else:
                opened.left = 0
            self._hand.append(opened)
        except redis.ResponseError as error:  # the mark is refused: it stays pending
            self.refused[opened.name] = str(error)
        except GivesUpLaterError:  # it comes again, with one more mark
            pass
        return True

    def _publish(self, client: Any, keepers: Mapping[str, Keeper]) -> None:
        """Send what is finished, once what was sent before is settled."""
        self.settle()
        finished = [opened for opened in self._hand if not opened.left]
        self._hand = [opened for opened in self._hand if opened.left]
        if finished:
            for opened in finished:
                self._leave(opened, keepers)
            self.publisher.send(client, finished)
        if not self._hand:  # nothing that could be judged meanwhile
            self.settle()

    def settle(self) -> None:
        """Learn what came of the entries that were sent.

        Raises:
            redis.ConnectionError, redis.TimeoutError: it is not known.
        """
        with self.metrics.stage("publish"):
            published, refused = self.publisher.settle()
        self.refused |= refused
        for each in published:
            if each.once:
                count(each, self.metrics)

    def _leave(self, opened: Opened, keepers: Mapping[str, Keeper]) -> None:
        """Its features to learning."""
        if opened.name in keepers and entry_key(opened.entry.id) > entry_key(keepers[opened.name].line.applied_through):
            self.cache.take(opened)
