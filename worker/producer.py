"""Plays pictures into a line's stream, as a camera's computer would. Imports no torch.

XADD is not idempotent, so nothing here repeats it: a client with redis-py's default retries would add an entry twice
when one reply is lost. A lost connection ends the producer with the ids whose fate is unknown.
"""

import io
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Event
from typing import Literal

import redis
from PIL import Image as Pillow
from PIL import UnidentifiedImageError
from pydantic import SecretStr

from worker.errors import ConfigurationError, RedisUnreachableError, RejectedError, WorkerError
from worker.message import Image, encode_batch
from worker.settings import LINE_NAME, MIB, RedisSettings
from worker.streams.client import connect as _connect

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
PILLOW_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
BATCH_BYTES = 16 * MIB  # an entry stays well below what a worker accepts by default (64 MiB)
MAX_AHEAD = 32  # entries that the answering group has not dealt with
GROUP = "mhpc"  # the group that answers
POLL_SECONDS = 0.02
HELD_SECONDS = 5.0  # held up for so long, it says so


def connect(to: str | RedisSettings) -> redis.Redis:
    """A client of a url or the [redis] table; it repeats nothing. Raises as `worker.streams.client.connect` does."""
    return _connect(RedisSettings(url=SecretStr(to)) if isinstance(to, str) else to)


def picture_files(folder: Path) -> list[Path]:
    """The pictures under a folder, by suffix and in the order of their names; hidden ones are left out.

    Raises:
        ConfigurationError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: no such folder; name a folder of pictures ({', '.join(SUFFIXES)})")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = [path for path in found if not _hidden(path.relative_to(folder)) and path.is_file()]
    if not files:
        raise ConfigurationError(f"{folder}: no pictures in it; expected files that end in {', '.join(SUFFIXES)}")
    return sorted(files)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def as_image(identity: str, data: bytes) -> Image:
    """A picture file's bytes as they travel: JPEG and PNG as they are, other formats as PNG.

    Raises:
        RejectedError: Pillow cannot read them.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=Pillow.DecompressionBombWarning):
            picture = Pillow.open(io.BytesIO(data), formats=PILLOW_FORMATS)
        forms: dict[str | None, Literal["jpeg", "png"]] = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
        if (form := forms.get(picture.format)) is not None:
            return Image(identity, form, data, ts=time.time())
        if picture.mode == "F":
            raise ValueError("its pixels are floating-point numbers; 8 or 16 bits are expected")
        sixteen_bits = picture.mode.startswith("I;16")
        buffer = io.BytesIO()
        (picture if sixteen_bits else picture.convert("RGB")).save(buffer, "PNG", compress_level=1)
    except UnidentifiedImageError:
        raise RejectedError("not_an_image", f"{len(data)} bytes that are none of {', '.join(PILLOW_FORMATS)}") from None
    except (Pillow.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError) as error:
        raise RejectedError("not_an_image", str(error)) from None
    return Image(identity, "png", buffer.getvalue(), ts=time.time())


