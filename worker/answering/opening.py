"""Entries to images, images to what the engine takes; for answering and for learning."""

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice

import msgpack
import numpy as np
import torch
from torch import Tensor

from worker.answering.features import FeatureCache
from worker.engine import Engine
from worker.errors import RefusedError, RejectedError
from worker.failpoints import failpoint
from worker.message import Image, Pixels, Rejected, decode_batch, encode_map
from worker.metrics import Metrics
from worker.pictures.bounds import DENSITY, decoding_bytes
from worker.pictures.decoding import decode
from worker.settings import MIB, Settings
from worker.streams.line_streams import Entry, LineStreams

BEAT_SECONDS = 1.0  # between signs of life while an entry is decoded for learning
LARGE_BYTES = MIB // 8  # (`decoding_bytes`) of a picture, that it takes ten milliseconds or more to decode
KEPT_BYTES = 64 * MIB  # of the pixels of such pictures
ITSELF_BYTES = 4 * MIB  # (`decoding_bytes`) of an entry's, at most, that learning decodes itself: a third of a second's


class Opening:
    """Opens entries within the limits, and leaves out what came before where ids are unique."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        cache: FeatureCache,
        metrics: Metrics,
        streams: Mapping[str, LineStreams],
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.cache = cache
        self.metrics = metrics
        self.streams = streams
        H, W = engine.settings.input_shape
        self._most = max(1, KEPT_BYTES // (3 * H * W))
        self._kept = OrderedDict[int, Tensor | None]()  # the last large pictures by their hashes; None: no pictures
        self._keeps = True

    def images(self, entry: Entry, rejected: list[Rejected]) -> list[Image]:
        """An entry's images; what cannot be one goes to `rejected`."""
        try:
            if entry.lost:
                raise RejectedError("lost", "the entry was trimmed from the stream before it was answered")
            images = decode_batch(entry.batch, self.settings.limits)
        except RejectedError as error:
            rejected.append(Rejected("", error.reason, str(error), entry.batch or b""))
            return []
        rejected += [image for image in images if isinstance(image, Rejected)]
        return [image for image in images if isinstance(image, Image)]

    def decode(self, image: Image) -> Tensor:
        """What the engine takes, [3, H, W].

        Raises:
            RejectedError: the image cannot be decoded, or is beyond the limits.
        """
        room = self._room(1)
        self._decode_into(image, room[0])
        return torch.from_numpy(room[0]).permute(2, 0, 1)

    def prepared(self, images: list[Image]) -> list[Tensor | Rejected]:
        """What the engine takes of each image, or why it is rejected, as a value: for threads.

        An exception that a future keeps is held by the frames of its own traceback, which hold the future: a cycle with
        the image's whole entry in it, which waits for the collector, and at times for its rarest round.
        """
        room = self._room(len(images))
        prepared = torch.from_numpy(room).permute(0, 3, 1, 2).unbind()  # [3, H, W] each, channels last
        found = list[Tensor | Rejected]()
        for image, pixels, x in zip(images, room, prepared, strict=True):
            large = True
            try:
                large = self._decode_into(image, pixels) > DENSITY * LARGE_BYTES
                found.append(x)
            except RejectedError as error:
                found.append(Rejected(image.id, error.reason, str(error), image.data))
            if large and _is_dense(image):
                self.keep(image, found[-1])
        return found

    def keep(self, image: Image, x: Tensor | Rejected) -> None:
        """Keep what a large picture is decoded to, for learning; called on any thread."""
        if self._keeps:
            kept = self._kept
            kept[_hash(image)] = x if isinstance(x, Tensor) else None
            if len(kept) > self._most:
                kept.popitem(last=False)

    def let_keep(self, keeps: bool) -> None:
        """Whether a line learns, for which pixels are kept; else those that are kept are let go of."""
        self._keeps = keeps
        if not keeps:
            self._kept = OrderedDict()  # another one: threads may be at that

    def _room(self, images: int) -> Pixels:
        """For the pixels of so many images, [n, H, W, 3]."""
        return np.empty((images, *self.engine.settings.input_shape, 3), np.uint8)

    def _decode_into(self, image: Image, pixels: Pixels) -> int:
        """Lay what the engine takes into pixels [H, W, 3]; bytes of the pixels that it was made of.

        Few calls let go of the interpreter, which many wait for.
        """
        failpoint("decode", image.id)
        decoded = decode(image, self.settings.limits, pixels)
        size = decoded.nbytes
        if decoded.shape != pixels.shape:
            decoded = self.engine.prepare(decoded).permute(1, 2, 0).numpy()
        if not np.may_share_memory(decoded, pixels):
            pixels[:] = decoded
        return size

    def is_first(self, line: str, image: Image, entry: Entry, place: int, learns: bool = False) -> bool:
        """Whether no image of its id came before; what cannot be decoded has no claim on it: it may be sent again."""
        window = self.settings.streams.unique_ids
        if not window or self.streams[line].is_first(image.id, entry.id, place, window, learns):
            return True
        self.metrics.images.labels(line, "skipped").inc(not learns)
        return False

    def extract(self, line: str, entry: Entry) -> Iterator[Tensor]:
        """Features [B, P, D] of an entry's usable images, for learning; those that answering has left, if it has."""
        cached = self.cache.pop(line, entry.id)
        if cached is not None:
            yield cached
            return
        yield from self.engine.batches(x for _, x in self._usable(line, entry))

    def too_long(self, line: str, entry: Entry) -> list[Image]:
        """Large pictures of an entry that `extract` would take longer to decode than all lines are to wait for it; none
        where they are few, or their pixels are kept, or answering has left the entry's features."""
        if self.cache.has(line, entry.id):
            return []
        undecoded = (image for image in self.images(entry, []) if _is_large(image) and _hash(image) not in self._kept)
        images = list(islice(undecoded, self._most))
        return images if sum(map(_size, images)) > ITSELF_BYTES else []

    def usable(self, line: str, entry: Entry) -> list[Image]:
        """The images of an entry that `extract` gives the features of."""
        return [image for image, _ in self._usable(line, entry)]

    def features_of(self, image: bytes) -> Tensor:
        """Features [1, P, D] of an image as review keeps it.

        Raises:
            RefusedError: it cannot be decoded any more.
        """
        try:
            batch = encode_map(image)
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise RefusedError(f"what review holds is not a picture: {type(error).__name__}: {error}") from None
        prepared = [x for _, _, x in self._decoded(Entry("0-0", batch))]
        if not prepared:
            raise RefusedError("the picture that review holds cannot be decoded")
        return next(iter(self.engine.batches(prepared)))

    def _usable(self, line: str, entry: Entry) -> Iterator[tuple[Image, Tensor]]:
        for place, image, x in self._decoded(entry):
            if self.is_first(line, image, entry, place, learns=True):
                yield image, x

    def _decoded(self, entry: Entry) -> Iterator[tuple[int, Image, Tensor]]:
        """An entry's images with their places, decoded one at a time as they are needed."""
        beaten = time.monotonic()
        for place, image in enumerate(self.images(entry, [])):
            if time.monotonic() - beaten > BEAT_SECONDS:  # all of them may take longer than a lease
                self.engine.beat()
                beaten = time.monotonic()
            with self.metrics.stage("decode"):
                x = self._for_learning(image)
            if x is not None:  # answering tells of one that cannot be decoded
                yield place, image, x

    def _for_learning(self, image: Image) -> Tensor | None:
        """What the engine takes, or None. A dense picture is decoded once, as a rule by answering's threads, and many
        large ones by another: while they are decoded here all lines wait."""
        if _is_large(image):
            with suppress(KeyError):
                return self._kept[_hash(image)]
        (x,) = self.prepared([image])
        return x if isinstance(x, Tensor) else None


def _size(image: Image) -> int:
    return decoding_bytes(image.format, image.data)


def _is_large(image: Image) -> bool:
    """Whether a picture takes so long to decode that a hash of its bytes is nothing beside it."""
    return _size(image) > LARGE_BYTES


def _is_dense(image: Image) -> bool:
    """Whether it is large, and takes longer to decode than its bytes tell."""
    return _size(image) > max(LARGE_BYTES, len(image.data))


def _hash(image: Image) -> int:
    return hash((image.format, image.shape, image.data))
