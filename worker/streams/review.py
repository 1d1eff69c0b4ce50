"""Parts that people are to look at, with their bytes: what feedback is given on. Imports no torch."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgpack

from worker.errors import RejectedError
from worker.message import Image, Rejected, decode_batch
from worker.settings import LimitSettings, Settings
from worker.streams.line_streams import LineStreams, ReviewCaps, ReviewPart

ONE_IMAGE = b"\x82\xa1v\x01\xa6images\x91"  # what stands in an entry before its only image
WHYS = ("anomalous", "quarantined")
PAGE = 4  # entries read at once, newest first: each may hold tens of megabytes


def review_caps(settings: Settings) -> ReviewCaps:
    return ReviewCaps(settings.streams.review_max, settings.streams.review_bytes)


def review_part(
    entry: str, image: Image, why: str, score: float | None, threshold: float | None, model: str, learned: str = ""
) -> ReviewPart:
    shown, limit = ("" if number is None else repr(number) for number in (score, threshold))
    return ReviewPart(entry, image.id, why, shown, limit, model, pack_image(image), learned)


def pack_image(image: Image) -> bytes:
    fields = {"id": image.id, "format": image.format, "data": image.data, "shape": image.shape}
    packed: bytes = msgpack.packb({name: value for name, value in fields.items() if value is not None})
    return packed


def parts(streams: LineStreams) -> Iterator[tuple[str, ReviewPart]]:
    """What review holds, newest first, with its ids there."""
    last = "+"
    while page := streams.client.xrevrange(streams.review, max=last, count=PAGE):
        for key, fields in page:
            yield key.decode(), ReviewPart(*(_field(fields, name) for name in ReviewPart._fields))
        last = f"({page[-1][0].decode()}"


def find(streams: LineStreams, entry: str, identity: str) -> list[tuple[str, ReviewPart]]:
    """The review entries on one part, newest first, with their ids."""
    return [(key, part) for key, part in parts(streams) if (part.entry, part.id) == (entry, identity)]


def never_learned(of_part: Iterable[ReviewPart]) -> bool:
    """Whether a part, by what is known of it, was set aside instead of learned."""
    return any(part.why == "quarantined" and not part.learned for part in of_part)


def image_kept(packed: bytes, limits: LimitSettings) -> Image:
    """The picture of a part as it was sent.

    Raises:
        RejectedError: its bytes were gone when it was set aside, or are no picture.
    """
    if not packed:
        raise RejectedError("lost", "too old: review does not hold this picture any more")
    (image,) = decode_batch(ONE_IMAGE + packed, limits)
    if isinstance(image, Rejected):
        raise RejectedError(image.reason, image.error)
    return image


def _field(fields: dict[bytes, bytes], name: str) -> Any:
    value = fields.get(name.encode(), b"")
    return value if name == "image" else value.decode(errors="replace")
