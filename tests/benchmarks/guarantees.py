"""What exactly-once costs: `python -m tests.benchmarks.guarantees`.

A worker with resnet18 at 224 x 224 and a real Redis, in this process; the seconds that go into the gate, the lease,
commits, acknowledgements, trimming, claims and checks are summed, and divided by the wall: once while it learns, with
snapshots, and once while it scores. The gate is passed on a thread of its own, beside the next batch, and counts in
full all the same; what the work loop waits for it stands beside, as does the writing of snapshots.
"""

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from rich.console import Console
from rich.table import Table

from tests.conftest import PrivateRedis
from tests.worker.helpers import encoded, eventually, item, message, picture
from worker.configuration import load_settings
from worker.daemon import Worker
from worker.metrics import Metrics
from worker.streams.line_streams import LineStreams

LINE, LEARN, CALIBRATE, SCORE, BATCH = "press-3", 160, 40, 240, 8
READING = ""  # no part of the price
METHODS = {  # of LineStreams, but those that are a command of fenced.lua
    "publish": "gate", "acquire": "lease", "trim": "trim", "claim": "claim", "state": "checks", "last_id": "checks",
    "is_first": "checks", "mark": "checks", "unmark": "checks", "disown": "checks", "ensure_groups": "checks",
    "own_pending": READING, "backlog": READING, "entry": READING,
}  # fmt: skip
COMMANDS = {  # of fenced.lua
    "renew": "lease", "release": "lease", "commit": "commit", "ack": "acknowledge", "trim": "trim", "show": "checks",
    "lost": "checks", "consumers": "checks", "read": READING,
}  # fmt: skip
STEPS = sorted({*METHODS.values(), *COMMANDS.values()} - {READING})
STAGES = ("publish", "snapshot")  # of the work loop: what it waits for the gate, and for the disk


class Spent:
    """Seconds by step, of all threads; of calls within calls the outermost one counts."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._lock, self._within = threading.Lock(), threading.local()

    def measure(self, streams: LineStreams) -> None:
        """Let a line's streams count the seconds of each step, from outside."""
        for name, step in METHODS.items():
            setattr(streams, name, self._timed(getattr(streams, name), lambda *_, step=step, **__: step))
        streams.fenced = self._timed(streams.fenced, lambda _epoch, what, *_: COMMANDS[what])  # type: ignore[method-assign]  # to time it

    def _timed(self, method: Callable[..., Any], step_of: Callable[..., str]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            step = step_of(*args, **kwargs)
            if step == READING or getattr(self._within, "call", False):
                return method(*args, **kwargs)
            self._within.call, start = True, time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self._within.call = False
                with self._lock:
                    self.seconds[step] += time.perf_counter() - start  # type: ignore[assignment]  # typeshed: int

        return call


def stages(metrics: Metrics) -> dict[str, float]:
    """Seconds that the work loop has spent in STAGES so far."""
    return {
        name: metrics.registry.get_sample_value("mhpc_stage_seconds_sum", {"stage": name}) or 0.0 for name in STAGES
    }


def shares(client: Any, worker: Worker, spent: Spent, images: int) -> tuple[float, dict[str, float], dict[str, float]]:
    """Images per second; each step's, and each of STAGES', share of the wall, of images that are sent at once."""
    streams = worker.keepers[LINE].streams
    parts = [encoded(picture(seed, 224, 224), "JPEG") for seed in range(16)]
    before, waited = client.xlen(streams.scores), stages(worker.metrics)
    spent.seconds.clear()
    start_at = time.perf_counter()
    for start in range(0, images, BATCH):
        batch = [item(str(i), format="jpeg", data=parts[i % len(parts)]) for i in range(start, start + BATCH)]
        client.xadd(streams.images, {"batch": message(*batch)})
    eventually(lambda: client.xlen(streams.scores) >= before + images, 600)
    wall = time.perf_counter() - start_at
    of_loop = {name: (now - waited[name]) / wall for name, now in stages(worker.metrics).items()}
    return images / wall, {step: spent.seconds[step] / wall for step in STEPS}, of_loop


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = PrivateRedis(Path(folder))
        settings = load_settings(None, {
            "redis": {"url": server.url},
            "model": {"backbone": "resnet18", "weights": "random:0", "bank_size": 2000},
            "learning": {"images": LEARN, "converge": False}, "calibration": {"images": CALIBRATE},
            "snapshots": {"directory": folder, "every_images": 50},
            "http": {"port": 0}, "lines": [{"name": LINE}],
        })  # fmt: skip
        worker = Worker(settings)
        worker.startup()
        thread = threading.Thread(target=worker.run)
        thread.start()
        client: Any = redis.Redis.from_url(server.url)
        try:
            eventually(lambda: worker.keepers[LINE].epoch)
            spent = Spent()
            spent.measure(worker.keepers[LINE].streams)
            found = {"learning, calibrating": shares(client, worker, spent, LEARN + CALIBRATE)}
            eventually(lambda: worker.keepers[LINE].streams.state().get("phase") == "scoring", 300)
            found["scoring"] = shares(client, worker, spent, SCORE)
        finally:
            worker.stopping.set()
            thread.join()
            worker.drain()
            worker.shutdown()
            server.kill()
    table = Table("phase", "images/s", *STEPS, "together", "waits for the gate", "writes snapshots")
    for phase, (rate, of_wall, of_loop) in found.items():
        shown = [*(of_wall[step] for step in STEPS), sum(of_wall.values()), *(of_loop[name] for name in STAGES)]
        table.add_row(phase, f"{rate:.1f}", *(f"{share:.2%}" for share in shown))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
