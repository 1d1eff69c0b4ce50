"""What the tests of the benchmark share."""

import itertools
from typing import Any

from worker.bench.figures import Bare, Figures, Flood, HalfLoad, Lines, Memory, Phase, Start
from worker.bench.floor import Shape, floor_of
from worker.bench.latency import Latency
from worker.message import Result, encode_result

SEQUENCE = itertools.count()
BARE = Bare(
    images_per_second=200.0, precision="bfloat16", batch=8, threads=2, passes=1, tried=(), width=384, patches=784,
    device="cpu", cores=2, decode_per_second=2000.0, gemm_flop_per_second=1e11, resident_bytes=900 << 20,
    others_cpu_seconds=0.1,
)  # fmt: skip
LATENCY = Latency(100, 40.0, 60.0, 80.0, 90.0)


def add_result(client: Any, line: str, added: int, answered: int) -> None:
    """A result at `answered` of an entry added at `added`, milliseconds."""
    result = Result(line, f"{added}-0", "id", "scoring", None, None, None, None, False, None, 0.0, None, None)
    client.xadd(f"mhpc:{{{line}}}:scores", {"result": encode_result(result)}, id=f"{answered}-{next(SEQUENCE)}")


def phase(rate: float, learning: bool) -> Phase:
    floor = floor_of(Shape(784, 384, 100, 6000), learning, 200, 2000, 1e11, overlapped=False)
    stages = {"read": 0.5, "forward": 5.0, "learn": 2.0 * learning, "score": 1.0}
    return Phase(
        images_per_second=rate, ratio=rate / 200, ratio_alone=rate / 180, ratio_floor=rate / floor.images_per_second,
        floor=floor, images=round(10 * rate), seconds=10.0, batch=8.0, stages=stages,
        outside=10 - sum(stages.values()), cpu_seconds={"worker": 15.0, "redis": 0.5, "producer": 0.5},
        others_cpu_seconds=0.2, anchors=6000, components=100, resident_bytes=1 << 30,
    )  # fmt: skip


def figures(with_lines: bool = True) -> Figures:
    """A whole run's figures, made up."""
    found = Figures(
        backbone="tiny", weights="bundled", layers=("layer2", "layer3"), bank_size=6000, forward=BARE,
        scoring=phase(120.0, learning=False), learning=phase(60.0, learning=True),
        half_load=HalfLoad(60.0, LATENCY, 66.0, 20.0, 152.0), start=Start(5.0, 3.5),
        memory=Memory(900 << 20, 1100 << 20, 20 << 20, 10 << 20),
    )  # fmt: skip
    flood = Flood(8, 5.0, LATENCY, Latency(100, 50.0, 90.0, 120.0, 130.0))
    return found.with_lines((Lines(8, 110.0, 120.0, 110 / 120, 2 << 30),), flood) if with_lines else found
