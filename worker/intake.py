"""What is answered next: own pending entries first, then new ones; what dead consumers left is claimed."""

import time
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import redis
import structlog

from worker.keeper import Keeper
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
        self._was_alone = False  # the last read: others come in between
        self._claim_at = 0.0
        self._largest: dict[str, float] = {}  # bytes of a line's entries, of late

    def rewind(self, lines: Iterable[str], alone: bool = False) -> None:
        """After a start or an error: what was delivered and not answered comes again, before anything new."""
        for name in lines:
            self._pending[name] = alone or self._pending.get(name, False)

    def forget(self, line: str) -> None:
        """The line is read no more."""
        self._pending.pop(line, None)
        self._largest.pop(line, None)

    def recovering(self, line: str) -> bool:
        """Whether own pending entries are still to come: what fails is found by answering, which gives it up."""
        return line in self._pending

    def read(
        self, client: Any, keepers: Mapping[str, Keeper], held: Mapping[str, int], enough: Container[str], block_ms: int
    ) -> Read:
        """Entries of the lines, within the bytes that are read ahead; waits up to block_ms for the first.

        Args:
            held: bytes of the entries in hand, by line; of others none is.
            enough: lines that want no more for now.
        """
        self._claim(keepers, held)
        recovering = [name for name in self._pending if name in keepers and name not in held]
        alone = [name for name in recovering if self._pending[name]]
        read, others_first = Read(), self._was_alone
        self._was_alone = not others_first and self._read_alone(keepers, alone, read)
        if not self._was_alone:
            self._read_own(keepers, [name for name in recovering if name not in alone], read)
            busy = alone or read.entries or read.refused
            self._read_new(client, keepers, held, enough, 0 if busy else block_ms, read)
        if others_first and not read.entries:
            self._was_alone = self._read_alone(keepers, alone, read)
        return read

    def _read_alone(self, keepers: Mapping[str, Keeper], lines: list[str], into: Read) -> bool:
        """The first own pending entry of these lines, to be tried by itself; whether there is one."""
        for name in lines:
            self._read_own(keepers, [name], into, 1)
            if into.entries:
                into.alone = True
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
        held: Mapping[str, int],
        enough: Container[str],
        block_ms: int,
        into: Read,
    ) -> None:
        lines = [name for name in keepers if name not in self._pending and name not in enough]
        bytes_held = dict(held)
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

    def _claim(self, keepers: Mapping[str, Keeper], held: Container[str]) -> None:
        """Take over entries whose consumer has left them; an early claim costs work alone, the gate lets one answer.

        Own ones have been left, by another process of this name, where the line has none in hand that they could be.
        """
        if time.monotonic() < self._claim_at:
            return
        self._claim_at = time.monotonic() + CLAIM_SECONDS
        idle_ms = int(self.settings.claim_seconds * 1000)
        for name, keeper in keepers.items():
            try:
                own = 0 if name in held or name in self._pending else self._left(keeper, idle_ms)
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

    def _left(self, keeper: Keeper, idle_ms: int) -> int:
        """Own entries that have been pending for so long, up to a page."""
        streams = keeper.streams
        found = streams.client.xpending_range(
            streams.images, ANSWERING, "-", "+", CLAIM_ENTRIES, consumername=self.consumer, idle=idle_ms
        )
        return len(found)


def largest_of_late(before: float, entries: Iterable[Entry]) -> float:
    """Bytes of the largest entry, what came `before` counting for less with each one."""
    for entry in entries:
        before = max(float(len(entry.batch or b"")), FADING * before, 1.0)
    return before


def _power_of_two(count: int) -> int:
    """The largest up to a count."""
    return 1 << (count.bit_length() - 1)
