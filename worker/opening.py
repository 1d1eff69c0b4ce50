"""Entries to images, images to what the engine takes; for answering and for learning."""

from collections.abc import Iterator, Mapping

import msgpack
import numpy as np
import torch
from torch import Tensor

from worker.decoding import decode
from worker.engine import Engine
from worker.errors import RefusedError, RejectedError
from worker.failpoints import failpoint
from worker.features import FeatureCache
from worker.message import Image, Pixels, Rejected, decode_batch, encode_map
from worker.metrics import Metrics
from worker.settings import Settings
from worker.streams.line_streams import Entry, LineStreams


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
        """The same of images, with a rejection as a value, for threads.

        An exception that a future keeps is held by the frames of its own traceback, which hold the future: a cycle with
        the image's whole entry in it, which waits for the collector, and at times for its rarest round.
        """
        room = self._room(len(images))
        prepared = torch.from_numpy(room).permute(0, 3, 1, 2).unbind()  # [3, H, W] each, channels last
        found = list[Tensor | Rejected]()
        for image, pixels, x in zip(images, room, prepared, strict=True):
            try:
                self._decode_into(image, pixels)
                found.append(x)
            except RejectedError as error:
                found.append(Rejected(image.id, error.reason, str(error), image.data))
        return found

    def _room(self, images: int) -> Pixels:
        """For the pixels of so many images, [n, H, W, 3]."""
        return np.empty((images, *self.engine.settings.input_shape, 3), np.uint8)

    def _decode_into(self, image: Image, pixels: Pixels) -> None:
        """Lay what the engine takes into pixels [H, W, 3]. Few calls let go of the interpreter, which many wait for."""
        failpoint("decode", image.id)
        decoded = decode(image, self.settings.limits, pixels)
        if decoded.shape != pixels.shape:
            decoded = self.engine.prepare(decoded).permute(1, 2, 0).numpy()
        if not np.may_share_memory(decoded, pixels):
            pixels[:] = decoded

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
        for place, image in enumerate(self.images(entry, [])):
            try:
                with self.metrics.stage("decode"):
                    x = self.decode(image)
            except RejectedError:  # answering tells of it
                continue
            yield place, image, x
