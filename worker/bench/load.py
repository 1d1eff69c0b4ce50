"""The cameras of a run, in a process of their own: `python -m worker.bench.load URL PARTS FLOWS`. Imports no torch.

Entries are encoded before the first is sent, so that sending costs the machine as little as it can. Ends by SIGTERM.
"""

import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.bench.pictures import as_entries, read_parts
from worker.producer import connect
from worker.streams.ids import entry_key, line_key
from worker.streams.line_streams import ANSWERING, LEARNING

POLL_SECONDS = 0.01  # between looks at how far the worker is
POLL_SECONDS_PER_LINE = 0.002  # more lines hold more entries in all, so they last longer


@dataclass(frozen=True)
class Flow:
    """What comes to some lines.

    Args:
        lines: their names.
        per_entry: images in an entry.
        rate: images per second and line, evenly spaced; 0 is flat out.
        ahead: entries per line that may wait for the worker when flat out; they bound what Redis holds.
        learns: whether the learning group is waited for, too.
    """

    lines: tuple[str, ...]
    per_entry: int = 8
    rate: float = 0.0
    ahead: int = 16
    learns: bool = False


class Paced:
    """Entries at their times, however the worker is doing: what waits is part of the latency."""

    def __init__(self, client: Any, flow: Flow, entries: Iterator[bytes]) -> None:
        self.client = client
        self.flow = flow
        self.entries = entries
        self._begun: float | None = None  # monotonic seconds
        self._sent = 0

    def turn(self) -> float:
        """Send what is due; returns the seconds until the next is."""
        if self._begun is None:
            self._begun = time.monotonic()
        gap = self.flow.per_entry / self.flow.rate
        while (wait := self._begun + self._sent * gap - time.monotonic()) <= 0:
            for line in self.flow.lines:
                self.client.xadd(line_key(line, "images"), {"batch": next(self.entries)})
            self._sent += 1
        return wait


class FlatOut:
    """As many entries as the worker takes, and no more than `ahead` of them waiting."""

    def __init__(self, client: Any, flow: Flow, entries: Iterator[bytes]) -> None:
        self.client = client
        self.flow = flow
        self.entries = entries
        self._unread: dict[str, deque[bytes]] = {line: deque() for line in flow.lines}  # ids
        self._poll = POLL_SECONDS + POLL_SECONDS_PER_LINE * (len(flow.lines) - 1)

    def turn(self) -> float:
        """Fill up what the worker has taken; returns the seconds until the next look."""
        adding, lines = self.client.pipeline(transaction=False), []
        for line, waiting in self._waiting().items():
            for _ in range(self.flow.ahead - waiting):
                adding.xadd(line_key(line, "images"), {"batch": next(self.entries)})
                lines.append(line)
        for line, entry in zip(lines, adding.execute(), strict=True):
            self._unread[line].append(entry)
        return self._poll

    def _waiting(self) -> dict[str, int]:
        """Entries of each line that are unread by a group that counts, or read and not answered."""
        asking = self.client.pipeline(transaction=False)
        for line in self.flow.lines:
            asking.xinfo_groups(line_key(line, "images"))
        replies = asking.execute()
        return {line: self._behind(line, groups) for line, groups in zip(self.flow.lines, replies, strict=True)}

    def _behind(self, line: str, groups: list[dict[str, Any]]) -> int:
        by_name = {group["name"].decode(): group for group in groups}
        wanted = (ANSWERING, LEARNING) if self.flow.learns else (ANSWERING,)
        read_by_all = min(entry_key(by_name[name]["last-delivered-id"].decode()) for name in wanted)
        unread = self._unread[line]
        while unread and entry_key(unread[0].decode()) <= read_by_all:
            unread.popleft()
        return len(unread) + int(by_name[ANSWERING]["pending"])


def run(client: Any, parts: list[bytes], flows: list[Flow]) -> None:
    """Send for ever."""
    senders = [
        (Paced if flow.rate else FlatOut)(client, flow, itertools.cycle(as_entries(parts, flow.per_entry)))
        for flow in flows
    ]
    due = [0.0] * len(senders)
    while True:
        for place, sender in enumerate(senders):
            if time.monotonic() >= due[place]:
                wait = sender.turn()
                due[place] = time.monotonic() + wait
        time.sleep(max(0.0, min(due) - time.monotonic()))


if __name__ == "__main__":
    url, path, text = sys.argv[1:]
    run(connect(url), read_parts(Path(path)), [Flow(**flow) for flow in json.loads(text)])
