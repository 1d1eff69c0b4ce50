"""What exactly-once costs: `python -m tests.benchmarks.guarantees`.

A worker with resnet18 at 224 x 224 and a real Redis, in this process; the seconds of its loop that go into the gate,
the lease, commits, acknowledgements, trimming and claims are summed, and divided by the wall: once while it learns,
with snapshots, and once while it scores.
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
from worker.streams.line_streams import LineStreams

LINE, LEARN, CALIBRATE, SCORE, BATCH = "press-3", 160, 40, 240, 8
STEPS = {
    "publish": "gate", "acquire": "lease", "renew": "lease", "commit": "commit", "acknowledge": "acknowledge",
    "trim": "trim", "claim": "claim", "show": "checks", "state": "checks", "last_id": "checks", "backlog": "checks",
}  # fmt: skip


def timed(streams: LineStreams, spent: Counter[str]) -> None:
    """Let a line's streams count the seconds of each step."""

    def wrapped(method: Callable[..., Any], step: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                spent[step] += time.perf_counter() - start  # type: ignore[assignment]  # typeshed counts in int

        return call

    for name, step in STEPS.items():
        setattr(streams, name, wrapped(getattr(streams, name), step))


def shares(client: Any, worker: Worker, images: int) -> tuple[float, dict[str, float]]:
    """Images per second and each step's share of the wall, of so many images that lie in the stream before."""
    streams = worker.keepers[LINE].streams
    spent: Counter[str] = Counter()
    timed(streams, spent)
    parts = [encoded(picture(seed, 224, 224), "JPEG") for seed in range(16)]
    before = client.xlen(streams.scores)
    for start in range(0, images, BATCH):
        batch = [item(str(i), format="jpeg", data=parts[i % len(parts)]) for i in range(start, start + BATCH)]
        client.xadd(streams.images, {"batch": message(*batch)})
    start_at = time.perf_counter()
    eventually(lambda: client.xlen(streams.scores) >= before + images, 600)
    wall = time.perf_counter() - start_at
    return images / wall, {step: spent[step] / wall for step in sorted(set(STEPS.values()))}


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
            found = {"learning, calibrating": shares(client, worker, LEARN + CALIBRATE)}
            eventually(lambda: worker.keepers[LINE].streams.state().get("phase") == "scoring", 300)
            found["scoring"] = shares(client, worker, SCORE)
        finally:
            worker.stopping.set()
            thread.join()
            worker.drain()
            worker.shutdown()
            server.kill()
    steps = sorted(set(STEPS.values()))
    table = Table("phase", "images/s", *steps, "together")
    for phase, (rate, of_wall) in found.items():
        table.add_row(phase, f"{rate:.1f}", *(f"{of_wall[s]:.2%}" for s in steps), f"{sum(of_wall.values()):.2%}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
