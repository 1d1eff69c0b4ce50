"""One part: what the streams of scores, of review and of images still hold of it."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from worker.console.lines import Watched
from worker.console.recent import Point, point_of
from worker.console.review import Reviewed, reviewed
from worker.console.text import cut
from worker.console.unpacking import unpacked
from worker.errors import RejectedError
from worker.message import ID_LENGTH, Image, Rejected, decode_batch
from worker.settings import LimitSettings
from worker.streams.ids import entry_key, is_entry_id
from worker.streams.line_streams import LineStreams
from worker.streams.review import image_kept

Kind = Literal["scores", "review"]
NEAR_MS = 100  # the gate publishes a result and its part in review at once; older servers let their clock go on
READ = {"scores": 100, "review": 1}  # entries in one reply: one of review may hold tens of megabytes
SEARCHED = 2000  # entries looked through


class Part(NamedTuple):
    """A part as far as it is known: its result, as it was sent, and its entry in review.

    `point` is None where the result was trimmed, `in_review` where the part is not, or no more, in review.
    """

    kind: Kind
    key: str
    point: Point | None
    result: dict[str, Any] | None
    in_review: Reviewed | None

    @property
    def entry(self) -> str:
        sent = self.result.get("entry") if self.result else None
        return self.in_review.entry if self.in_review else sent if isinstance(sent, str) else ""

    @property
    def id(self) -> str:
        sent = self.result.get("id") if self.result else None
        return self.in_review.id if self.in_review else sent if isinstance(sent, str) else ""


def find_part(watched: Watched, kind: Kind, key: str) -> Part | None:
    """The part of an entry of scores or of review; None where that is gone, or holds none. Raises redis.RedisError."""
    streams = watched.streams
    fields = fields_of(streams, kind, key)
    if fields is None:
        return None
    if kind == "review":
        part = reviewed(key, fields)
        near = (_result(k, f) for k, f in _around(streams, "scores", key)) if part.why == "anomalous" else iter(())
        point, result = next((n for n in near if _names(n[1]) == (part.entry, part.id)), (None, None))
        return Part(kind, key, point, result, part)
    point, result = _result(key, fields)
    if point is None or result is None:
        return None
    of_it = (part for part in _in_review(watched, key, result) if (part.entry, part.id) == _names(result))
    return Part(kind, key, point, result, next(of_it, None))


def _in_review(watched: Watched, key: str, result: dict[str, Any]) -> Iterator[Reviewed]:
    """Parts in review that a result may be of: one that is flagged comes with it, one that is set aside any time
    later."""
    streams = watched.streams
    if result.get("anomalous") is True:
        yield from (reviewed(k, fields) for k, fields in _around(streams, "review", key))
        return
    for known in reversed(watched.index.get().parts):
        if (known.entry, known.id) == (result.get("entry"), cut(result["id"], ID_LENGTH)):
            fields = fields_of(streams, "review", known.key)
            if fields is not None:
                yield reviewed(known.key, fields)


def fields_of(streams: LineStreams, kind: Kind, key: str) -> dict[bytes, bytes] | None:
    """An entry of one of the two streams, or None where it is gone."""
    found = streams.client.xrange(_stream(streams, kind), min=key, max=key)
    return found[0][1] if found else None


def neighbour(streams: LineStreams, kind: Kind, key: str, newer: bool) -> str | None:
    """The key of the entry beside this one."""
    stream = _stream(streams, kind)
    if newer:
        found = streams.client.xrange(stream, min=f"({key}", count=1)
    else:
        found = streams.client.xrevrange(stream, max=f"({key}", count=1)
    return found[0][0].decode() if found else None


def image_of(streams: LineStreams, part: Part, limits: LimitSettings) -> Image:
    """The picture as it was sent: from review, or from the line's stream, which has it for some seconds.

    Raises:
        RejectedError: it is not there any more, or no picture.
    """
    if part.in_review is not None:
        fields = fields_of(streams, "review", part.in_review.key) or {}
        return image_kept(fields.get(b"image", b""), limits)
    entry = streams.entry(part.entry) if is_entry_id(part.entry) else None
    if entry is None or entry.lost:
        raise RejectedError("lost", "not kept: only parts that were flagged or set aside keep their picture")
    image = next((image for image in decode_batch(entry.batch, limits) if image.id == part.id), None)
    if image is None:
        raise RejectedError("lost", "the entry that its result names has no picture of this id")
    if isinstance(image, Rejected):
        raise RejectedError(image.reason, image.error)
    return image


def _stream(streams: LineStreams, kind: Kind) -> str:
    return streams.scores if kind == "scores" else streams.review


def _result(key: str, fields: dict[bytes, bytes]) -> tuple[Point | None, dict[str, Any] | None]:
    result = unpacked(fields.get(b"result"))
    return point_of(key, result), result


def _names(result: dict[str, Any] | None) -> tuple[Any, Any]:
    return (result.get("entry"), result.get("id")) if result else (None, None)


def _around(streams: LineStreams, kind: Kind, key: str) -> Iterator[tuple[str, dict[bytes, bytes]]]:
    """Entries of a stream that came at about the time of this one of the other."""
    ms, _ = entry_key(key)
    first, last = f"{max(0, ms - NEAR_MS)}", f"{ms + NEAR_MS}"
    for _ in range(SEARCHED // READ[kind]):
        page = streams.client.xrange(_stream(streams, kind), min=first, max=last, count=READ[kind])
        for entry, fields in page:
            yield entry.decode(), fields
        if len(page) < READ[kind]:
            return
        first = f"({page[-1][0].decode()}"
