"""Letters among a line's dead, and what is replayed of them, for tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.worker.helpers import encoded, picture
from tests.worker.streams.acting import answer, deliver, publish
from worker.message import Rejected, decode_batch
from worker.settings import LimitSettings
from worker.streams.line_streams import DeadLetter, LineStreams

CAP = 4000  # below it a small JPEG is whole
JPEG = encoded(picture(1, 16, 16), "JPEG")
Bury = Callable[..., str]


@pytest.fixture
def file(config: Callable[..., Path]) -> Path:
    return config(top=f"[streams]\npayload_bytes = {CAP}")


@pytest.fixture
def bury(streams: LineStreams) -> Bury:
    """What adds an entry and lets the gate put it, or one image of it, among the dead; returns the letter's name."""

    def buried(batch: bytes, *fields: Any, gone: bool = False) -> str:
        entry = streams.client.xadd(streams.images, {"batch": batch}).decode()
        deliver(streams)
        identity, reason, error, payload = fields
        publish(streams, answer(entry, dead=[DeadLetter(identity, reason, error, payload[:CAP])]))
        if gone:
            streams.client.xdel(streams.images, entry)
        name: bytes = streams.client.xrevrange(streams.dead, count=1)[0][0]
        return name.decode()

    return buried


def names(streams: LineStreams) -> list[str]:
    return [name.decode() for name, _ in streams.client.xrange(streams.dead)]


def rejected(batch: bytes) -> tuple[str, str, str, bytes]:
    """What a worker says of the one image of an entry, as a letter's fields."""
    (image,) = decode_batch(batch, LimitSettings())
    assert isinstance(image, Rejected)
    return image.id, image.reason, image.error, image.payload


def newest(streams: LineStreams) -> bytes:
    batch: bytes = streams.client.xrevrange(streams.images, count=1)[0][1][b"batch"]
    return batch
