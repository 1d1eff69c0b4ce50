"""Drift: how soon a change of brightness alarms, and how often a stationary stream does.

Calibration and stream are drawn, with replacement, from the same tiles, none of them learned: the calibrating images as
they are, the stream's brightened or darkened. Pixels are multiplied by a factor and rounded to uint8, in steps of STEP.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mhpc.core.calibration import fit_threshold
from mhpc.core.drift import DriftMonitor
from mhpc.core.learner import OnePassLearner
from mhpc.core.patch_features import IMAGENET_DEVIATION, IMAGENET_MEAN, PatchFeatures
from mhpc.core.whitening import ZSpace
from tests.benchmarks.tiles import TILES, mobilenet_features

LEARNED, BANK, TOP_K = 100, 3000, 20
STEP, CHANGE, DRIFTING = 0.05, 0.2, 1000  # brightness per level, in all, and over so many images
BATCH, BATCHES = 8, 10_000  # of the stationary stream
CALIBRATING, REPEATS, STATIONARY_REPEATS = (200, 500), 60, 8
RATE = 0.01

Draw = Callable[[int, np.random.Generator], tuple[Tensor, Tensor]]


class Levels(NamedTuple):
    """Scores [L, T] and means [L, T, d] of T tiles at the L brightnesses factors [L]."""

    factors: NDArray[np.floating]
    scores: Tensor
    means: Tensor

    def at(self, factor: float) -> int:
        return int(np.abs(self.factors - factor).argmin())


def tile_pixels(folder: Path) -> list[NDArray[np.float32]]:
    images = (Image.open(path).convert("RGB") for path in sorted(folder.iterdir()))
    return [np.asarray(i.resize((224, 224), Image.Resampling.BILINEAR), dtype=np.float32) for i in images]


def features_at(extract: PatchFeatures, pixels: list[NDArray[np.float32]], factor: float) -> Tensor:
    """Features [B, P, D] of pixels [224, 224, 3] in 0 to 255, multiplied by the factor."""
    scaled = np.stack([np.clip(np.rint(p * factor), 0, 255) for p in pixels])
    x = torch.from_numpy(scaled).permute(0, 3, 1, 2) / 255
    return extract((x - IMAGENET_MEAN) / IMAGENET_DEVIATION)[0]


def tile_levels(extract: PatchFeatures, seed: int = 0) -> Levels:
    pixels = [p for part in ("train", "test") for p in tile_pixels(TILES / part / "good")]
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed)).tolist()
    groups = [[pixels[i] for i in order[start : start + BATCH]] for start in range(0, len(order), BATCH)]
    learned, rest = groups[: LEARNED // BATCH], groups[LEARNED // BATCH :]
    learner = OnePassLearner(BANK, ZSpace(pca_variance_ratio=0.9), TOP_K)
    for group in learned:
        learner.partial_fit(features_at(extract, group, 1.0))
    learner.freeze()
    factors = np.arange(round(-CHANGE / STEP), round(CHANGE / STEP) + 1) * STEP + 1
    scores, means = [], []
    for factor in factors:
        features = [features_at(extract, group, factor) for group in rest]
        scores.append(torch.cat([learner.score(x) for x in features]).double())
        means.append(torch.cat([learner.whiten(x).mean(1) for x in features]).double())
    return Levels(factors, torch.stack(scores), torch.stack(means))


def report_brightness(levels: Levels, n: int, change: float) -> None:
    """Images until the alarm, and the false-positive rate by then, over REPEATS calibrations on n images."""
    still = levels.at(1.0)
    waits, multiples, tripled = [], [], 0
    for seed in range(REPEATS):
        rng = np.random.default_rng(seed)
        calibration = rng.integers(0, levels.scores.shape[1], n)
        scores, means = levels.scores[still][calibration], levels.means[still][calibration]
        monitor = DriftMonitor().fit(scores, means)
        for _ in range(2 * monitor.window // BATCH):
            tiles = rng.integers(0, levels.scores.shape[1], BATCH)
            monitor.update(levels.scores[still][tiles], levels.means[still][tiles])
        rates = (levels.scores > fit_threshold(scores.numpy(), RATE).value).double().mean(1)
        usual, level, i = max(float(rates[still]), RATE), still, 0
        for i in range(0, DRIFTING, BATCH):
            level = levels.at(1 + change * i / DRIFTING)
            tiles = rng.integers(0, levels.scores.shape[1], BATCH)
            if monitor.update(levels.scores[level][tiles], levels.means[level][tiles]).alarm_:
                waits.append(i + BATCH)
                break
        multiples.append(float(rates[level]) / usual)
        tripled += multiples[-1] >= 3
    found = f"after {np.median(waits):.0f} images (median)" if waits else "never"
    print(
        f"brightness {change:+.0%} over {DRIFTING} images, {n} calibrating: {len(waits)} of {REPEATS} alarm, {found}; "
        f"false-positive rate by then {np.mean(multiples):.1f} times the usual, at most {max(multiples):.1f}, tripled "
        f"in {tripled}",
        flush=True,
    )


def report_stationary(name: str, draw: Draw, n: int) -> None:
    alarms, highest, seconds = [], [], 0.0
    for seed in range(STATIONARY_REPEATS):
        rng = np.random.default_rng(1000 + seed)
        monitor = DriftMonitor().fit(*draw(n, rng))
        scores, means = draw(BATCH * BATCHES, rng)
        before, count, most = False, 0, 0.0
        start = time.perf_counter()
        for s, z in zip(scores.split(BATCH), means.split(BATCH), strict=True):
            alarm = monitor.update(s, z).alarm_
            count, before, most = count + (alarm and not before), alarm, max(most, monitor.drift_)
        seconds += time.perf_counter() - start
        alarms.append(int(count))
        highest.append(most)
    cost = 1e6 * seconds / (BATCH * BATCHES * STATIONARY_REPEATS)
    print(
        f"stationary, {BATCHES} batches of {BATCH}, {n} calibrating: alarms {alarms}, drift at most "
        f"{max(highest):.2f} ({cost:.1f} us per image)   {name}",
        flush=True,
    )


def heavy_tailed(n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Lognormal scores and means of 60 correlated components, Student's with 4 degrees of freedom."""
    mixing = np.random.default_rng(0).normal(size=(60, 60)) * np.geomspace(1, 0.05, 60)
    means = rng.standard_t(4, size=(n, 60)) @ mixing.T
    return torch.from_numpy(rng.lognormal(2, 0.3, n)), torch.from_numpy(means)


def main() -> None:
    for n in CALIBRATING:
        report_stationary("lognormal scores, Student means", heavy_tailed, n)
    extract = mobilenet_features()
    if extract is None:
        return
    levels = tile_levels(extract)
    still = levels.at(1.0)

    def tiles(n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        drawn = rng.integers(0, levels.scores.shape[1], n)
        return levels.scores[still][drawn], levels.means[still][drawn]

    for n in CALIBRATING:
        report_stationary("mtd/tile", tiles, n)
        for change in (-CHANGE, CHANGE):
            report_brightness(levels, n, change)


if __name__ == "__main__":
    main()
