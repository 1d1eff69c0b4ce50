"""How much a fleet needs: formulas over measured costs. docs/scale.md explains each; nothing here is measured."""

from dataclasses import dataclass
from math import ceil, floor

from worker.costs import RedisCosts, WorkerCosts
from worker.errors import ConfigurationError
from worker.settings import LearningSettings, SnapshotSettings, StreamSettings

REWRITE_MEMORY = 1.5  # Redis needs half as much again while it rewrites its file
REWRITE_DISK = 3.0  # the file grows to twice its size before it is rewritten, and the new one is written beside it
ANCHOR_BYTES = 37  # of an anchor, beside its features and their image: mass, moves, support, picture, lift, pinned
LEAST_WORKERS = 2  # of a shard: one takes over what the other kept


@dataclass(frozen=True)
class Workload:
    """What is asked for. Bytes are bytes, rates are per second, shares lie in (0, 1]."""

    lines: int
    rate: float  # images of each line
    image_bytes: float
    backlog_seconds: float
    results_kept: int
    heat_map: bool
    bank_size: int
    feature_width: int
    snapshots_kept: int
    snapshot_every: float
    learning_share: float  # of the lines, that learn at one time
    headroom: float
    replicas: int
    redis_bytes: float  # memory of one redis-server
    worker_bytes: float  # memory of one worker
    network_bits: float  # of one redis-server, each way


@dataclass(frozen=True)
class Line:
    """What one line takes, wherever it is."""

    redis_cpu: float  # of a core
    redis_bytes: float
    redis_in: float  # bytes per second
    redis_out: float
    devices: float
    worker_bytes: float
    snapshot_bytes: float
    snapshot_seconds: float


@dataclass(frozen=True)
class Bounds:
    """Lines that a shard may have at most, by each thing that may give out."""

    cpu: int
    memory: int
    network: int
    workers: int

    @property
    def lines(self) -> int:
        return min(self.cpu, self.memory, self.network, self.workers)


@dataclass(frozen=True)
class Plan:
    """What all lines take together. `shard_lines` is of the fullest shard; bytes and bytes per second elsewhere."""

    images_per_second: float
    line: Line
    bounds: Bounds
    shards: int
    shard_lines: int
    redis_servers: int
    redis_bytes: float  # of each server, room for a rewrite included
    shard_workers: int
    workers: int
    worker_bytes: float  # of each
    network_in: float
    network_out: float
    shard_out: float
    snapshot_store: float
    snapshot_writes: float
    redis_disk: float
    learning_limit: float  # images per second that a line's keeper learns
    learning_wait: float  # images of a line that wait in Redis while it learns, at most


def plan(work: Workload, worker: WorkerCosts, redis: RedisCosts) -> Plan:
    """Size all of it.

    Raises:
        ConfigurationError: one line alone is more than one redis-server or one worker can hold.
    """
    line = line_of(work, worker, redis)
    bounds = bounds_of(work, worker, line)
    _check(work, bounds)
    shards = ceil(work.lines / bounds.lines)
    shard_lines = ceil(work.lines / shards)
    shard_workers = max(LEAST_WORKERS, ceil(shard_lines * line.devices / work.headroom))
    limit = worker.learning * work.headroom
    return Plan(
        images_per_second=work.lines * work.rate,
        line=line,
        bounds=bounds,
        shards=shards,
        shard_lines=shard_lines,
        redis_servers=shards * (1 + work.replicas),
        redis_bytes=REWRITE_MEMORY * shard_lines * line.redis_bytes,
        shard_workers=shard_workers,
        workers=shards * shard_workers,
        worker_bytes=worker.base_bytes + shard_lines * line.worker_bytes,
        network_in=work.lines * line.redis_in,
        network_out=work.lines * line.redis_out,
        shard_out=shard_lines * line.redis_out,
        snapshot_store=work.lines * (work.snapshots_kept + 1) * line.snapshot_bytes,
        snapshot_writes=work.lines * work.learning_share * line.snapshot_bytes / line.snapshot_seconds,
        redis_disk=REWRITE_DISK * (1 + work.replicas) * work.lines * line.redis_bytes,
        learning_limit=limit,
        learning_wait=LearningSettings().images * max(0.0, work.rate / limit - 1),
    )


