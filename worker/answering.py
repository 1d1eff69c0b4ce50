"""Answering: every image of every line gets its result or its dead letter, through the gate."""

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import redis
import structlog
import torch
from torch import Tensor

from worker.alone import GivesUpLaterError, judge_alone
from worker.answers import Judged, Opened
from worker.batching import Batcher, Picture
from worker.engine import Engine, FeatureCache
from worker.errors import RejectedError
from worker.failpoints import failpoint
from worker.intake import Intake, Read
from worker.keeper import Keeper
from worker.message import Image, Rejected
from worker.metrics import Metrics
from worker.opening import Opening
from worker.publishing import Published, Publisher
from worker.settings import Settings
from worker.streams.client import CONNECTION_ERRORS
from worker.streams.line_streams import LineStreams, entry_key
from worker.streams.review import review_caps

log = structlog.get_logger()


class Answering:
    """Reads the answering group of all lines, judges in batches across them, and publishes.

    A turn 1. reads, 2. has images decoded ahead, 3. judges one batch, 4. sends what is finished by it, which goes on
    while the next turn judges. What is in hand is pending in Redis: who drops it reads it again.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        cache: FeatureCache,
        metrics: Metrics,
        streams: Mapping[str, LineStreams],
        weights: Mapping[str, float],
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.cache = cache
        self.metrics = metrics
        self.opening = Opening(settings, engine, cache, metrics, streams)
        self.intake = Intake(settings.streams, settings.worker.name, metrics)
        self.batcher = Batcher(
            self.opening.decode,
            engine.max_batch,
            settings.model.max_wait_ms / 1000,
            len(os.sched_getaffinity(0)),
            weights,
        )
        self.publisher = Publisher(streams, settings.streams, review_caps(settings))
        self.refused: dict[str, str] = {}  # what Redis said to the last turn, by line
        self._hand: list[Opened] = []  # entries in hand that are not sent yet, in the order that they were read

    def turn(self, client: Any, keepers: Mapping[str, Keeper], block_ms: int | None) -> int:
        """Judge one batch and send what it finishes; returns the number of entries that were in hand.

        Waits up to block_ms for the first entry, or for a batch to fill up as long as it may; not at all for None.
        `refused` then says which lines failed.
        """
        self.refused = {}
        self.rewind([part.name for part in self._hand if part.name not in keepers])
        with self.metrics.stage("read"):
            read = self._read(client, keepers, block_ms)
        failpoint("read")
        self.refused |= read.refused
        parts = [Opened(name, entry) for name, entry in read.entries]
        if read.alone:
            return self._turn_alone(client, keepers, parts[0])
        self._hand += parts
        in_hand = len(self._hand)
        with self.metrics.stage("decode"):
            self._open(parts)
            waits = block_ms is not None and self.batcher.patience() > 0
            batch = [] if waits else self.batcher.take()
        self._judge(batch, keepers)
        self._publish(client, keepers)
        return in_hand

    def rewind(self, lines: list[str]) -> None:
        """Let go of what is in hand of lines: it is pending, and comes again, with all that is."""
        for name in lines:
            self.batcher.drop(name)
        self._hand = [part for part in self._hand if part.name not in lines]
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
        self.rewind([part.name for part in self._hand if part.name not in keepers])
        while self._hand and time.monotonic() < deadline:
            self._judge(self.batcher.take(), keepers)
            self._publish(client, keepers)
        self.settle()

    def gives_features_soon(self, line: str) -> bool:
        """Whether a line's entries are in hand, and no features of those before them are left for learning."""
        if self.settings.streams.unique_ids or self.cache.holds(line):  # with unique ids none are left
            return False
        return any(part.name == line for part in self._hand)

    def close(self) -> None:
        """Stop the threads."""
        self.batcher.close()
        self.publisher.close()

    def _read(self, client: Any, keepers: Mapping[str, Keeper], block_ms: int | None) -> Read:
        held: dict[str, int] = {}
        for part in self._hand + self.publisher.parts:
            held[part.name] = held.get(part.name, 0) + len(part.entry.batch or b"")
        enough = {name for name in held if self.batcher.waiting(name) >= self.engine.max_batch}
        if block_ms is not None and self._hand:
            block_ms = math.ceil(1000 * self.batcher.patience())
        return self.intake.read(client, keepers, held, enough, block_ms or 0)

    def _open(self, parts: list[Opened]) -> None:
        """Let the images of entries wait for their turn."""
        opened: list[tuple[Opened, list[Image]]] = []
        for part in parts:
            try:
                opened.append((part, self.opening.images(part.entry, part.rejected)))
            except Exception:
                self._try_alone(part.name)
        opened = [(part, images) for part, images in opened if part in self._hand]
        for part, images in opened:
            part.left = len(images)
        self.batcher.put(opened)

    def _judge(self, batch: list[Picture], keepers: Mapping[str, Keeper]) -> None:
        """Judge a batch; where something fails that nobody expected, a line's entries come again, one by one."""
        batch = sorted(batch, key=lambda picture: picture.part.name)  # stable: a line's images stay in order
        taken: list[tuple[Opened, Image]] = []
        pixels: list[Tensor] = []
        for name, run in groupby(batch, key=lambda picture: picture.part.name):
            of_line = list(run)
            with self._blamed_on(name) as well:
                ready = [(picture, x) for picture in of_line if (x := self._pixels(picture)) is not None]
            if well:
                taken += [(picture.part, picture.image) for picture, _ in ready]
                pixels += [x for _, x in ready]
        if pixels:
            with self._blamed_on(*{part.name for part, _ in taken}) as well:
                features = self.engine.forward(pixels)
            if well:
                self._fill_in(taken, features, keepers)
        for picture in batch:
            picture.part.left -= 1

    @contextmanager
    def _blamed_on(self, *lines: str) -> Iterator[list[bool]]:
        """What fails within has the lines' entries come again; what is given is empty then.

        The device and Redis are lost for all, whatever they are given: that is passed on.
        """
        well = [True]
        try:
            yield well
        except (torch.AcceleratorError, *CONNECTION_ERRORS):
            raise
        except redis.ResponseError as error:
            well.clear()
            self.rewind(list(lines))
            self.refused |= dict.fromkeys(lines, str(error))
        except Exception:
            well.clear()
            for name in lines:
                self._try_alone(name)

    def _try_alone(self, line: str) -> None:
        log.exception("a batch failed; the line's entries are tried one by one", line=line)
        self.rewind([line])
        self.intake.rewind([line], alone=True)

    def _pixels(self, picture: Picture) -> Tensor | None:
        part, image = picture.part, picture.image
        try:
            x = picture.pixels.result()
        except RejectedError as error:
            part.rejected.append(Rejected(image.id, error.reason, str(error), image.data))
            return None
        return x if self.opening.is_first(part.name, image, part.entry, picture.place) else None

    def _fill_in(self, images: list[tuple[Opened, Image]], features: Tensor, keepers: Mapping[str, Keeper]) -> None:
        """Verdicts on images, by their features [B, P, D]; those of a line, and of an entry, stand together."""
        start = 0
        for name, run in groupby(images, key=lambda item: item[0].name):
            of_line = list(run)
            of_images = features[start : start + len(of_line)]
            start += len(of_line)
            with self._blamed_on(name):
                self._verdicts(keepers[name], of_line, of_images)

    def _verdicts(self, keeper: Keeper, images: list[tuple[Opened, Image]], features: Tensor) -> None:
        line = keeper.line
        with self.metrics.stage("score"):
            verdicts = line.judge(features, self.engine.grid)
        for (part, image), verdict in zip(images, verdicts, strict=True):
            part.judged.append(Judged(image, verdict, line.serving))
        if line.learns and keeper.epoch:
            self._keep_features([part for part, _ in images], features)

    def _keep_features(self, parts: list[Opened], features: Tensor) -> None:
        """For learning, which then needs no forward pass, as far as there is room."""
        kept = sum(kept.nbytes for part in self._hand for kept in part.features)
        start = 0
        for part, run in groupby(parts):
            count = len(list(run))
            of_part = features[start : start + count]
            if kept + self.cache.size + of_part.nbytes <= self.cache.capacity:
                part.features.append(of_part if count == len(features) else of_part.clone())  # a view holds them all
                kept += of_part.nbytes
            start += count

    def _turn_alone(self, client: Any, keepers: Mapping[str, Keeper], part: Opened) -> int:
        self.settle()
        try:
            judge_alone(self.opening, part, lambda *judged: self._verdicts(keepers[part.name], *judged))
        except redis.ResponseError as error:  # the mark is refused: it stays pending
            self.refused[part.name] = str(error)
        except GivesUpLaterError:  # it comes again, with one more mark
            pass
        else:
            self.publisher.send(client, [part])
            self.settle()
        return 1

    def _publish(self, client: Any, keepers: Mapping[str, Keeper]) -> None:
        """Send what is finished, once what was sent before is settled."""
        self.settle()
        finished = [part for part in self._hand if not part.left]
        self._hand = [part for part in self._hand if part.left]
        if finished:
            for part in finished:
                self._cache(part, keepers)
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
                self._count(each)

    def _cache(self, part: Opened, keepers: Mapping[str, Keeper]) -> None:
        # Where repeats are left out, learning finds its own: it may see the parts in another order.
        whole = part.features and sum(map(len, part.features)) == len(part.judged)
        if not whole or self.settings.streams.unique_ids or part.name not in keepers:
            return
        if entry_key(part.entry.id) > entry_key(keepers[part.name].line.applied_through):
            self.cache.put(part.name, part.entry.id, torch.cat(part.features))

    def _count(self, published: Published) -> None:
        part, name = published.part, published.part.name
        seconds = max(0.0, published.now_ms - entry_key(part.entry.id)[0]) / 1000
        for _, verdict, serving in part.judged:
            self.metrics.images.labels(name, "unscored" if verdict.score is None else "scored").inc()
            self.metrics.end_to_end_seconds.labels(name).observe(seconds)
            if verdict.score is not None and serving.threshold:
                self.metrics.score_to_threshold.labels(name).observe(verdict.score / serving.threshold)
                self.metrics.anomalies.labels(name).inc(verdict.score > serving.threshold)
        for rejected in part.rejected:
            self.metrics.images.labels(name, "dead").inc()
            self.metrics.dead_letters.labels(name, rejected.reason).inc()
            self.metrics.entries_lost.labels(name).inc(rejected.reason == "lost")
