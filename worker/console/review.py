"""What lies in a line's review: an index without the pictures, kept up to date by what is new."""

from collections import deque
from typing import NamedTuple

from worker.console.text import cut, number_of, title
from worker.message import ID_LENGTH
from worker.streams.ids import entry_key
from worker.streams.line_streams import LineStreams
from worker.streams.review import WHYS

KEPT = 200  # parts
PAGE = 1  # entries read at once: each may hold tens of megabytes
FILL_BYTES = 48 * 1024 * 1024  # of pictures passed when a line is first looked at


class Reviewed(NamedTuple):
    """A part in review. `key` is its id there; `picture` says whether its bytes were kept; `title` is its id as shown
    where there is room; `learned` whether it was set aside after it was learned from."""

    key: str
    entry: str
    id: str
    why: str
    score: float | None
    threshold: float | None
    model: str
    picture: bool
    title: str
    learned: bool

    @property
    def ms(self) -> int:
        return entry_key(self.key)[0]


class Shown(NamedTuple):
    """The newest parts in review, oldest first; `version` is another whenever they are others."""

    parts: tuple[Reviewed, ...]
    version: int


class Index:
    """Follows a line's review. Not for several threads at once."""

    def __init__(self, streams: LineStreams) -> None:
        self.streams = streams
        self.parts: deque[Reviewed] = deque(maxlen=KEPT)
        self.version = 0
        self._last: str | None = None
        self._first = b""  # key of the stream's oldest entry, and its length, when they were last looked at
        self._length = 0
        self._came = 0  # since then

    def refresh(self) -> Shown:
        """Take what is new, and let go of what is gone. Raises redis.RedisError."""
        before = [part.key for part in self.parts]
        if self._last is None:
            self._fill()
        else:
            self._follow()
        self._let_go()
        self.version += before != [part.key for part in self.parts]
        return Shown(tuple(self.parts), self.version)

    def _let_go(self) -> None:
        """Of what was trimmed or taken out; looked for where the stream is shorter than what came would make it.

        Trimming shortens it at its old end. Otherwise what is gone lay between, and all is read again.
        """
        length = self.streams.client.xlen(self.streams.review)
        shorter, self._length, self._came = length < self._length + self._came, length, 0
        if not shorter:
            return
        first = self._oldest()
        trimmed, self._first = first != self._first, first
        oldest = entry_key(first.decode()) if first else (2**63, 0)
        while self.parts and entry_key(self.parts[0].key) < oldest:
            self.parts.popleft()
        has_all = not self.parts or self.parts[0].key == first.decode()
        if not trimmed or (has_all and len(self.parts) != length):
            self._fill()

    def _oldest(self) -> bytes:
        page = self.streams.client.xrange(self.streams.review, count=1)
        return page[0][0] if page else b""

    def _fill(self) -> None:
        size, last = 0, "+"
        newest: list[Reviewed] = []
        while len(newest) < KEPT and size < FILL_BYTES:
            page = self.streams.client.xrevrange(self.streams.review, max=last, count=PAGE)
            if not page:
                break
            newest += [_to_keep(key, fields) for key, fields in page]
            size += sum(len(fields.get(b"image", b"")) for _, fields in page)
            last = f"({page[-1][0].decode()}"
        self.parts = deque(newest[::-1], maxlen=KEPT)
        self._last = newest[0].key if newest else "0-0"
        self._first = self._oldest()

    def _follow(self) -> None:
        while page := self.streams.client.xrange(self.streams.review, min=f"({self._last}", count=PAGE):
            self.parts.extend(_to_keep(key, fields) for key, fields in page)
            self._came += len(page)
            self._first = self._first or page[0][0]
            self._last = page[-1][0].decode()


def reviewed(key: str, fields: dict[bytes, bytes]) -> Reviewed:
    """An entry of review without its picture; what has no sense in it is left out."""

    def text(name: str) -> str:
        return fields.get(name.encode(), b"").decode(errors="replace")

    return Reviewed(
        key,
        text("entry"),
        text("id"),
        text("why") if text("why") in WHYS else "unknown",
        _number(text("score")),
        _number(text("threshold")),
        text("model"),
        bool(fields.get(b"image")),
        title(text("id")),
        bool(fields.get(b"learned")),
    )


def _to_keep(key: bytes, fields: dict[bytes, bytes]) -> Reviewed:
    """What the index holds of an entry: anybody may have written texts of any length there."""
    part = reviewed(key.decode(), fields)
    return part._replace(entry=cut(part.entry), id=cut(part.id, ID_LENGTH), model=cut(part.model))


def _number(text: str) -> float | None:
    try:
        return number_of(float(text))
    except ValueError:
        return None
