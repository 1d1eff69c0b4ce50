"""`make fleet`: workers that share out many lines, some of which are killed while others come, and a count.

Each line is kept by one worker, each image has one result, and the spread of keepers is within one of even.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import PrivateRedis
from tests.worker.faults.forking import ForkedWorker
from tests.worker.faults.processes import patient, results
from tests.worker.helpers import encoded, message, picture
from worker import fleet as worker_fleet
from worker.answering import intake
from worker.keeping import lease
from worker.line import SCORING
from worker.settings import LINES_KEY
from worker.streams import line_streams
from worker.streams.line_streams import LineStreams

ALIKE = 40  # pictures that differ: the backbone is what it is, and this counts
EVENLY_SECONDS = 60.0  # from a worker's coming to an even spread
SHORT_SECONDS = 5.0  # beyond a lease that is shortened, until the lines of a killed worker are kept
LEASE_SECONDS = line_streams.LEASE_MS / 1000  # a worker's
QUIET_SECONDS = 60.0  # without an answer while some are due
TURN_SECONDS = 0.5  # that a look at all keepers, and the pause behind it, take at most


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - what it is for


def settings(url: str, folder: Path, name: str) -> dict[str, Any]:
    return {
        "redis": {"url": url},
        "worker": {"name": name, "device": "cpu", "fleet": True},
        "model": {"input_shape": (32, 32), "bank_size": 40, "precision": "float32"},
        "learning": {"images": 8, "converge": False},
        "calibration": {"images": 20, "false_positive_rate": 0.05},
        "scoring": {"track_threshold": False, "heat_map": False},
        "snapshots": {"directory": folder / "snapshots", "every_seconds": 5},
        "streams": {"claim_seconds": 5},
        "http": {"port": 0},
    }


class Fleet:
    """Workers by name, the lines that they share, and what was sent to each."""

    def __init__(self, client: Any, url: str, folder: Path, lines: Sequence[str], **streams: int) -> None:
        self.client = client
        self.url, self.folder, self.lines = url, folder, lines
        self.streams = streams  # settings of the workers
        self.workers: dict[str, ForkedWorker] = {}
        self.sent = 0  # images of each line
        self._pictures = [encoded(picture(number, 32, 32), "JPEG") for number in range(ALIKE)]
        self.client.hset(LINES_KEY, mapping=dict.fromkeys(self.lines, "{}"))

    def start(self, *names: str) -> None:
        for name in names:
            told = settings(self.url, self.folder, name)
            told["streams"] |= self.streams
            self.workers[name] = ForkedWorker(told, self.folder / f"{name}.log")

    def kill(self, *names: str) -> None:
        for name in names:
            self.workers.pop(name).kill()

    def end(self) -> list[int]:
        return [worker.end() for worker in self.workers.values()]

    def send(self, images: int) -> None:
        """So many more to each line, four in an entry."""
        for line in self.lines:
            for first in range(self.sent, self.sent + images, 4):
                items = [self.image(number) for number in range(first, first + 4)]
                self.client.xadd(f"mhpc:{{{line}}}:images", {"batch": message(*items)})
        self.sent += images

    def image(self, number: int) -> dict[str, Any]:
        return {"id": str(number), "format": "jpeg", "data": self._pictures[number % ALIKE]}

    def keepers(self) -> dict[str, str]:
        """Line -> who holds its lease."""
        holders = [self.client.get(LineStreams(self.client, line).lease) for line in self.lines]
        return {
            line: holder.decode().partition("#")[0] for line, holder in zip(self.lines, holders, strict=True) if holder
        }

    def spread(self) -> Counter[str]:
        kept = Counter(dict.fromkeys(self.workers, 0))
        kept.update(self.keepers().values())
        return kept

    def evenly_within(self, seconds: float, began: float | None = None) -> float:
        """Seconds until every line is kept by a live worker, and none keeps two more than another; inf for too late.

        Where a turn here takes long the workers, too, may have stood still: towards what is too late no more than
        TURN_SECONDS of it count.
        """
        last = time.monotonic()
        began = last if began is None else began
        waited = last - began
        while waited < seconds:
            kept = self.spread()
            whole = kept.keys() == self.workers.keys() and kept.total() == len(self.lines)
            if whole and max(kept.values()) - min(kept.values()) <= 1:
                return time.monotonic() - began
            for worker in self.workers.values():
                worker.check()
            time.sleep(0.1)
            now = time.monotonic()
            waited, last = waited + min(now - last, TURN_SECONDS), now
        return float("inf")

    def answered(self) -> int:
        return sum(int(self.client.xlen(f"mhpc:{{{line}}}:scores")) for line in self.lines)

    def settle(self) -> None:
        """Wait for all answers, as long as some come."""
        seen, moved_at = -1, time.monotonic()
        while time.monotonic() - moved_at < QUIET_SECONDS and (now := self.answered()) < self.sent * len(self.lines):
            if now != seen:
                seen, moved_at = now, time.monotonic()
            time.sleep(0.1)
        while time.monotonic() - moved_at < QUIET_SECONDS and self.learned() < len(self.lines):
            time.sleep(0.1)

    def learned(self) -> int:
        """Lines that are through learning and calibrating, whoever kept them."""
        return sum(LineStreams(self.client, line).state().get("phase") == SCORING for line in self.lines)


def judged(fleet: Fleet) -> list[str]:
    """What is wrong with the answers, and with who keeps; says how it is."""
    lost = twice = 0
    for line in fleet.lines:
        times = Counter(result["id"] for result in results(fleet.client, line))
        lost += sum(str(number) not in times for number in range(fleet.sent))
        twice += sum(count > 1 for count in times.values())
    dead = sum(int(fleet.client.xlen(f"mhpc:{{{line}}}:dead")) for line in fleet.lines)
    epochs = [int(LineStreams(fleet.client, line).state()["epoch"]) for line in fleet.lines]
    say(f"images {fleet.sent * len(fleet.lines)}, lost {lost}, twice {twice}, dead letters {dead}")
    say(f"keepers {dict(sorted(fleet.spread().items()))}; a line changed hands {max(epochs) - 1} times at most")
    behind = len(fleet.lines) - fleet.learned()
    say(f"lines that score {fleet.learned()} of {len(fleet.lines)}")
    found = {"lost": lost, "twice": twice, "dead": dead, "behind": behind}
    return [f"{name}: {count}" for name, count in found.items() if count]


def tried(fleet: Fleet, workers: int, kill: int, add: int) -> list[str]:
    """What is broken; says what was measured."""
    names, problems = [f"worker-{number}" for number in range(workers + add)], list[str]()

    def evenly(what: str, bound: float, began: float | None = None) -> None:
        waited = fleet.evenly_within(bound, began)
        say(f"{what}: {dict(sorted(fleet.spread().items()))}, even after {waited:.1f} s (bound {bound:.0f} s)")
        problems.extend([f"{what}: not even"] * (waited == float("inf")))

    fleet.send(8)
    fleet.start(*names[:workers])
    evenly(f"{workers} workers, {len(fleet.lines)} lines", EVENLY_SECONDS)
    fleet.send(8)
    began, lease_seconds = time.monotonic(), line_streams.LEASE_MS / 1000
    fleet.kill(*names[:kill])
    fleet.send(8)
    evenly(f"{kill} killed", lease_seconds + SHORT_SECONDS * (lease_seconds < LEASE_SECONDS), began)
    fleet.send(8)
    fleet.start(*names[workers:])
    evenly(f"{add} came", EVENLY_SECONDS)
    fleet.send(8)
    fleet.settle()
    problems += judged(fleet)
    ended = fleet.end()
    return problems + [f"exit codes {ended}"] * any(ended)


def shorten(seconds: float) -> None:
    """Have leases last so long, and all else by that measure, here and in the workers that are forked from here."""
    line_streams.LEASE_MS, line_streams.LEASE_ENDS_MS = int(seconds * 1000), int(seconds * 960)
    lease.RENEW_SECONDS, lease.LAPSE_SECONDS = seconds / 3, 0.9 * seconds
    worker_fleet.GONE_SECONDS = max(4, int(seconds * 2 / 3))
    intake.CLAIM_SECONDS = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.worker.faults.fleet", description="Share out many lines.")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--lines", type=int, default=64)
    parser.add_argument("--kill", type=int, default=3)
    parser.add_argument("--add", type=int, default=2)
    parser.add_argument("--lease", type=float, help="seconds; left out: a worker's")
    given = parser.parse_args()
    if given.lease:
        shorten(given.lease)
    gone = worker_fleet.GONE_SECONDS
    say(f"a lease is {line_streams.LEASE_MS / 1000:.0f} s, and who is not heard of for {gone} s is gone")
    with tempfile.TemporaryDirectory() as name:
        server = PrivateRedis(Path(name))
        try:
            lines = [f"press-{number:03}" for number in range(given.lines)]
            fleet = Fleet(patient(server.url), server.url, Path(name), lines)
            problems = tried(fleet, given.workers, given.kill, given.add)
        finally:
            server.kill()
    say("broken: " + "; ".join(problems) if problems else "each line kept by one, nothing lost, nothing twice")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
