"""Does resident memory grow with the images learned? 20,000 small ones through a worker that learns all the time."""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import redis

from tests.conftest import PrivateRedis
from tests.worker.faults.processes import running_worker, state, write_config
from tests.worker.helpers import encoded, eventually, item, message

IMAGES, BATCH, AHEAD = 20_000, 16, 32
WARM = 8_000  # images after which buffers, caches and the bank have their size


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = PrivateRedis(folder)
        try:
            _play(server, folder)
        finally:
            server.kill()


def resident_mib(pid: int) -> float:
    """Linux: the second field of statm is resident pages."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _play(server: PrivateRedis, folder: Path) -> None:
    client = redis.Redis.from_url(server.url, protocol=2)
    config = write_config(folder, server.url, "bench", folder, learn=IMAGES, every_images=500)
    rng = np.random.default_rng(0)
    pictures = [encoded(rng.normal(128, 12, (64, 64, 3)).clip(0, 255).astype(np.uint8), "JPEG") for _ in range(500)]
    key, samples = "mhpc:{bench}:images", []
    start = time.perf_counter()
    with running_worker(config) as worker:
        eventually(lambda: state(client, "bench"))
        for first in range(0, IMAGES, BATCH):
            items = [item(str(i), format="jpeg", data=pictures[rng.integers(500)]) for i in range(first, first + BATCH)]
            client.xadd(key, {"batch": message(*items)})
            eventually(lambda: int(client.xlen(key)) < 4 * AHEAD)
            if first % 500 < BATCH:
                samples.append((first, resident_mib(worker.pid)))
        eventually(lambda: state(client, "bench").get("phase") == "calibrating")
        samples.append((IMAGES, resident_mib(worker.pid)))
    seconds = time.perf_counter() - start
    x, y = np.array([sample for sample in samples if sample[0] >= WARM]).T
    slope = np.polyfit(x, y, 1)[0] * 1000
    print(
        f"{IMAGES} images learned in {seconds:.0f} s: resident memory {y[0]:.0f} MiB after {WARM}, {y[-1]:.0f} MiB at "
        f"the end, at most {y.max():.0f}; slope {slope:+.3f} MiB per 1,000 images"
    )
