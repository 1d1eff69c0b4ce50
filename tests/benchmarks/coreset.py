"""Exact greedy coresets against the textbook loop and against anomalib's, each in the same run on the same rows.

The rows are patch features, projected at random to 128 dimensions: of magnetic tiles where ../shared/data is at hand,
else of rendered discs.
"""

import importlib.util
import io
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr

import torch
from torch import Tensor

from mhpc.core.backbones import load_backbone
from mhpc.core.patch_features import PatchFeatures
from mhpc.sampler import GreedyCoresetSampler
from tests.benchmarks.bundled_backbone import discs, features
from tests.benchmarks.tiles import TILES, mobilenet_features, tile_features

IMAGES, DIMENSIONS = 100, 128
SMALL = 8000  # rows of the comparison in float64


def patch_rows() -> tuple[Tensor, str]:
    """[78400, 128] and what they are of."""
    extract = mobilenet_features()
    if extract is not None:
        maps, kind = tile_features(extract, TILES / "train" / "good", IMAGES), "tiles, MobileNet v1"
    else:
        extract = PatchFeatures(load_backbone("tiny", "bundled"), ["layer2", "layer3"])
        maps, kind = features(extract, discs()["learn"][:IMAGES]), "rendered discs, bundled backbone"
    rows = maps.flatten(0, 1)
    projection = torch.randn(rows.shape[1], DIMENSIONS, generator=torch.Generator().manual_seed(0)) / DIMENSIONS**0.5
    return rows @ projection, kind


def matrix_vector_loop(x: Tensor, k: int, first: int) -> list[int]:
    """The loop with one matrix-vector product, and one pass over all distances, a choice."""
    squares = x.square().sum(1)
    nearest = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    chosen = [first]
    while len(chosen) < k:
        i = chosen[-1]
        nearest = torch.minimum(nearest, torch.addmv(squares + squares[i], x, x[i], alpha=-2))
        chosen.append(int(nearest.argmax()))
    return chosen


def textbook_loop(x: Tensor, k: int, first: int) -> list[int]:
    nearest = torch.full((len(x),), torch.inf, dtype=x.dtype)
    chosen = [first]
    while len(chosen) < k:
        nearest = torch.minimum(nearest, (x - x[chosen[-1]]).norm(dim=1))
        chosen.append(int(nearest.argmax()))
    return chosen


def covering_radius(x: Tensor, centers: Tensor) -> float:
    return max(float(torch.cdist(block, centers).amin(1).max()) for block in x.split(8192))


def seconds(call: Callable[[], object], repeats: int = 1) -> float:
    """Of the fastest call: what else the machine does only adds."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def sampler(n: int, k: int) -> GreedyCoresetSampler:
    return GreedyCoresetSampler(k / n, dimension_to_project_features_to=DIMENSIONS)


def main() -> None:
    x, kind = patch_rows()
    N = len(x)
    print(f"exact greedy, {N} x {DIMENSIONS} float32 rows ({kind}), against the loop of matrix-vector products")
    for k, repeats in ((1000, 3), (N // 10, 1)):
        ours = seconds(lambda k=k: sampler(N, k).run(x), repeats)  # type: ignore[misc]  # mypy sees no default's type
        theirs = seconds(lambda k=k: matrix_vector_loop(x, k, 0), repeats)  # type: ignore[misc]  # the same
        print(f"  {k} chosen: {theirs / ours:.1f} times the loop's speed ({ours:.3f} s against {theirs:.3f} s)")
    chosen = sampler(N, 1000).run(x)
    first = int((x == chosen[0]).all(1).nonzero()[0])
    other = x[torch.tensor(matrix_vector_loop(x, 1000, first))]
    print(f"  covering radius of 1000: {covering_radius(x, chosen):.4f}, the loop's {covering_radius(x, other):.4f}")
    double = x[:SMALL].double()
    indices = sampler(SMALL, 1000).select(double)
    same = torch.equal(indices, torch.tensor(textbook_loop(double, 1000, int(indices[0]))))
    print(f"  in float64, 1000 of {SMALL} rows: {'the same' if same else 'OTHER'} indices as the textbook loop's")
    _against_anomalib(x)


def _against_anomalib(x: Tensor, k: int = 784) -> None:
    if importlib.util.find_spec("anomalib") is None:
        print("  anomalib is not installed: pip install -c constraints.txt -e '.[bench]'")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        import anomalib
        from anomalib.models.components.sampling import KCenterGreedy
    ours = seconds(lambda: sampler(len(x), k).run(x), 3)
    with redirect_stderr(io.StringIO()):  # its progress bar
        theirs = seconds(lambda: KCenterGreedy(x, sampling_ratio=k / len(x)).sample_coreset())
    print(f"  {k} chosen: {theirs / ours:.0f} times the speed of anomalib {anomalib.__version__}'s KCenterGreedy")
