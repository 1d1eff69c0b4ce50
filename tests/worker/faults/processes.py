"""A worker as its own process, and what it leaves in Redis and on disk."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import redis

from worker.snapshots import Snapshot, SnapshotStore

LEARN, CALIBRATE = 48, 24


def write_config(folder: Path, url: str, line: str, snapshots: Path, **changes: int) -> Path:
    """A configuration with a small picture size, so that a test takes seconds."""
    path = folder / f"{line}.toml"
    path.write_text(f"""
[redis]
url = "{url}"
[worker]
name = "faults-{line}"
device = "cpu"
[model]
input_shape = [64, 64]
bank_size = 150
[learning]
images = {changes.get("learn", LEARN)}
[calibration]
images = {changes.get("calibrate", CALIBRATE)}
false_positive_rate = 0.05
[snapshots]
directory = "{snapshots}"
every_images = {changes.get("every_images", 8)}
[http]
port = 0
[[lines]]
name = "{line}"
""")
    return path


@contextmanager
def running_worker(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The worker; killed at the end if the test has not ended it."""
    log = config.with_suffix(".log").open("ab")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "run", "--config", str(config)], stdout=log, stderr=log, env=environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        log.close()


def results(client: redis.Redis, line: str) -> list[dict[str, Any]]:
    entries: Any = client.xrange(f"mhpc:{{{line}}}:scores")
    return [msgpack.unpackb(fields[b"result"]) for _, fields in entries]


def state(client: redis.Redis, line: str) -> dict[str, str]:
    fields: Any = client.hgetall(f"mhpc:{{{line}}}:state")
    return {key.decode(): value.decode() for key, value in fields.items()}


def committed(client: redis.Redis, line: str, snapshots: Path) -> Snapshot:
    return SnapshotStore(snapshots, line).load(state(client, line)["model"])
