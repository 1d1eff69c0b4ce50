"""`make chaos`: kill -9 a worker some hundred times, at any moment, and count.

Each image has one result, or one dead letter if it was cut off; what was learned is what a run without kills learns.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import redis
import torch

from tests.conftest import PrivateRedis
from tests.worker.faults.forking import ForkedWorker
from tests.worker.faults.processes import committed, patient, results, state
from tests.worker.helpers import encoded, eventually, message, picture
from worker.snapshots import Snapshot

LINE, BATCH, POISON, STRANGE = "chaos", 4, 97, 89
LEARN, CALIBRATE = 0.4, 0.3  # shares of the images
MEAN_SECONDS = 0.7  # from a start to its kill
QUIET_SECONDS = 60.0  # without an answer while some are due
RECOVERY_SECONDS = 5.0
SAME_MOMENTS = 1e-6
COUNTS = ("images_learned", "images_quarantined", "images_calibrated", "rows")


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - what it is for


def settings(url: str, folder: Path, images: int) -> dict[str, Any]:
    return {
        "redis": {"url": url},
        "worker": {"name": "chaos-1", "device": "cpu"},
        "model": {"input_shape": (32, 32), "bank_size": 100, "precision": "float32"},  # not by a trial in each run
        "learning": {"images": int(LEARN * images), "converge": False},
        "calibration": {"images": int(CALIBRATE * images), "false_positive_rate": 0.05},
        "scoring": {"track_threshold": False, "heat_map": False},
        "snapshots": {"directory": folder / "snapshots", "every_images": max(8, images // 400)},
        "http": {"port": 0},
        "lines": [{"name": LINE}],
    }


def poisoned(number: int) -> bool:
    return number % POISON == POISON // 2


def batch_of(first: int, images: int) -> bytes:
    items = []
    for number in range(first, min(first + BATCH, images)):
        pixels = picture(number, 32, 32)
        if number % STRANGE == STRANGE // 2:  # so that some are quarantined
            pixels[:] = np.eye(32, dtype=np.uint8)[:, :, None] * 255
        jpeg = encoded(pixels, "JPEG")
        items.append({"id": str(number), "format": "jpeg", "data": jpeg[:150] if poisoned(number) else jpeg})
    return message(*items)


@dataclass
class Camera:
    """Sends the images of those numbers, in entries of BATCH, to one server."""

    client: redis.Redis
    images: int
    sent: int = 0

    def send_up_to(self, wanted: float) -> None:
        while self.sent < min(wanted, self.images):
            self.client.xadd(f"mhpc:{{{LINE}}}:images", {"batch": batch_of(self.sent, self.images)})
            self.sent = min(self.sent + BATCH, self.images)

    @property
    def answered(self) -> int:
        return int(self.client.xlen(f"mhpc:{{{LINE}}}:scores")) + int(self.client.xlen(f"mhpc:{{{LINE}}}:dead"))


@dataclass
class Chaos:
    """One run: a camera, and a worker that is killed again and again."""

    camera: Camera
    settings: dict[str, Any]
    log: Path
    kills: int
    dice: random.Random
    killed_in: Counter[str] = field(default_factory=Counter)
    recoveries: list[float] = field(default_factory=list)  # seconds from a kill to the next result

    def run(self) -> int:
        """Returns the exit code of the last worker."""
        for kill in range(self.kills):
            worker, began = ForkedWorker(self.settings, self.log), time.monotonic()
            lives = self.dice.expovariate(1 / MEAN_SECONDS)
            self._watch(worker, began, lives, kill)
            self.killed_in[state(self.camera.client, LINE).get("phase", "start")] += 1
            worker.kill()
        before = state(self.camera.client, LINE).get("epoch")
        worker = ForkedWorker(self.settings, self.log)
        eventually(
            lambda: state(self.camera.client, LINE).get("epoch") != before
        )  # else there may be nothing to wait for
        self.camera.send_up_to(self.camera.images)
        settle(self.camera, worker)
        return worker.end()

    def _watch(self, worker: ForkedWorker, began: float, lives: float, kill: int) -> None:
        """Send this life's share of the images, and note when its first result comes; the last lasts until some did."""
        before, resumed = self.camera.answered, False
        is_last = kill == self.kills - 1
        while (elapsed := time.monotonic() - began) < (lives if self.recoveries or not is_last else QUIET_SECONDS):
            self.camera.send_up_to(self.camera.images * (kill + min(1, elapsed / lives)) / self.kills)
            if not resumed and self.camera.answered > before:
                resumed = True
                self.recoveries.append(elapsed)
            worker.check()
            time.sleep(0.005)


