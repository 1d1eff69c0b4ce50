"""`make bench`: every figure that is not a test. `make bench ARGS="memory one_pass"` runs some."""

import sys
from collections.abc import Callable

from tests.benchmarks import (
    bundled_backbone,
    calibration,
    coreset,
    drift,
    gpu,
    guarantees,
    learning,
    memory,
    neighbours,
    one_pass,
    peak_memory,
    plots,
    precision,
    predict,
    ranks,
    redis_shard,
    statistics,
)

BENCHMARKS: dict[str, Callable[[], None]] = {
    "statistics": statistics.main,
    "coreset": coreset.main,
    "peak_memory": peak_memory.main,
    "neighbours": neighbours.main,
    "predict": predict.main,
    "precision": precision.main,
    "one_pass": one_pass.main,
    "learning": learning.main,
    "calibration": calibration.main,
    "drift": drift.main,
    "plots": plots.main,
    "memory": memory.main,
    "redis_shard": redis_shard.main,
    "gpu": gpu.main,
    "ranks": ranks.main,
    "guarantees": guarantees.main,
    "bundled_backbone": bundled_backbone.main,
}


def main(names: list[str]) -> None:
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        print(f"\n== {name}", flush=True)
        BENCHMARKS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
