"""What is answered next: own pending entries first, then new ones; what dead consumers left is claimed."""

import time
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import redis
import structlog

from worker.keeping.keeper import Keeper
from worker.metrics import Metrics
from worker.settings import MIB, StreamSettings
from worker.streams.line_streams import ANSWERING, CLAIM_ENTRIES, Entry
from worker.streams.reads import read_new, wait_and_read

READ_ENTRIES = 8  # per line in a turn's first call: so many may come that are far larger than those before
CLAIM_SECONDS = 10.0  # between looks for entries of dead consumers
FADING = 0.9  # of the largest entry seen, with each further one

log = structlog.get_logger()


@dataclass
class Read:
    """Entries by line; `alone`: one that is to be tried by itself, since something failed with it in hand.

    `refused` is what Redis said of lines whose entries cannot be read.
    """

    entries: list[tuple[str, Entry]] = field(default_factory=list)
    alone: bool = False
    refused: dict[str, str] = field(default_factory=dict)


class Intake:
    """Reads the answering group of all lines as one consumer; `max_batch` is the images of a batch."""

    def __init__(self, settings: StreamSettings, consumer: str, metrics: Metrics, max_batch: int = 1) -> None:
        self.settings = settings
        self.entries = _power_of_two(max(READ_ENTRIES, max_batch // 2))  # of a call after a turn's first
        # One after the other: an entry may hold a single image.
        self.calls = 1 + max(0, -(-(max_batch - READ_ENTRIES) // self.entries))
        self.consumer = consumer
        self.metrics = metrics
        self._pending: dict[str, bool] = {}  # lines whose own pending entries come first -> one by one
        self._unsure: set[str] = set()  # lines that may have none: nobody has looked yet
        self._was_alone = False  # the last read: others come in between
        self._tried = ("", "")  # line and id of the last entry that was to be tried by itself
        self._claim_at = 0.0
        self._largest: dict[str, float] = {}  # bytes of a line's entries, of late

    def rewind(self, lines: Iterable[str], alone: bool = False) -> None:
        """After a start or an error: what was delivered and not answered comes again, before anything new."""
        for name in lines:
            self._pending[name] = alone or self._pending.get(name, False)
            self._unsure.add(name)

    def forget(self, line: str) -> None:
        """The line is read no more."""
        self._pending.pop(line, None)
        self._unsure.discard(line)
        self._largest.pop(line, None)

    def recovering(self, line: str) -> bool:
        """Whether own pending entries are still to come: what fails is found by answering, which gives it up."""
        return line in self._pending

    def read(
        self,
        client: Any,
        keepers: Mapping[str, Keeper],
        held: Mapping[str, Mapping[str, int]],
        enough: Container[str],
        block_ms: int,
    ) -> Read:
        """Entries of the lines, within the bytes that are read ahead; waits up to block_ms for the first.

        At most one entry, over all lines, is in hand to be tried by itself: what failed may have been a lack of memory.

        Args:
            held: bytes of the entries in hand, by line and id; of other lines none is.
            enough: lines that want no more for now.
        """
        self._claim(keepers, held)
        recovering = [name for name in self._pending if name in keepers and name not in held]
        together = [name for name in recovering if not self._pending[name]]
        read, others_first = Read(), self._was_alone
        alone = self._with_any(keepers, [name for name in recovering if self._pending[name]], read)
        if self._tried[1] in held.get(self._tried[0], ()):
            alone = []
        self._was_alone = not others_first and self._read_alone(keepers, alone, read)
        if not self._was_alone:
            self._read_own(keepers, together, read)
            busy = alone or read.entries or read.refused
            self._read_new(client, keepers, held, enough, 0 if busy else block_ms, read)
        if others_first and not read.entries:
            self._was_alone = self._read_alone(keepers, alone, read)
        return read

    def _with_any(self, keepers: Mapping[str, Keeper], lines: list[str], into: Read) -> list[str]:
        """Those of lines that have own pending entries; the others need not wait until it is their turn to be tried."""
        for name in self._unsure.intersection(lines):
            try:
                if not self._own(keepers[name], 1):
                    del self._pending[name]
                self._unsure.discard(name)
            except redis.ResponseError as error:
                into.refused[name] = str(error)
        return [name for name in lines if name in self._pending and name not in into.refused]

    def _read_alone(self, keepers: Mapping[str, Keeper], lines: list[str], into: Read) -> bool:
        """The first own pending entry of these lines, to be tried by itself; whether there is one."""
        for name in lines:
            self._read_own(keepers, [name], into, 1)
            if into.entries:
                into.alone, self._tried = True, (name, into.entries[0][1].id)
                self._pending[name] = self._pending.pop(name)  # to the end: the others have their turns
                return True
        return False

    def _read_own(self, keepers: Mapping[str, Keeper], lines: list[str], into: Read, count: int | None = None) -> None:
        """Own pending entries of lines that have none in hand: those that are not answered yet."""
        for name in lines:
            try:
                own = keepers[name].streams.own_pending(self.consumer, count or self._count(name, 0, len(lines)))
            except redis.ResponseError as error:
                into.refused[name] = str(error)
                continue
            if not own:
                del self._pending[name]
            into.entries += [(name, entry) for entry in own]
            self._see(name, own)

    def _read_new(
        self,
        client: Any,
        keepers: Mapping[str, Keeper],
        held: Mapping[str, Mapping[str, int]],
        enough: Container[str],
        block_ms: int,
        into: Read,
    ) -> None:
        lines = [name for name in keepers if name not in self._pending and name not in enough]
        bytes_held = {name: sum(of_line.values()) for name, of_line in held.items()}
        for call in range(self.calls):
            most = self.entries if call else READ_ENTRIES
            counts = {name: self._count(name, bytes_held.get(name, 0), len(keepers), most) for name in lines}
            wanted = {keepers[name].streams: count for name, count in counts.items() if count}
            if not wanted:
                time.sleep(0 if call else block_ms / 1000)
                return
            if block_ms and not call:
                found = wait_and_read(client, wanted, self.consumer, min(wanted.values()), block_ms)
            else:
                found = read_new(client, wanted, self.consumer)
            lines = []
            for name, entries in found.items():
                if isinstance(entries, redis.ResponseError):
                    into.refused[name] = str(entries)
                    continue
                into.entries += [(name, entry) for entry in entries]
                self._see(name, entries)
                bytes_held[name] = bytes_held.get(name, 0) + sum(len(entry.batch or b"") for entry in entries)
                if len(entries) == counts[name]:  # there may be more
                    lines.append(name)

    def _count(self, line: str, held: int, lines: int, most: int = READ_ENTRIES) -> int:
        """Entries that a read asks for of a line: XREADGROUP counts entries, memory is bytes, shared by the lines.

        A line that holds none may have one, however large. Powers of two, since lines of one count are read at once.
        """
        room = self.settings.prefetch_bytes / lines - held
        count = int(max(0 if held else 1, min(most, room / self._largest.get(line, float(MIB)))))
        return _power_of_two(count) if count else 0

    def _see(self, line: str, entries: list[Entry]) -> None:
        if entries:
            self._largest[line] = largest_of_late(self._largest.get(line, 1.0), entries)

    def _claim(self, keepers: Mapping[str, Keeper], held: Mapping[str, Collection[str]]) -> None:
        """Take over entries whose consumer has left them; an early claim costs work alone, the gate lets one answer.

        Own ones that are not in hand have been left, too, by another process of this name.
        """
        if time.monotonic() < self._claim_at:
            return
        self._claim_at = time.monotonic() + CLAIM_SECONDS
        idle_ms = int(self.settings.claim_seconds * 1000)
        for name, keeper in keepers.items():
            try:
                own = 0 if name in self._pending else self._left(keeper, idle_ms, held.get(name, ()))
                claimed, lost = keeper.streams.claim(self.consumer, idle_ms, self.settings.dead_max)
            except redis.ResponseError:  # the line's next read or answer is refused for the same reason, and says so
                continue
            self.metrics.images.labels(name, "dead").inc(lost)
            self.metrics.dead_letters.labels(name, "lost").inc(lost)
            self.metrics.entries_lost.labels(name).inc(lost)
            if claimed or own:
                told = {"line": name, "entries": claimed + own, "lost": lost}
                log.warning("entries that their consumer left are taken over", **told)
                self.rewind([name], alone=True)

    def _left(self, keeper: Keeper, idle_ms: int, in_hand: Collection[str]) -> int:
        """Own entries that have been pending for so long and are not in hand, up to a page or more."""
        pending = self._own(keeper, CLAIM_ENTRIES + len(in_hand), idle_ms)
        return sum(entry not in in_hand for entry in pending)

    def _own(self, keeper: Keeper, count: int, idle_ms: int = 0) -> list[str]:
        """Ids of own pending entries, without what they hold."""
        streams = keeper.streams
        found = streams.client.xpending_range(
            streams.images, ANSWERING, "-", "+", count, consumername=self.consumer, idle=idle_ms
        )
        return [each["message_id"].decode() for each in found]


def largest_of_late(before: float, entries: Iterable[Entry]) -> float:
    """Bytes of the largest entry, what came `before` counting for less with each one."""
    for entry in entries:
        before = max(float(len(entry.batch or b"")), FADING * before, 1.0)
    return before


def _power_of_two(count: int) -> int:
    """The largest up to a count."""
    return 1 << (count.bit_length() - 1)
