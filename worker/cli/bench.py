"""`mhpc-worker bench`."""

from pathlib import Path
from typing import Annotated

import typer

from worker.bench.options import BenchOptions, line_counts
from worker.runtime.environment import HUGE_PAGES, set_unless_set


def bench(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there, too.")] = None,
    backbone: Annotated[str, typer.Option(help='"tiny", torchvision\'s name, or "module:function".')] = "tiny",
    weights: Annotated[str | None, typer.Option(help='"bundled", "pretrained", "random:SEED" or a path.')] = None,
    layers: Annotated[str | None, typer.Option(help="Layers of the backbone, comma-separated.")] = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of each measurement.")] = 8.0,
    lines: Annotated[str, typer.Option(help="Counts of lines, such as 1,8,64; each more takes a minute or two.")] = "1",
    bank_size: Annotated[int, typer.Option(min=1, help="Anchors in each line's bank.")] = 6000,
    device: Annotated[str, typer.Option(help='"auto", "cpu", "cuda" or "cuda:1".')] = "auto",
) -> None:
    """Measure a real worker against the bare backbone loop, on this machine.

    A private Redis, a worker in its own process, and JPEG parts of 224 x 224 at
    quality 90. One run measures the bare loop (the fastest uncompiled pass: cut
    after the last layer, channels last, float32 or bfloat16, the best batch and
    threads, pictures decoded before), then the worker learning and scoring flat
    out, then the latency of single images at half load. With more lines also
    their throughput together, in turns with one by itself, and a light line's
    latency beside a flooded one.

    ratio     images per second to those of the bare loop
    alone     the same without what Redis and the producer take of the worker's
              cores: images / (seconds - their CPU seconds / cores)
    of floor  to the least time that an image can take here: forward pass,
              decoding, and the products that cannot be left out
    """
    set_unless_set(HUGE_PAGES)  # for the bare loop as for the worker
    from worker.bench.run import run_bench

    chosen = tuple(name.strip() for name in layers.split(",")) if layers else None
    run_bench(
        BenchOptions(
            backbone=backbone, weights=weights, layers=chosen, json=json_file, seconds=seconds,
            lines=line_counts(lines), bank_size=bank_size, device=device,
        )
    )  # fmt: skip
