"""Answering: every image of every line gets its result or its dead letter, through the gate."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import msgpack
import redis
import structlog
import torch
from torch import Tensor

from worker.answers import Opened, answer_of
from worker.engine import Engine, FeatureCache
from worker.errors import RefusedError, RejectedError, one_line
from worker.failpoints import failpoint
from worker.intake import Intake
from worker.keeper import Keeper
from worker.message import Image, Rejected, decode_batch, decode_pixels, encode_map
from worker.metrics import Metrics
from worker.reading import ATTEMPTS
from worker.settings import Settings
from worker.streams.client import CONNECTION_ERRORS
from worker.streams.line_streams import Entry, LineStreams, entry_key
from worker.streams.review import review_caps

log = structlog.get_logger()


class GivesUpLaterError(Exception):
    """An entry failed as a whole, and is to be tried again."""


class Answering:
    """Reads the answering group of all lines, and publishes."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        cache: FeatureCache,
        metrics: Metrics,
        streams: Mapping[str, LineStreams],
    ) -> None:
        self.settings = settings
        self.streams = streams
        self.engine = engine
        self.cache = cache
        self.metrics = metrics
        self.intake = Intake(settings.streams, settings.worker.name, metrics)
        self.refused: dict[str, str] = {}  # what Redis said to the last turn, by line
        self._room = 0  # bytes of features that this turn may still keep for learning

    def turn(self, client: Any, keepers: Mapping[str, Keeper], block_ms: int | None) -> int:
        """Answer one read's worth of entries; returns how many there were. `refused` then says which lines failed."""
        self.refused = {}
        with self.metrics.stage("read"):
            taken = self.intake.read(client, keepers, block_ms)
        failpoint("read")
        opened = [Opened(keepers[name].line, entry) for name, entry in taken.entries]
        self._room = self.cache.capacity
        if taken.alone:
            name = opened[0].line.name
            try:
                self._judge_alone(opened[0])
            except redis.ResponseError as error:  # the mark is refused: it stays pending
                self.refused[name] = str(error)
                return len(opened)
            except GivesUpLaterError:  # it comes again, with one more mark
                return len(opened)
        elif opened and not self._judged(opened):
            return len(opened)
        if opened:
            failpoint("gate")
            self._publish(client, keepers, opened)
            failpoint("gate_done")
        return len(opened)

    def extract(self, line: str, entry: Entry) -> Iterator[Tensor]:
        """Features [B, P, D] of an entry's usable images, for learning; those that answering has left, if it has."""
        cached = self.cache.pop(line, entry.id)
        if cached is not None:
            yield cached
            return
        yield from self.engine.batches(x for _, x in self._prepared(entry, [], self.streams[line], learns=True))

    def usable(self, line: str, entry: Entry) -> list[Image]:
        """The images of an entry that can be decoded: those that `extract` gives the features of."""
        return [image for image, _ in self._prepared(entry, [], self.streams[line], learns=True)]

    def features_of(self, image: bytes) -> Tensor:
        """Features [1, P, D] of an image as review keeps it.

        Raises:
            RefusedError: it cannot be decoded any more.
        """
        try:
            batch = encode_map(image)
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise RefusedError(f"what review holds is not a picture: {type(error).__name__}: {error}") from None
        prepared = [x for _, x in self._prepared(Entry("0-0", batch), [])]
        if not prepared:
            raise RefusedError("the picture that review holds cannot be decoded")
        return next(iter(self.engine.batches(prepared)))

    def _images(self, entry: Entry, rejected: list[Rejected]) -> Iterator[Image]:
        """An entry's images; what cannot be one goes to `rejected`."""
        try:
            if entry.lost:
                raise RejectedError("lost", "the entry was trimmed from the stream before it was answered")
            images = decode_batch(entry.batch, self.settings.limits)
        except RejectedError as error:
            rejected.append(Rejected("", error.reason, str(error), entry.batch or b""))
            return
        for image in images:
            if isinstance(image, Rejected):
                rejected.append(image)
            else:
                yield image

    def _prepared(
        self, entry: Entry, rejected: list[Rejected], streams: LineStreams | None = None, learns: bool = False
    ) -> Iterator[tuple[Image, Tensor]]:
        """An entry's images, decoded one at a time as they are needed; what is unusable goes to `rejected`.

        With the line's streams, repeats of an image that came before are left out.
        """
        for place, image in enumerate(self._images(entry, rejected)):
            prepared = self._prepare(image, rejected)
            if prepared is not None and self._is_first(image, entry, place, streams, learns):
                yield image, prepared

    def _prepare(self, image: Image, rejected: list[Rejected]) -> Tensor | None:
        try:
            with self.metrics.stage("decode"):
                failpoint("decode", image.id)
                return self.engine.prepare(decode_pixels(image, self.settings.limits))
        except RejectedError as error:
            rejected.append(Rejected(image.id, error.reason, str(error), image.data))
            return None

    def _is_first(self, image: Image, entry: Entry, place: int, streams: LineStreams | None, learns: bool) -> bool:
        """What cannot be decoded has no claim on its id: it may be sent again, whole."""
        window = self.settings.streams.unique_ids
        if streams is None or not window or streams.is_first(image.id, entry.id, place, window, learns):
            return True
        self.metrics.images.labels(streams.line, "skipped").inc(not learns)
        return False

    def _judged(self, opened: list[Opened]) -> bool:
        """Judge; False if something failed that nobody expected: then each entry comes again, by itself."""
        try:
            self._judge(opened)
        except (torch.AcceleratorError, *CONNECTION_ERRORS):  # the device or Redis is lost, whatever they are given
            raise
        except Exception as error:
            log.exception("a batch failed; its entries are tried one by one", entries=len(opened), error=str(error))
            self.intake.rewind({part.line.name for part in opened}, alone=True)
            return False
        return True

    def _judge(self, opened: list[Opened]) -> None:
        """Fill in verdicts and rejections, in batches across entries and lines."""
        taken: list[tuple[Opened, Image]] = []

        def prepared() -> Iterator[Tensor]:
            for part in opened:
                for image, x in self._prepared(part.entry, part.rejected, self.streams[part.line.name]):
                    taken.append((part, image))
                    yield x

        judged = 0
        for features in self.engine.batches(prepared()):
            chunk = taken[judged : judged + len(features)]
            judged += len(features)
            start = 0
            for part, run in groupby(chunk, key=lambda item: item[0]):
                images = [image for _, image in run]
                self._verdicts(part, images, features[start : start + len(images)])
                start += len(images)

    def _judge_alone(self, part: Opened) -> None:
        """Judge an entry image by image, each marked before it is tried: what took the process down is found again."""
        streams = self.streams[part.line.name]
        given_up = []  # their marks stay until all are through: the next may yet take the process down
        for place, image in enumerate(self._split_alone(part, streams)):
            mark = f"{part.entry.id}/{place}"
            error = f"the process crashed {ATTEMPTS} times with this image in hand"
            while streams.mark(mark) <= ATTEMPTS:
                try:
                    x = self._prepare(image, part.rejected)
                    if x is not None and self._is_first(image, part.entry, place, streams, False):
                        self._verdicts(part, [image], next(iter(self.engine.batches([x]))))
                    streams.unmark(mark)
                    break
                except (torch.AcceleratorError, redis.RedisError):
                    raise
                except Exception as failure:
                    log.exception("an image failed", line=part.line.name, entry=part.entry.id, id=image.id)
                    error = f"failed {ATTEMPTS} times: {type(failure).__name__}: {one_line(failure, 300)}"
            else:
                part.rejected.append(Rejected(image.id, "failed", error, image.data))
                given_up.append(mark)
                streams.disown(image.id, part.entry.id, place)
        streams.unmark(*given_up)

    def _split_alone(self, part: Opened, streams: LineStreams) -> list[Image]:
        mark = f"{part.entry.id}/"
        if streams.mark(mark) > ATTEMPTS:
            error = f"splitting the entry into its images failed {ATTEMPTS} times"
            part.rejected.append(Rejected("", "failed", error, part.entry.batch or b""))
            images = []
        else:
            try:
                images = list(self._images(part.entry, part.rejected))
            except Exception as error:
                log.exception("an entry failed", line=part.line.name, entry=part.entry.id)
                raise GivesUpLaterError from error
        streams.unmark(mark)
        return images

    def _verdicts(self, part: Opened, images: list[Image], features: Tensor) -> None:
        with self.metrics.stage("score"):
            part.verdicts += zip(images, part.line.judge(features, self.engine.grid), strict=True)
        if part.line.learns and features.nbytes <= self._room:
            part.features.append(features)
            self._room -= features.nbytes

    def _publish(self, client: Any, keepers: Mapping[str, Keeper], opened: list[Opened]) -> None:
        seconds, microseconds = client.time()
        now_ms = seconds * 1000 + microseconds / 1000
        for name, run in groupby(opened, key=lambda part: part.line.name):
            parts = list(run)
            caps = self.settings.streams
            answers = [answer_of(part, now_ms, caps.payload_bytes) for part in parts]
            try:
                with self.metrics.stage("publish"):
                    published = keepers[name].streams.publish(
                        answers, caps.scores_max, caps.dead_max, review_caps(self.settings)
                    )
            except redis.ResponseError as error:  # its entries stay pending
                self.refused[name] = str(error)
                continue
            for part, once in zip(parts, published, strict=True):
                if once:
                    self._count(part, now_ms)
                # Where repeats are left out, learning finds its own: it may see the parts in another order.
                whole = part.features and sum(map(len, part.features)) == len(part.verdicts) and not caps.unique_ids
                if whole and entry_key(part.entry.id) > entry_key(part.line.applied_through):
                    self.cache.put(name, part.entry.id, torch.cat(part.features))

    def _count(self, part: Opened, now_ms: float) -> None:
        name, threshold = part.line.name, part.line.serving.threshold
        seconds = max(0.0, now_ms - entry_key(part.entry.id)[0]) / 1000
        for _, verdict in part.verdicts:
            outcome = "unscored" if verdict.score is None else "scored"
            self.metrics.images.labels(name, outcome).inc()
            self.metrics.end_to_end_seconds.labels(name).observe(seconds)
            if verdict.score is not None and threshold:
                self.metrics.score_to_threshold.labels(name).observe(verdict.score / threshold)
                self.metrics.anomalies.labels(name).inc(verdict.score > threshold)
        for rejected in part.rejected:
            self.metrics.images.labels(name, "dead").inc()
            self.metrics.dead_letters.labels(name, rejected.reason).inc()
            self.metrics.entries_lost.labels(name).inc(rejected.reason == "lost")
