"""The figures of a run."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from worker.bench.floor import Floor
from worker.bench.latency import Latency


@dataclass(frozen=True)
class Trial:
    """A variant of the bare loop: `passes` at the same time, each on so many threads."""

    precision: str
    batch: int
    threads: int
    passes: int = 1


@dataclass(frozen=True)
class Bare:
    """The bare backbone loop: how fast, which variant it was, and which others were tried.

    Beside it: `width` D and `patches` P of the features, decoding on a worker's threads, float32 products, and the
    peak of the process's resident memory.
    """

    images_per_second: float
    precision: str
    batch: int
    threads: int
    passes: int
    tried: tuple[dict[str, Any], ...]
    width: int
    patches: int
    device: str
    cores: int
    decode_per_second: float
    gemm_flop_per_second: float
    resident_bytes: int
    others_cpu_seconds: float  # per second of the loop, of processes that are not the run's


@dataclass(frozen=True)
class Phase:
    """A worker flat out in one phase, over a window of `seconds`.

    `ratio` is to the bare loop of the same run. `ratio_alone` is the same had Redis and the producer taken no CPU time
    on the worker's cores: the window less that time, spread over all cores. `ratio_floor` is to the floor.
    `stages` are seconds; `outside` is what of the window lies in none of them.
    """

    images_per_second: float
    ratio: float
    ratio_alone: float
    ratio_floor: float
    floor: Floor
    images: int
    seconds: float
    batch: float  # images in a forward pass, on average
    stages: dict[str, float]
    outside: float
    cpu_seconds: dict[str, float]  # worker, redis, producer
    others_cpu_seconds: float  # of processes that are not the run's: they blur it
    anchors: int
    components: int
    resident_bytes: int  # of the worker, at the window's end


@dataclass(frozen=True)
class HalfLoad:
    """Single images, evenly spaced, at half of what scoring takes flat out; from XADD to the result's XADD.

    `limit_ms` is model.max_wait_ms and twice the time that a batch takes flat out.
    """

    asked_images_per_second: float
    latency: Latency
    batch_ms: float
    max_wait_ms: float
    limit_ms: float


@dataclass(frozen=True)
class Start:
    """Seconds from the start of a process to its first result, and to torch and the weights being there."""

    first_result: float
    loading: float

    @property
    def beyond(self) -> float:
        return self.first_result - self.loading


@dataclass(frozen=True)
class Lines:
    """So many lines together, flat out in scoring; `to_one` is the share of one line's throughput, had in turns."""

    lines: int
    images_per_second: float
    one_images_per_second: float
    to_one: float
    resident_bytes: int


@dataclass(frozen=True)
class Flood:
    """A light line's latency alone, and while another line is flooded."""

    lines: int  # that the worker keeps
    images_per_second: float  # of the light line
    alone: Latency
    flooded: Latency

    @property
    def p99_ratio(self) -> float:
        return self.flooded.p99_ms / max(self.alone.p99_ms, 1.0)  # ids tell milliseconds


@dataclass(frozen=True)
class Memory:
    """Peaks of resident memory in bytes, but for `redis_used`, which is what Redis says that it used at most."""

    bare: int
    worker: int
    redis: int
    redis_used: int


@dataclass(frozen=True)
class Figures:
    """All of a run; `lines` and `flood` are empty where they were not asked for."""

    backbone: str
    weights: str | None
    layers: tuple[str, ...]
    bank_size: int
    forward: Bare
    scoring: Phase
    learning: Phase
    half_load: HalfLoad
    start: Start
    memory: Memory
    lines: tuple[Lines, ...] = ()
    flood: Flood | None = None

    def as_json(self) -> dict[str, Any]:
        """All figures, nested as they are here, the derived ones among them."""
        figures = asdict(self)
        figures["start"]["beyond"] = self.start.beyond
        for name, phase in (("scoring", self.scoring), ("learning", self.learning)):
            shares = {stage: seconds / phase.seconds for stage, seconds in phase.stages.items()}
            figures[name]["shares"] = {**shares, "outside": phase.outside / phase.seconds}
            figures[name]["floor"]["images_per_second"] = phase.floor.images_per_second
        if self.flood is not None:
            figures["flood"]["p99_ratio"] = self.flood.p99_ratio
        return figures

    def with_lines(self, lines: tuple[Lines, ...], flood: Flood | None) -> "Figures":
        return replace(self, lines=lines, flood=flood)
