"""Images on their way into entries."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from worker.errors import ConfigurationError, RejectedError
from worker.message import OBJECTS, Image, Rejected, decode_batch, encode_batch
from worker.settings import MIB, LimitSettings
from worker.tokens import has_more_than

BATCH_BYTES = 16 * MIB  # an entry stays well below what a worker accepts by default (64 MiB)


class Collector:
    """Gathers images into entries of `count`, or of `size` bytes of picture; a larger one goes alone.

    Attributes:
        full: entries that wait for being sent, oldest first.
        held: the images of the entry that is not full yet.
        linger: seconds that the first of them may wait for the others; None: for as long as it takes.
        distinct: whether an id may stand in an entry but once.
    """

    def __init__(
        self,
        count: int,
        size: int,
        linger: float | None = None,
        limits: LimitSettings | None = None,
        distinct: bool = False,
    ) -> None:
        self.limits = limits or LimitSettings()
        if not 1 <= count <= self.limits.images_per_entry:
            raise ConfigurationError(f"{count} images in an entry: expected 1 to {self.limits.images_per_entry}")
        if not 1 <= size <= self.limits.entry_bytes:
            raise ConfigurationError(f"{size} bytes in an entry: expected 1 to {self.limits.entry_bytes}")
        if linger is not None and linger < 0:
            raise ConfigurationError(f"linger {linger}: expected seconds, at least 0, or None")
        self.count = count
        self.size = size
        self.linger = linger
        self.distinct = distinct
        self.full: list[list[Image]] = []
        self.held: list[Image] = []
        self._pictures = self._beside = 0  # bytes of what is held, and of what goes along with it

    def unsent(self, going: Sequence[Image]) -> list[Image]:
        """All images but those of the entry `going`, which may have arrived."""
        return [image for images in (*self.full, self.held) if images is not going for image in images]

    def add(self, image: Image, beside: int, timed: bool = False) -> bool:
        """Take an image, of which `check` told the bytes beside its data; whether a time begins that its entry may
        linger: it is the first, or none has begun."""
        if self.held and not self._has_room(len(image.data), beside):
            self.close()
        if self.distinct:  # looked at before it is taken: such an entry could never be sent, nor what follows it
            check_distinct([*self.held, image])
        self.held.append(image)
        self._pictures, self._beside = self._pictures + len(image.data), self._beside + beside
        if len(self.held) == self.count or self._pictures >= self.size:
            self.close()
        return self.linger is not None and bool(self.held) and (len(self.held) == 1 or not timed)

    def close(self) -> None:
        """What is held becomes an entry, if anything is."""
        if self.held:
            self.full += [self.held]  # no call, after which an interrupt would leave it in both
            self.held, self._pictures, self._beside = [], 0, 0

    def _has_room(self, data: int, beside: int) -> bool:
        """Whether an entry with so many bytes more is one that a worker takes; no value takes less than a byte."""
        data, beside = self._pictures + data, self._beside + beside
        return data <= self.size and data + beside <= self.limits.entry_bytes and beside <= OBJECTS


def batches(images: Iterable[Image], size: int, batch_bytes: int = BATCH_BYTES) -> Iterator[list[Image]]:
    """Lists of up to `size` images and up to `batch_bytes`, or of one larger image; raises as `check`."""
    collector = Collector(size, batch_bytes)
    for image in images:
        collector.add(image, check(image, collector.limits))
        while collector.full:
            yield collector.full.pop(0)
    if collector.held:
        yield collector.held


def check_distinct(images: Sequence[Image]) -> None:
    """Refuse what the worker would drop, where an entry may be sent again."""
    if len({image.id for image in images}) < len(images):
        ((twice, _),) = Counter(image.id for image in images).most_common(1)
        raise ConfigurationError(
            f"id {twice!r:.40} stands twice in one entry, so that the worker would drop the second image as a repeat "
            "of the first; give each image an id of its own"
        )


def check_entry(images: Sequence[Image], limits: LimitSettings) -> None:
    """As `check`, of all images of an entry, and of the entry."""
    if len(images) > limits.images_per_entry:
        raise RejectedError(
            "too_many_images", f"{len(images)} images in one entry, at most {limits.images_per_entry} are accepted"
        )
    for image in images:
        check(image, limits)
    _check_size(images, _beside(images), limits)


def _beside(images: Sequence[Image]) -> bytes:
    """An entry with its pictures' bytes left out."""
    return encode_batch([replace(image, data=b"") for image in images])


def _check_size(images: Sequence[Image], beside: bytes, limits: LimitSettings) -> None:
    heads = sum((n > 0xFF) + 2 * (n > 0xFFFF) for n in (len(image.data) for image in images))  # their lengths' bytes
    size = len(beside) + heads + sum(len(image.data) for image in images)
    if size > limits.entry_bytes:
        raise RejectedError("too_large", f"entry of {size} bytes, at most {limits.entry_bytes} are accepted")
    if has_more_than(beside, OBJECTS):
        raise RejectedError("too_large", f"the entry holds more than {OBJECTS} values")


def check(image: Image, limits: LimitSettings) -> int:
    """Find what would make the worker refuse an image, short of decoding it; the bytes that its entry takes beside its
    data.

    Raises:
        RejectedError: with the reason that its dead letter would have.
    """
    name = f"image {image.id!r:.40}"
    if not isinstance(image.data, bytes):
        raise RejectedError("wrong_shape", f"{name}: `data` is of type {type(image.data).__name__}, expected bytes")
    try:
        beside = _beside([image])
        _check_size([image], beside, limits)
        (seen,) = decode_batch(beside, limits)  # of the bytes only the size counts
    except RejectedError as error:
        raise RejectedError(error.reason, f"{name}: {error}") from None
    except (TypeError, ValueError, OverflowError) as error:  # msgpack knows no such value
        raise RejectedError("wrong_shape", f"{name}: {error}") from None
    if isinstance(seen, Rejected):
        raise RejectedError(seen.reason, f"{name}: {seen.error}")
    if image.format == "raw" and image.shape is not None:
        h, w, c = image.shape
        if len(image.data) != h * w * c:
            raise RejectedError(
                "wrong_shape", f"{name}: raw {h} x {w} x {c} needs {h * w * c} bytes, {len(image.data)} came"
            )
    return len(beside)
