"""The table of `statistics` and `coreset` on a GPU, where one is at hand, with the share of what the device can do.

What it can do is measured in the same run: arithmetic by a large float32 product, bandwidth by a copy.
"""

import time
from collections.abc import Callable

import torch

from mhpc import IncrementalPCA, MiniBatchKMeans
from mhpc.sampler import GreedyCoresetSampler
from tests.benchmarks.coreset import DIMENSIONS, matrix_vector_loop, patch_rows
from tests.benchmarks.statistics import D, N

GEMM, COPIED = 8192, 2**28  # side of the product; floats copied
CHOSEN = 1000


def main() -> None:
    if not torch.cuda.is_available():
        print("no GPU is at hand")
        return
    print(torch.cuda.get_device_name())
    table(torch.device("cuda"), GEMM, COPIED)


def table(device: torch.device, gemm: int, copied: int) -> None:
    """Print seconds and shares on a device."""
    a, c = torch.randn(gemm, gemm, device=device), torch.randn(copied, device=device)
    arithmetic = 2 * gemm**3 / seconds(device, lambda: a @ a)
    bandwidth = 8 * copied / seconds(device, c.clone)
    print(f"measured: {arithmetic / 1e12:.1f} TFLOP/s in float32, {bandwidth / 1e9:.0f} GB/s")

    x = torch.randn(N, D, device=device) * torch.logspace(0, -2, D, device=device)
    pca = IncrementalPCA(n_components=256)
    report("IncrementalPCA.partial_fit", seconds(device, lambda: pca.partial_fit(x)), N * D * D, arithmetic)
    z = x[:, :256].contiguous()
    for K in (1000, 4000):
        kmeans = MiniBatchKMeans(K, init=z[torch.randperm(N, device=device)[:K]])
        taken = seconds(device, lambda kmeans=kmeans: kmeans.partial_fit(z))  # type: ignore[misc]  # mypy sees no default's type
        report(f"MiniBatchKMeans.partial_fit, K = {K}", taken, 2 * N * K * 256, arithmetic)

    rows, kind = patch_rows()
    rows = rows.to(device)
    sampler = GreedyCoresetSampler(CHOSEN / len(rows), device, DIMENSIONS)
    ours = seconds(device, lambda: sampler.run(rows), 1)
    theirs = seconds(device, lambda: matrix_vector_loop(rows, CHOSEN, 0), 1)
    read = 4 * rows.numel() * CHOSEN
    print(
        f"exact greedy, {CHOSEN} of {len(rows)} ({kind}): {ours:.3f} s, {theirs / ours:.1f} times the loop; that reads "
        f"its rows at {read / theirs / bandwidth:.0%} of the bandwidth"
    )


def report(name: str, taken: float, operations: int, arithmetic: float) -> None:
    print(f"{name}: {1000 * taken:.2f} ms, {operations / taken / arithmetic:.0%} of the measured arithmetic")


def seconds(device: torch.device, call: Callable[[], object], repeats: int = 5) -> float:
    """Of the fastest call after one that is not counted; the device is waited for."""

    def timed() -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    timed()
    return min(timed() for _ in range(repeats))
