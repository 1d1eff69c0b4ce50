"""Images on their way into entries."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from worker.errors import ConfigurationError, RejectedError
from worker.message import Image, Rejected, decode_batch, encode_batch
from worker.settings import MIB, LimitSettings

BATCH_BYTES = 16 * MIB  # an entry stays well below what a worker accepts by default (64 MiB)


class Collector:
    """Gathers images into entries of `count`, or of `size` bytes of picture; a larger one goes alone.

    Attributes:
        full: entries that wait for being sent, oldest first.
        held: the images of the entry that is not full yet.
    """

    def __init__(self, count: int, size: int) -> None:
        if count < 1 or size < 1:
            raise ConfigurationError(f"{count} images and {size} bytes in an entry: expected at least 1 of each")
        self.count = count
        self.size = size
        self.full: list[list[Image]] = []
        self.held: list[Image] = []

    def add(self, image: Image) -> None:
        if self.held and self._bytes() + len(image.data) > self.size:
            self.close()
        self.held.append(image)
        if len(self.held) == self.count or self._bytes() >= self.size:
            self.close()

    def close(self) -> None:
        """What is held becomes an entry, if anything is."""
        if self.held:
            self.full.append(self.held)
            self.held = []

    def _bytes(self) -> int:
        return sum(len(image.data) for image in self.held)


def batches(images: Iterable[Image], size: int, batch_bytes: int = BATCH_BYTES) -> Iterator[list[Image]]:
    """Lists of up to `size` images and up to `batch_bytes`, or of one larger image."""
    collector = Collector(size, batch_bytes)
    for image in images:
        collector.add(image)
        while collector.full:
            yield collector.full.pop(0)
    if collector.held:
        yield collector.held


def check(image: Image, limits: LimitSettings) -> None:
    """Find what would make the worker refuse an image, short of decoding it.

    Raises:
        RejectedError: with the reason that its dead letter would have.
    """
    name = f"image {image.id!r:.40}"
    if not isinstance(image.data, bytes):
        raise RejectedError("wrong_shape", f"{name}: `data` is of type {type(image.data).__name__}, expected bytes")
    if len(image.data) > limits.entry_bytes:
        raise RejectedError(
            "too_large", f"{name}: {len(image.data)} bytes, at most {limits.entry_bytes} are accepted in an entry"
        )
    try:
        (seen,) = decode_batch(encode_batch([replace(image, data=b"")]), limits)  # of the bytes only the size counts
    except (TypeError, ValueError, OverflowError) as error:  # msgpack knows no such value
        raise RejectedError("wrong_shape", f"{name} cannot be packed: {error}") from None
    if isinstance(seen, Rejected):
        raise RejectedError(seen.reason, f"{name}: {seen.error}")
    if image.format == "raw" and image.shape is not None:
        h, w, c = image.shape
        if len(image.data) != h * w * c:
            raise RejectedError(
                "wrong_shape", f"{name}: raw {h} x {w} x {c} needs {h * w * c} bytes, {len(image.data)} came"
            )