def line_of(work: Workload, worker: WorkerCosts, redis: RedisCosts) -> Line:
    """One line: each attribute is a formula of docs/scale.md."""
    result = redis.result_bytes + redis.patch_bytes * worker.patches * work.heat_map
    learns, copies = work.learning_share, work.replicas
    scale = work.bank_size * (work.feature_width + worker.components)
    measured = worker.bank * (worker.width + worker.components)
    return Line(
        redis_cpu=work.rate * redis_seconds(work, redis),
        redis_bytes=redis_bytes(work, redis, result),
        redis_in=work.rate * (work.image_bytes + result),
        redis_out=work.rate * (work.image_bytes * (1 + learns + copies) + result * (1 + copies)),
        devices=work.rate * ((1 - learns) / worker.scoring + learns / worker.learning),
        worker_bytes=worker.line_bytes * scale / measured,
        snapshot_bytes=snapshot_bytes(work.bank_size, work.feature_width, worker.components),
        snapshot_seconds=min(work.snapshot_every, SnapshotSettings().every_images / work.rate),
    )


def redis_seconds(work: Workload, redis: RedisCosts) -> float:
    """CPU seconds of one redis-server's main thread for an image, replicas and the share that is learned included."""
    answer = redis.answer_entry + redis.answer_byte * work.image_bytes
    learn = redis.learn_entry + redis.learn_byte * work.image_bytes
    replica = redis.replica_entry + redis.replica_byte * work.image_bytes
    return answer + work.learning_share * learn + work.replicas * replica


def redis_bytes(work: Workload, redis: RedisCosts, result: float) -> float:
    """Memory that a line takes of Redis: images that wait, results, flagged parts at their most, and its keys."""
    waiting = redis.waiting_bytes + redis.waiting_per_byte * work.image_bytes
    streams = StreamSettings()
    review = min(streams.review_max * waiting, streams.review_bytes)
    return work.rate * work.backlog_seconds * waiting + work.results_kept * result + review + redis.line_bytes


def snapshot_bytes(bank: int, width: int, components: int) -> float:
    """A version on disk: anchors and their images, moments, projection, means of the pictures that were learned."""
    anchors = bank * (4 * width + 4 * components + ANCHOR_BYTES)
    moments, projection = 8 * width * (width + 1), 4 * width * (components + 1)
    return anchors + moments + projection + LearningSettings().images * (4 * width + 8)


def bounds_of(work: Workload, worker: WorkerCosts, line: Line) -> Bounds:
    """How many lines a shard can have. All its workers answer all its lines, so each of them holds every bank."""
    return Bounds(
        cpu=floor(work.headroom / line.redis_cpu),
        memory=floor(work.redis_bytes / (REWRITE_MEMORY * line.redis_bytes)),
        network=floor(work.headroom * work.network_bits / 8 / line.redis_out),
        workers=floor((work.worker_bytes - worker.base_bytes) / line.worker_bytes),
    )


def _check(work: Workload, bounds: Bounds) -> None:
    """All keys of a line lie on one server, so a line must fit into one."""
    one = f"one line of {work.rate:g} images a second of {work.image_bytes / 1000:g} KB is more than"
    for lines, much, remedy in (
        (bounds.cpu, "one redis-server's CPU takes", "lower --rate: split the line into several"),
        (bounds.memory, "one redis-server's memory holds", "raise --redis-gb, or lower --backlog-seconds"),
        (bounds.network, "one redis-server's network carries", "raise --network-gbit, or split the line into several"),
    ):
        if lines < 1:
            raise ConfigurationError(f"{one} {much} at --headroom {work.headroom:g}; {remedy}")
    if bounds.workers < 1:
        raise ConfigurationError(
            f"a worker of --worker-gb {work.worker_bytes / 1e9:g} holds no bank of {work.bank_size} anchors beside the "
            "backbone; raise --worker-gb, or lower --bank-size"
        )
