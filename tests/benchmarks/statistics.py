"""Speed of the incremental statistics as ratios to scikit-learn's, each in the same run."""

import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans as SkMiniBatchKMeans
from sklearn.decomposition import IncrementalPCA as SkIncrementalPCA

from mhpc import IncrementalPCA, MiniBatchKMeans

N, D = 6272, 768  # a batch of 8 images of 28 x 28 patches


def seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Median of `repeats` calls, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -2, D)
    x = torch.randn(N, D, generator=generator) * scales
    theirs, ours = SkIncrementalPCA(n_components=256), IncrementalPCA(n_components=256)
    ratio = seconds(lambda: theirs.partial_fit(x.numpy()), 3) / seconds(lambda: ours.partial_fit(x))
    print(f"IncrementalPCA.partial_fit, {N} x {D}: {ratio:.1f} times scikit-learn's speed")
    for K in (1000, 4000):
        z = x[:, :256].contiguous()
        init = z[torch.randperm(N, generator=generator)[:K]]
        sk = SkMiniBatchKMeans(K, init=init.numpy(), n_init=1, batch_size=N, reassignment_ratio=0)
        mine = MiniBatchKMeans(K, init=init)
        ratio = seconds(lambda: sk.partial_fit(z.numpy())) / seconds(lambda: mine.partial_fit(z))  # noqa: B023 - called at once
        inertia = -mine.score(z) / -sk.score(z.numpy())
        print(
            f"MiniBatchKMeans.partial_fit, {N} x 256, K = {K}: {ratio:.2f} times scikit-learn's speed, "
            f"inertia {inertia:.4f} of its"
        )
