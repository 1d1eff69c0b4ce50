"""`make failover`: a fleet at work while a master is killed and its replica takes over, and a count.

With sentinels, or in a Cluster, where a slot moves before that. For the last moment before the kill the replica is told
nothing: what came then is lost, and what is lost came then. Each image that the replica had has one result.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.worker.faults.fleet import EVENLY_SECONDS, Fleet, say, shorten
from tests.worker.faults.processes import results, state
from tests.worker.faults.replicated import Failing, cluster_with_replica, watched_by_sentinels
from tests.worker.faults.servers import PrivateCluster
from tests.worker.helpers import eventually
from worker.message import Image, decode_batch
from worker.producer import Producer, Retry, connect
from worker.settings import LINES_KEY, LimitSettings
from worker.streams.client import CONNECTION_ERRORS

WINDOW = 2000  # images among which an id is answered once, so that producers may send again
RATE, BATCH = 20.0, 4  # images a second of each line, and in an entry
WITHHELD_SECONDS = 0.7  # before the kill
TRAFFIC_SECONDS = 2.0  # before, between and after what happens
QUIET_SECONDS = 60.0  # without anything new while something is due


class Camera(threading.Thread):
    """Sends images to a line until it is told to stop, each entry until it is confirmed."""

    def __init__(self, fleet: Fleet, line: str) -> None:
        super().__init__(daemon=True)
        self.producer = Producer(connect(fleet.url), line, rate=RATE, retry=Retry(WINDOW, 60))
        self.fleet, self.line = fleet, line
        self.confirmed: list[int] = []
        self.stopping = threading.Event()
        self.problem = "it does not end"

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                numbers = range(len(self.confirmed), len(self.confirmed) + BATCH)
                self.producer.send([Image(str(number), "jpeg", self.fleet.image(number)["data"]) for number in numbers])
                self.confirmed += numbers
            self.problem = ""
        except Exception as error:  # a thread has nobody else to tell
            self.problem = repr(error)


class Trial:
    """A fleet at work, its cameras, and what its lines were seen to have."""

    def __init__(self, fleet: Fleet, failing: Failing, on_master: list[str]) -> None:
        self.fleet, self.failing = fleet, failing
        self.on_master = on_master  # lines of the master that is killed
        self.cameras: dict[str, Camera] = {}
        self.withheld: dict[str, range] = {}  # images that were confirmed and that the replica may not have
        self.seen: dict[str, set[int]] = {line: set() for line in fleet.lines}  # in streams, after the failover

    @contextmanager
    def traffic(self) -> Iterator[None]:
        self.cameras = {line: Camera(self.fleet, line) for line in self.fleet.lines}
        for camera in self.cameras.values():
            camera.start()
        try:
            yield
        finally:
            for camera in self.cameras.values():
                camera.stopping.set()
            for camera in self.cameras.values():
                camera.join(90)

    def confirmed(self) -> dict[str, int]:
        return {line: len(camera.confirmed) for line, camera in self.cameras.items()}

    def fail_over(self) -> float:
        """Seconds from the kill until the replica is the master."""
        before = self.confirmed()
        self.failing.wait_for_replica()
        self.failing.way.withholds = True
        time.sleep(WITHHELD_SECONDS)
        self.failing.kill()
        began = time.monotonic()
        after = self.confirmed()  # and one entry whose confirmation is on its way
        self.withheld = {line: range(before[line], after[line] + BATCH) for line in self.on_master}
        eventually(lambda: self.failing.taken_over)
        took = time.monotonic() - began
        for line in self.fleet.lines:
            self.seen[line] |= persistently(partial(in_stream, self.fleet.client, line))
        return took

    def settle(self) -> None:
        """Wait until all that is kept is answered and learned, or nothing new came for long."""
        seen: Any = None
        moved_at = time.monotonic()
        while time.monotonic() - moved_at < QUIET_SECONDS:
            now = [persistently(partial(self.due, line)) for line in self.fleet.lines]
            if not any(map(sum, now)):
                return
            if now != seen:
                seen, moved_at = now, time.monotonic()
            time.sleep(0.2)

    def due(self, line: str) -> tuple[int, int]:
        """Images that the line has and nobody answered, and how many were learned more, or less, than were answered."""
        times = answered(self.fleet, line)
        kept = self.seen[line] | in_stream(self.fleet.client, line)
        learned = int(state(self.fleet.client, line).get("progress", "").partition("/")[0] or 0)
        return len(kept - set(times)), abs(learned - len(times))


def persistently(what: Callable[[], Any]) -> Any:
    """What it gives once the servers serve."""

    def attempt() -> list[Any]:
        try:
            return [what()]
        except CONNECTION_ERRORS:
            return []

    return eventually(attempt)[0]


def in_stream(client: Any, line: str) -> set[int]:
    """The images that the line's stream holds."""
    entries = client.xrange(f"mhpc:{{{line}}}:images")
    batches = [decode_batch(fields[b"batch"], LimitSettings()) for _, fields in entries]
    return {int(image.id) for batch in batches for image in batch if isinstance(image, Image)}


