"""What the keeper reads to learn from, and what of it is not acknowledged yet."""

from worker.streams.ids import FROM_START
from worker.streams.line_streams import Entry, LineStreams

HISTORY = 16  # pending entries read in one call
ATTEMPTS = 3  # at an entry, or an image by itself, that failed before


class Reading:
    """The learning group under one epoch: own pending entries first, from the start, then new ones."""

    def __init__(self, streams: LineStreams) -> None:
        self.streams = streams
        self.suspicious = False  # something failed with an entry in hand
        self.open(0)

    def open(self, epoch: int) -> None:
        """Begin under another epoch: all that is pending comes again."""
        self.epoch = epoch
        self.unacknowledged: list[str] = []
        self.rewind()

    def rewind(self) -> None:
        """After an error: a lost reply may have left entries in the pending list, behind what is read next."""
        self._history: str | None = FROM_START  # where to go on in the pending entries; None: read new ones

    def read(self, count: int) -> list[Entry]:
        """Up to `count` entries that were not read before."""
        known = set(self.unacknowledged) if self._history else set()
        while self._history is not None:
            entries = self.streams.read_learning(self.epoch, count, self._history)
            self._history = entries[-1].id if entries else None
            if fresh := [entry for entry in entries if entry.id not in known]:
                return fresh
        return self.streams.read_learning(self.epoch, count)

    def given_up(self, entry: Entry) -> bool:
        """Whether an entry that comes again after a failure was tried often enough; if not, this is marked as a try."""
        return self.marks and self.streams.mark(_mark(entry)) > ATTEMPTS

    def survived(self, entry: Entry) -> None:
        """It was applied."""
        if self.marks:
            self.streams.unmark(_mark(entry))

    @property
    def marks(self) -> bool:
        """Whether what comes is tried by itself, marked: something failed with it in hand."""
        return self.suspicious and self._history is not None

    def acknowledge(self) -> None:
        """Let go of all that was read and is committed."""
        self.streams.acknowledge(self.epoch, self.unacknowledged)
        self.unacknowledged = []

    def acknowledge_rest(self) -> None:
        """Once scoring, nothing is learned: what had been read ahead is let go."""
        while entries := self.streams.read_learning(self.epoch, HISTORY, FROM_START):
            self.streams.acknowledge(self.epoch, [entry.id for entry in entries])


def _mark(entry: Entry) -> str:
    return f"learn/{entry.id}"