def batches(images: Iterable[Image], size: int) -> Iterator[list[Image]]:
    """Lists of up to `size` images and up to BATCH_BYTES, or of one larger image."""
    batch: list[Image] = []
    held = 0
    for image in images:
        if batch and (len(batch) == size or held + len(image.data) > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(image)
        held += len(image.data)
    if batch:
        yield batch


class Producer:
    """Adds entries to one line, no faster than `rate` and no further ahead of the answering group than `max_ahead`.

    Args:
        client: from `connect`; one with retries could add an entry twice.
        line: the line's name.
        rate: images per second; 0 is as fast as they are accepted.
        max_ahead: entries that may wait for an answer, this producer's unread ones and all that are being worked on.
            They bound what Redis has to hold; with no worker running, sending stops there until one comes.
        held: is told, once each time, when sending has been held up for HELD_SECONDS.
    """

    def __init__(
        self,
        client: redis.Redis,
        line: str,
        *,
        rate: float = 0.0,
        max_ahead: int = MAX_AHEAD,
        held: Callable[[str], None] = lambda text: None,
    ) -> None:
        if not LINE_NAME.match(line):
            raise ConfigurationError(f"line name {line!r}: 1 to 63 of a-z 0-9 _ -, the first a letter or a digit")
        if rate < 0 or max_ahead < 1:
            raise ConfigurationError(f"rate {rate} and max_ahead {max_ahead}: expected at least 0 and at least 1")
        self.client = client
        self.line = line
        self.rate = rate
        self.max_ahead = max_ahead
        self.held = held
        self._key = f"mhpc:{{{line}}}:images"
        self._unread: deque[tuple[int, int]] = deque()  # ids of own entries that the group has not read
        self._due = 0.0  # monotonic seconds at which the next batch may go

    def send(self, images: list[Image], stop: Event | None = None) -> str | None:
        """Wait for the camera's pace and for room, then add one entry.

        Returns:
            The entry's id, or None when `stop` was set while it waited: then nothing was added.

        Raises:
            RedisUnreachableError: the connection was lost; where that was during the XADD, the text says so, since then
                nobody can tell whether the entry arrived.
        """
        stop = stop or Event()
        if not self._wait_for_pace(stop) or not self._wait_for_room(stop):
            return None
        now = time.monotonic()
        # A camera that was held up does not hurry afterwards.
        self._due = max(self._due, now) + (len(images) / self.rate if self.rate else 0.0)
        entry = self._add(images)
        self._unread.append(_entry_id(entry))
        return entry.decode()

    def _wait_for_pace(self, stop: Event) -> bool:
        return not stop.wait(max(0.0, self._due - time.monotonic())) if self.rate else not stop.is_set()

    def _wait_for_room(self, stop: Event) -> bool:
        patience: float | None = time.monotonic() + HELD_SECONDS
        while (ahead := self.ahead()) >= self.max_ahead:
            if stop.wait(POLL_SECONDS):
                return False
            if patience is not None and time.monotonic() > patience:
                self.held(f"{ahead} entries of line {self.line} wait for an answer; does its worker run?")
                patience = None
        return True

    def ahead(self) -> int:
        """Entries that wait for an answer: own ones that are not read, and all that are read but not answered."""
        try:
            length = self.client.xlen(self._key)
            groups = self.client.xinfo_groups(self._key) if length else []
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise RedisUnreachableError(f"the connection to Redis was lost between two batches: {error}") from None
        except redis.RedisError as error:
            raise WorkerError(f"Redis does not say how far line {self.line} is: {error}") from None
        group = next((group for group in groups if group["name"] == GROUP.encode()), None)
        last_read = _entry_id(group["last-delivered-id"]) if group else (0, 0)
        while self._unread and self._unread[0] <= last_read:
            self._unread.popleft()
        # A stream that was wiped holds fewer than were added.
        return min(len(self._unread), length) + (int(group["pending"]) if group else 0)

    def _add(self, images: list[Image]) -> bytes:
        try:
            entry = self.client.xadd(self._key, {"batch": encode_batch(images)})
        except (redis.ConnectionError, redis.TimeoutError) as error:
            ids = images[0].id if len(images) == 1 else f"{images[0].id} to {images[-1].id}"
            raise RedisUnreachableError(
                f"the connection to Redis was lost while {ids} went out: {error}; nobody knows whether they arrived, "
                f"so look for their results before sending them again"
            ) from None
        except redis.RedisError as error:
            raise WorkerError(f"Redis refused an entry for line {self.line}: {error}") from None
        return entry if isinstance(entry, bytes) else entry.encode()


def produce(
    producer: Producer,
    images: Iterable[Image],
    *,
    batch: int = 8,
    stop: Event | None = None,
    sent: Callable[[str, list[Image]], None] | None = None,
) -> int:
    """Send images in batches; `sent` hears of every entry. Returns how many images went."""
    count = 0
    for group in batches(images, batch):
        entry = producer.send(group, stop)
        if entry is None:
            break
        count += len(group)
        if sent is not None:
            sent(entry, group)
    return count


def folder_images(folder: Path, skipped: Callable[[str], None], loop: bool = False) -> Iterator[Image]:
    """The pictures of a folder, read one by one, with their relative paths as ids.

    What is no picture goes to `skipped`, with the reason. With `loop` they come again and again; from the second round
    on, `#2`, `#3`, ... is appended so that ids stay unique.
    """
    files = picture_files(folder)
    round_, more = 1, True
    while more:
        more = False
        for path in files:
            name = path.relative_to(folder).as_posix()
            try:
                image = as_image(name if round_ == 1 else f"{name}#{round_}", path.read_bytes())
            except (RejectedError, OSError) as error:
                if round_ == 1:
                    skipped(f"{name}: {error}")
                continue
            more = loop
            yield image
        round_ += 1


def _entry_id(entry: bytes | str) -> tuple[int, int]:
    milliseconds, sequence = (entry.decode() if isinstance(entry, bytes) else entry).split("-")
    return int(milliseconds), int(sequence)