def settle(camera: Camera, worker: ForkedWorker) -> None:
    """Wait until all is answered and the line scores, as long as something moves; what is lost is counted then."""
    seen: Any = None
    moved_at = time.monotonic()
    while time.monotonic() - moved_at < QUIET_SECONDS:
        now = camera.answered, state(camera.client, LINE)
        if now[0] >= camera.images and now[1].get("phase") == "scoring":
            return
        if now != seen:
            seen, moved_at = now, time.monotonic()
        worker.check()
        time.sleep(0.05)
    say(f"stuck: {seen[0]} of {camera.images} answered, state {seen[1]}")


def unbroken(server: PrivateRedis, folder: Path, images: int, upto: int) -> Snapshot:
    """What one worker learns of the same entries; those behind the end of calibration are not sent again."""
    folder.mkdir()
    client = patient(server.url)
    client.flushall()
    camera = Camera(client, upto)
    worker = ForkedWorker(settings(server.url, folder, images), folder / "log")
    camera.send_up_to(upto)
    settle(camera, worker)
    worker.end()
    return committed(client, LINE, folder / "snapshots")


def judged(client: redis.Redis, images: int) -> list[str]:
    """What is wrong with the answers; says how many there are."""
    times = Counter(result["id"] for result in results(client, LINE))
    letters: Any = client.xrange(f"mhpc:{{{LINE}}}:dead")
    refused = Counter(fields[b"id"].decode() for _, fields in letters)
    poison = {str(number) for number in range(images) if poisoned(number)}
    every = {str(number) for number in range(images)}
    lost, twice = every - set(times) - set(refused), [i for i, n in (times + refused).items() if n > 1]
    dead, wrong = set(refused) & poison, (set(refused) - poison) | (set(times) - (every - poison))
    say(f"images {images}, results {len(times)}, lost {len(lost)}, twice {len(twice)}")
    say(f"dead letters {len(dead)} of {len(poison)} poisoned, {len(wrong)} others")
    return [f"{name}: {len(of)}" for name, of in (("lost", lost), ("twice", twice), ("wrong", wrong)) if of]


def compared(found: Snapshot, expected: Snapshot) -> list[str]:
    """What differs between two versions; says what they hold."""
    problems = []
    for key in COUNTS:
        say(f"{key} {found.metadata[key]}, without kills {expected.metadata[key]}")
        if found.metadata[key] != expected.metadata[key]:
            problems.append(key)
    for name in ("mean", "scatter"):
        a, b = (snapshot.tensors[name].double() for snapshot in (found, expected))
        difference = float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))
        say(f"{name} differs by {difference:.1e}, relative")
        problems += [f"{name}: {difference:.1e}"] * (difference > SAME_MOMENTS)
    return problems


def last_needed(client: redis.Redis, found: Snapshot) -> int:
    """How many images there were up to the end of calibration."""
    last = [int(each["id"]) for each in results(client, LINE) if each["entry"] == found.metadata["applied_through"]]
    return (max(last) // BATCH + 1) * BATCH


def tried(server: PrivateRedis, folder: Path, kills: int, images: int, seed: int) -> list[str]:
    """What is broken; says what was counted."""
    client, broken = patient(server.url), folder / "broken"
    broken.mkdir()
    camera, dice = Camera(client, images), random.Random(seed)
    chaos = Chaos(camera, settings(server.url, broken, images), broken / "log", kills, dice)
    began = time.monotonic()
    code = chaos.run()
    phases = ", ".join(f"{n} in {phase}" for phase, n in chaos.killed_in.most_common())
    say(f"kills {kills} in {time.monotonic() - began:.0f} s: {phases}")
    problems = [f"exit code {code}"] * (code != 0) + judged(client, images)
    found = committed(client, LINE, broken / "snapshots")
    problems += compared(found, unbroken(server, folder / "unbroken", images, last_needed(client, found)))
    if not chaos.recoveries:
        return [*problems, "no recovery was seen"]
    longest, middle = max(chaos.recoveries), statistics.median(chaos.recoveries)
    say(f"from a kill to the next result, less imports: {longest:.2f} s at most, {middle:.2f} s in the middle")
    return problems + ["slow to recover"] * (longest > RECOVERY_SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.worker.faults.chaos", description="Kill a worker again.")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        server = PrivateRedis(Path(name))
        try:
            problems = tried(server, Path(name), given.kills, given.images, given.seed)
        finally:
            server.kill()
    say("broken: " + "; ".join(problems) if problems else "nothing lost, nothing twice, nothing learned twice")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