def answered(fleet: Fleet, line: str) -> Counter[int]:
    return Counter(int(result["id"]) for result in results(fleet.client, line))


def judged(trial: Trial) -> list[str]:
    """What is wrong; says what was counted."""
    fleet, problems = trial.fleet, Counter[str]()
    images = lost = 0
    for line in fleet.lines:
        times, confirmed = answered(fleet, line), set(trial.cameras[line].confirmed)
        images, lost = images + len(confirmed), lost + len(confirmed - set(times))
        unanswered, otherwise = trial.due(line)
        problems["twice"] += sum(count > 1 for count in times.values())
        problems["kept and not answered"] += unanswered
        problems["learned otherwise than once"] += otherwise
        problems["lost though the replica was told"] += len(confirmed - set(times) - set(trial.withheld.get(line, ())))
        problems["dead letters"] += int(fleet.client.xlen(f"mhpc:{{{line}}}:dead"))
    withheld = sum(map(len, trial.withheld.values()))
    say(f"images {images}, lost {lost}; of at most {withheld} the replica was told nothing")
    say(", ".join(f"{name} {count}" for name, count in problems.items()))
    return [f"{name}: {count}" for name, count in problems.items() if count]


def evenly(fleet: Fleet, problems: list[str], when: str) -> None:
    waited = fleet.evenly_within(EVENLY_SECONDS)
    say(f"{when}: {dict(sorted(fleet.spread().items()))}, even after {waited:.1f} s")
    problems.extend([f"{when}: not even"] * (waited == float("inf")))


def tried(trial: Trial, workers: int, move: Callable[[], None] | None) -> list[str]:
    """What is broken; says what was measured."""
    fleet, problems = trial.fleet, list[str]()
    for line in fleet.lines:  # learning to the end: all that is answered is to be learned once
        fleet.client.hset(LINES_KEY, line, '{"learning": {"images": 1000000}}')
    fleet.start(*[f"worker-{number}" for number in range(workers)])
    evenly(fleet, problems, f"{workers} workers, {len(fleet.lines)} lines")
    with trial.traffic():
        time.sleep(TRAFFIC_SECONDS)
        if move is not None:
            move()
            time.sleep(TRAFFIC_SECONDS)
        took = trial.fail_over()
        say(f"the replica is the master after {took:.1f} s")
        persistently(lambda: evenly(fleet, problems, "then"))
        time.sleep(TRAFFIC_SECONDS)
    problems += [f"camera of {line}: {each.problem}" for line, each in trial.cameras.items() if each.problem]
    trial.settle()
    problems += judged(trial)
    ended = fleet.end()
    return problems + [f"exit codes {ended}"] * any(ended)


def on_sentinel(folder: Path, workers: int, lines: int) -> list[str]:
    with watched_by_sentinels(folder / "servers") as failing:
        names = [f"press-{number:03}" for number in range(lines)]
        fleet = Fleet(connect(failing.url), failing.url, folder, names, unique_ids=WINDOW)
        return tried(Trial(fleet, failing, names), workers, None)


def on_cluster(folder: Path, workers: int, lines: int) -> list[str]:
    with cluster_with_replica(folder / "servers") as (cluster, failing):
        names = [name for number in range(-(-lines // 3)) for name in cluster.lines(f"press-{number}")]
        fleet = Fleet(connect(failing.url), failing.url, folder, names, unique_ids=WINDOW)
        held = [cluster.holder(f"mhpc:{{{name}}}:images") for name in names]
        on_master = [name for name, node in zip(names, held, strict=True) if node is failing.master]
        moved = next(name for name, node in zip(names, held, strict=True) if node is cluster.nodes[0])
        trial = Trial(fleet, failing, on_master)
        return tried(trial, workers, lambda: move_slot(cluster, trial, f"mhpc:{{{moved}}}:images"))


def move_slot(cluster: PrivateCluster, trial: Trial, key: str) -> None:
    """From the first master to the second, key by key, while images flow."""
    to, keys = cluster.nodes[1], 0
    before = sum(trial.confirmed().values())
    cluster.begin_to_move(key, to)
    time.sleep(0.3)
    while moved := cluster.move_keys(key, to, 1):
        keys += moved
        time.sleep(0.1)
    cluster.end_to_move(key, to)
    came = sum(trial.confirmed().values()) - before
    say(f"a slot of {keys} keys moved, while {came} images came")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.worker.faults.failover", description="A master fails.")
    parser.add_argument("--on", choices=["sentinel", "cluster"], default="sentinel")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--lines", type=int, default=6)
    parser.add_argument("--lease", type=float, default=15.0, help="seconds; longer than a failover")
    given = parser.parse_args()
    shorten(given.lease)
    with tempfile.TemporaryDirectory() as name:
        attempt = {"sentinel": on_sentinel, "cluster": on_cluster}[given.on]
        problems = attempt(Path(name), given.workers, given.lines)
    say("broken: " + "; ".join(problems) if problems else "each line kept by one, nothing twice, lost what nobody kept")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
