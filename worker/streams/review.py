"""Parts that people are to look at, with their bytes: what feedback is given on. Imports no torch."""

from typing import Any

import msgpack

from worker.message import Image
from worker.settings import Settings
from worker.streams.line_streams import LineStreams, ReviewCaps, ReviewPart

PAGE = 4  # entries read at once, newest first: each may hold tens of megabytes


def review_caps(settings: Settings) -> ReviewCaps:
    return ReviewCaps(settings.streams.review_max, settings.streams.review_bytes)


def review_part(
    entry: str, image: Image, why: str, score: float | None, threshold: float | None, model: str
) -> ReviewPart:
    shown, limit = ("" if number is None else repr(number) for number in (score, threshold))
    return ReviewPart(entry, image.id, why, shown, limit, model, pack_image(image))


def pack_image(image: Image) -> bytes:
    fields = {"id": image.id, "format": image.format, "data": image.data, "shape": image.shape}
    packed: bytes = msgpack.packb({name: value for name, value in fields.items() if value is not None})
    return packed


def find(streams: LineStreams, entry: str, identity: str) -> list[tuple[str, ReviewPart]]:
    """The review entries on one part, newest first, with their ids."""
    found, last = [], "+"
    while page := streams.client.xrevrange(streams.review, max=last, count=PAGE):
        for key, fields in page:
            part = ReviewPart(*(_field(fields, name) for name in ReviewPart._fields))
            if (part.entry, part.id) == (entry, identity):
                found.append((key.decode(), part))
        last = f"({page[-1][0].decode()}"
    return found


def _field(fields: dict[bytes, bytes], name: str) -> Any:
    value = fields.get(name.encode(), b"")
    return value if name == "image" else value.decode(errors="replace")
