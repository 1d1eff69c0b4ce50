"""What a keeper owes its line's streams until the next commit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from worker.message import Image
from worker.records import SetAside
from worker.streams.ids import entry_key
from worker.streams.line_streams import Commit, Entry, LineStreams, ReviewPart
from worker.streams.review import review_part

Usable = Callable[[Entry], list[Image]]  # the images of an entry that can be decoded


def nobody(_: Entry) -> list[Image]:
    """Usable, where nobody asks for the bytes."""
    return []


@dataclass
class Owed:
    """What the next commit takes along: the answer to a command, parts for review, where learning begins anew."""

    reply: bytes = b""
    review: list[ReviewPart] = field(default_factory=list)
    restart: str = ""
    dropped: list[str] = field(default_factory=list)  # ids of review entries to be removed
    changed: bool = False  # a command, or an entry that was skipped, has changed the line

    @property
    def commit(self) -> Commit:
        return Commit(self.reply, self.review, self.restart, self.dropped)

    def set_aside(self, entry: Entry, places: Sequence[int], usable: Usable) -> None:
        """Keep quarantined parts of an entry, by their places among its usable images, for review."""
        images = usable(entry) if places and entry.batch is not None else []
        for place in places:
            self._put_up(entry.id, images[place : place + 1], f"#{place}")

    def set_aside_late(self, parts: list[SetAside], streams: LineStreams, usable: Usable) -> None:
        """Keep for review what turned out not to belong when learning ended, pictures as far as the stream has them."""
        for name, of_entry in groupby(sorted(parts, key=lambda part: entry_key(part.entry)), lambda part: part.entry):
            entry = streams.entry(name)
            images = [] if entry.batch is None else usable(entry)
            for part in of_entry:
                self._put_up(name, images[part.place : part.place + 1], f"#{part.place}", learned="1")

    def _put_up(self, entry: str, image: list[Image], name: str, learned: str = "") -> None:
        if image:
            self.review.append(review_part(entry, image[0], "quarantined", None, None, "", learned))
        else:  # trimmed by now
            self.review.append(ReviewPart(entry, name, "quarantined", "", "", "", b"", learned))

    def of_part(self, entry: str, identity: str) -> list[ReviewPart]:
        """What is to come to review of one part."""
        return [part for part in self.review if (part.entry, part.id) == (entry, identity)]

    def forget_part(self, entry: str, identity: str) -> None:
        """Let one part not come to review."""
        self.review = [part for part in self.review if (part.entry, part.id) != (entry, identity)]
