"""Peak memory of learning: VANILLA GREEDY in shares of the features themselves, ONLINE over growing image counts.

Each figure is of a process of its own, which reports how far its resident peak rose above what it was after one warm-up
image. Linux: VmHWM, reset through clear_refs.
"""

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from mhpc.core.choices import PatchCoreAggregation, PatchCoreAlgorithm, PatchCoreDistance, PatchCoreFeatureReduction
from mhpc.core.mh_patch_core import MHPatchCore

SIDE, BATCH = 224, 4
VANILLA_IMAGES = 800
ONLINE_IMAGES = (200, 400, 800)


class Parts:
    """Batches of made-up pictures, drawn when they are asked for."""

    def __init__(self, images: int) -> None:
        self.images = images

    def __iter__(self) -> "Parts":
        self.generator, self.left = torch.Generator().manual_seed(0), self.images
        return self

    def __next__(self) -> Tensor:
        if self.left <= 0:
            raise StopIteration
        self.left -= BATCH
        coarse = torch.randn(BATCH, 3, 28, 28, generator=self.generator)
        return torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")


def model(algorithm: str) -> MHPatchCore:
    vanilla = algorithm == "VANILLA"
    return MHPatchCore(
        "resnet18",
        weights="random:0",
        algorithm=PatchCoreAlgorithm[algorithm],
        aggregation=PatchCoreAggregation.GREEDY if vanilla else PatchCoreAggregation.KMEANS,
        feature_reduction=PatchCoreFeatureReduction.NONE if vanilla else PatchCoreFeatureReduction.PCA,
        distance=PatchCoreDistance.EUCLIDEAN if vanilla else PatchCoreDistance.MAHALANOBIS,
        pca_variance_ratio=0.9,
        bank_size=2000,
        coreset_percentage=0.01,
    )


def resident(field: str) -> int:
    """Bytes; VmHWM is the peak, VmRSS what is resident now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(algorithm: str, images: int) -> None:
    learner = model(algorithm)
    features, _ = learner.extract(next(iter(Parts(BATCH))))
    size = images * features[0].numel() * 4
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    learner.fit(Parts(images))
    print(resident("VmHWM") - before, size)


def measured(algorithm: str, images: int) -> tuple[int, int]:
    """Bytes by which the peak rose, and bytes of all features."""
    command = [sys.executable, "-m", "tests.benchmarks.peak_memory", algorithm, str(images)]
    rise, size = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(rise), int(size)


def main() -> None:
    rise, size = measured("VANILLA", VANILLA_IMAGES)
    print(
        f"VANILLA GREEDY, 1 % of {VANILLA_IMAGES} images: peak {rise / 2**20:.0f} MiB, "
        f"{rise / size:.3f} times the features themselves ({size / 2**20:.0f} MiB)"
    )
    for images in ONLINE_IMAGES:
        rise, size = measured("ONLINE", images)
        print(f"ONLINE, bank of 2,000, {images} images: peak {rise / 2**20:.0f} MiB, features {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2]))
