"""A worker as its own process, and what it leaves in Redis and on disk."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import redis
import torch

from tests.worker.helpers import eventually, item, message
from worker.snapshots import Snapshot, SnapshotStore

LEARN, CALIBRATE = 48, 24
IMAGES, BATCH = 100, 4
POISONED = {10, 30, 55, 90}  # in each phase
PHASES = (20, 60, 88)  # images sent by the time that a worker learns, calibrates, scores
SAID = 6000  # characters of a worker's log that a test shows which fails
COUNTS = ("images_learned", "images_quarantined", "images_calibrated", "rows", "phase")


def batches(start: int, stop: int) -> Iterator[bytes]:
    """Messages with the images of those numbers, some of them cut off."""
    for first in range(start, stop, BATCH):
        numbers = range(first, min(first + BATCH, stop))
        yield message(*(item(str(i), **({"data": b"\x89PNG cut"} if i in POISONED else {})) for i in numbers))


def patient(url: str) -> redis.Redis:
    """A client that sends nothing twice because a reply is late: others give up after five seconds, and repeat."""
    return redis.Redis.from_url(url, protocol=2, socket_timeout=None)


def play(client: redis.Redis, line: str, start: int, stop: int) -> None:
    for batch in batches(start, stop):
        client.xadd(f"mhpc:{{{line}}}:images", {"batch": batch})


def write_config(folder: Path, url: str, line: str, snapshots: Path, name: str = "", **changes: int) -> Path:
    """A configuration with a small picture size, so that a test takes seconds."""
    path = folder / f"{name or line}.toml"
    path.write_text(f"""
[redis]
url = "{url}"
[worker]
name = "{name or f"faults-{line}"}"
device = "cpu"
[model]
precision = "float32"
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
every_seconds = {changes.get("every_seconds", 30)}
[http]
port = 0
[[lines]]
name = "{line}"
""")
    return path


@contextmanager
def running_worker(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The worker; killed at the end if the test has not ended it. A test that fails shows what it said last."""
    log = config.with_suffix(".log").open("ab")
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}  # one for each of two batches
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "run", "--config", str(config)], stdout=log, stderr=log, env=environment
    )
    try:
        yield process
    except BaseException as error:
        error.add_note(f"{config.stem}: {config.with_suffix('.log').read_text(errors='replace')[-SAID:]}")
        raise
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


def done(client: redis.Redis, line: str, count: int) -> bool:
    """Whether so many images have a result or a dead letter."""
    answered = int(client.xlen(f"mhpc:{{{line}}}:scores")) + int(client.xlen(f"mhpc:{{{line}}}:dead"))
    return answered >= count


def broken_in_every_phase(client: redis.Redis, line: str, break_it: Callable[[int], None]) -> None:
    """Send all images; in each phase, with some of them answered and others on their way, break something."""
    for first, upto in pairwise((0, *PHASES)):
        play(client, line, first, upto)
        eventually(partial(done, client, line, first + BATCH))
        break_it(upto)
        eventually(partial(done, client, line, upto))
    play(client, line, PHASES[-1], IMAGES)


def finish(client: redis.Redis, line: str, worker: subprocess.Popen[bytes], images: int = IMAGES) -> None:
    """Wait until all is answered and the line scores, and end the worker."""
    eventually(lambda: done(client, line, images) and state(client, line).get("phase") == "scoring")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0


def assert_each_answered_once(client: redis.Redis, line: str, first: int = 0, last: int = IMAGES) -> None:
    """Each of these images has one result, or one dead letter if it was cut off."""
    times = Counter(result["id"] for result in results(client, line))
    assert times == {str(i): 1 for i in range(first, last) if i not in POISONED}
    letters: Any = client.xrange(f"mhpc:{{{line}}}:dead")
    refused = Counter(fields[b"id"].decode() for _, fields in letters)
    assert refused == {str(i): 1 for i in POISONED if first <= i < last}


def assert_learned_alike(found: Snapshot, expected: Snapshot) -> None:
    """Two versions whose statistics are of the same images, each counted once."""
    assert {key: found.metadata[key] for key in COUNTS} == {key: expected.metadata[key] for key in COUNTS}
    assert int(found.tensors["mass"].sum()) == found.metadata["rows"]
    torch.testing.assert_close(found.tensors["mean"], expected.tensors["mean"], rtol=1e-5, atol=1e-5)
