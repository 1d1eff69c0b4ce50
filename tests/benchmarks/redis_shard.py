"""What one redis-server takes: entries a second, and bytes of its memory an entry. `mhpc-worker plan` reckons with it.

An entry of one picture is added, read by its group and answered through the gate, and then learned, as a worker does
all of it. The server is set up as deploy/redis/redis.conf has it, with AOF at every write, alone and with a replica.
Its main thread does the work, so what counts is the CPU time of that thread: a server takes as many entries a second as
make it busy for all of the second. So it can be told on a machine whose other cores, or whose client, are slower.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import redis

from tests.conftest import PrivateRedis
from tests.worker.helpers import eventually
from worker.message import Image, Result, encode_batch, encode_result, heat_maps
from worker.streams.ids import FROM_START
from worker.streams.line_streams import ANSWERING, Answer, LineStreams, ReviewCaps
from worker.streams.reads import read_new

SIZES_KB = (10, 80, 320)  # of a picture; a KB has 1,000 bytes
ENTRIES = 2000  # of each size
BATCH = 8  # read, answered and learned at once
TRIM_EVERY = 64
LINES = 200
MAP = (28, 28)
NO_REVIEW = ReviewCaps(0, 0)


class Cost(NamedTuple):
    """CPU seconds of the main thread, and bytes of memory, per entry."""

    answered: float
    learned: float
    waiting: float


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        for replicas in (0, 1):
            with server(Path(name) / str(replicas), replicas) as client:
                told = client.info("server")
                print(f"Redis {told['redis_version']}, AOF at every write, {replicas} replicas of it")
                table([(kb, measure(client, f"kb-{kb}", os.urandom(kb * 1000))) for kb in SIZES_KB])
                if not replicas:
                    for with_map in (False, True):
                        what = "a result with a heat map of 28 x 28" if with_map else "a result"
                        print(f"{what}: {result_bytes(client, with_map):.0f} B")
                    print(f"a line with nothing in it: {line_bytes(client):.0f} B")


@contextmanager
def server(folder: Path, replicas: int) -> Iterator[Any]:
    """A client of a server of its own, whose replica, if it has one, follows it."""
    folder.mkdir()
    server = PrivateRedis(folder)
    client: Any = redis.Redis.from_url(server.url, protocol=2)
    try:
        client.config_set("appendonly", "yes")
        client.config_set("appendfsync", "always")
        with following(server, folder / "replica") if replicas else no_replica():
            eventually(lambda: client.info("replication")["connected_slaves"] == replicas)
            eventually(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
            yield client
    finally:
        server.kill()


@contextmanager
def no_replica() -> Iterator[None]:
    yield


@contextmanager
def following(master: PrivateRedis, folder: Path) -> Iterator[None]:
    folder.mkdir()
    replica = PrivateRedis(folder)
    try:
        redis.Redis.from_url(replica.url, protocol=2).replicaof("127.0.0.1", str(master.port))
        yield
    finally:
        replica.kill()


def measure(client: Any, line: str, picture: bytes) -> Cost:
    """A picture's costs: added, answered and trimmed; waiting; and learned beside it, without what came before."""
    streams = LineStreams(client, line)
    streams.ensure_groups()
    epoch, *_ = streams.acquire("bench", 0)
    batch = encode_batch([Image("part-000001", "jpeg", picture)])
    answered = cpu_of(client, lambda: answer(streams, epoch, batch))
    before = used(client)
    add(streams, batch, ENTRIES)
    waiting = used(client) - before
    learned = cpu_of(client, lambda: learn(streams, epoch))
    client.delete(streams.images)
    return Cost(answered / ENTRIES, learned / ENTRIES, waiting / ENTRIES)


def answer(streams: LineStreams, epoch: int, batch: bytes) -> None:
    """ENTRIES entries as in scoring."""
    result = encoded_result(with_map=True)
    for number in range(0, ENTRIES, BATCH):
        add(streams, batch, BATCH)
        found: Any = read_new(streams.client, {streams: BATCH}, "bench")[streams.line]
        published = streams.publish([Answer(entry.id, [result], []) for entry in found], 1000, 10, NO_REVIEW)
        assert published == [True] * BATCH
        if number % TRIM_EVERY == 0:
            streams.trim(epoch, [ANSWERING])


def learn(streams: LineStreams, epoch: int) -> None:
    """ENTRIES entries that wait, by the keeper."""
    for _ in range(0, ENTRIES, BATCH):
        found = streams.read_learning(epoch, BATCH)
        assert len(found) == BATCH
        streams.acknowledge(epoch, [entry.id for entry in found])


def add(streams: LineStreams, batch: bytes, count: int) -> None:
    """One call an entry, as a camera does."""
    for _ in range(count):
        streams.client.xadd(streams.images, {"batch": batch})


def encoded_result(with_map: bool) -> bytes:
    scores = np.random.default_rng(0).gamma(4, 1, MAP).astype(np.float32)
    entry, model = "1764150000000-0", "0000000001-0000000042"
    return encode_result(
        Result(
            "press-3", entry, "part-000001", "scoring", model, 4.2, 6.5, False, False, 1764150000.1, 42.0,
            heat_maps(scores[None])[0] if with_map else None, None,
        )
    )  # fmt: skip


def cpu_of(client: Any, work: Callable[[], None]) -> float:
    """CPU seconds of the server's main thread."""
    before = main_thread(client)
    work()
    return main_thread(client) - before


def main_thread(client: Any) -> float:
    told = client.info("cpu")
    return float(told["used_cpu_sys_main_thread"]) + float(told["used_cpu_user_main_thread"])


def used(client: Any) -> int:
    return int(client.info("memory")["used_memory"])


def result_bytes(client: Any, with_map: bool) -> float:
    """Memory of one of many results, as the gate adds them."""
    before, result = used(client), encoded_result(with_map)
    for _ in range(ENTRIES):
        client.xadd("mhpc:{results}:scores", {"result": result})
    grown = used(client) - before
    client.delete("mhpc:{results}:scores")
    return grown / ENTRIES


def line_bytes(client: Any) -> float:
    """Memory of one of many lines that are kept, and have nothing in their streams."""
    before = used(client)
    for number in range(LINES):
        streams = LineStreams(client, f"line-{number:06d}")
        streams.ensure_groups()
        epoch, *_ = streams.acquire("bench", 0)
        streams.commit(epoch, {"phase": "scoring", "model": "0000000001-0000000042", "applied_through": FROM_START})
    return (used(client) - before) / LINES


def table(rows: list[tuple[int, Cost]]) -> None:
    print(f"{'a picture of':>12} {'answered':>12} {'learned':>12} {'entries/s':>10} {'waiting, B':>12}")
    for kb, (answered, learned, waiting) in rows:
        print(f"{kb:>9} KB {answered * 1e6:>9.1f} us {learned * 1e6:>9.1f} us {1 / answered:>10.0f} {waiting:>12.0f}")
    sizes = [kb for kb, _ in rows]
    for name in ("answered", "learned"):
        slope, start = np.polyfit(sizes, [getattr(cost, name) * 1e6 for _, cost in rows], 1)
        print(f"{name}: {start:.1f} us and {slope:.3f} us a KB")
    slope, start = np.polyfit([1000 * kb for kb in sizes], [cost.waiting for _, cost in rows], 1)
    print(f"waiting: {start:.0f} B and {slope:.3f} B a byte")
