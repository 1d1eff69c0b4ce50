"""What a keeper owes its line's streams until the next commit."""

from collections.abc import Callable
from dataclasses import dataclass, field

from worker.message import Image
from worker.streams.line_streams import Entry, ReviewPart
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
    dropped: list[str] = field(default_factory=list)  # review entries to be removed behind it
    changed: bool = False  # a command has changed the line

    def set_aside(self, parts: list[tuple[Entry, int]], usable: Usable) -> None:
        """Keep quarantined parts, each by its entry and its place among the usable images, for review."""
        for entry, place in parts:
            images = [] if entry.batch is None else usable(entry)
            if place < len(images):
                self.review.append(review_part(entry.id, images[place], "quarantined", None, None, ""))
            else:  # trimmed by now
                self.review.append(ReviewPart(entry.id, f"#{place}", "quarantined", "", "", "", b""))
