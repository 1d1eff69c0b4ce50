"""What a wanted false-positive rate becomes: on clean and on dirty calibration images, of real tiles and by formula.

A population of scores is the tiles' own, each blurred by a factor exp(N(0, SMOOTHING^2)): so its false-positive rate at
any threshold is known exactly, and not by the few tiles beyond it. Calibrations are bootstraps of N images from it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from mhpc.core.calibration import Threshold, fit_threshold
from mhpc.core.learner import OnePassLearner
from mhpc.core.whitening import ZSpace
from tests.benchmarks.tiles import KINDS, tiles

LEARNED, BANK, TOP_K, ORDERS = 120, 3000, 20, 4
N, RATES, BOOTSTRAPS = 200, (0.05, 0.02, 0.01), 200
DEFECTIVE, DIRTY_RATE = 0.05, 0.01
SMOOTHING = 0.015
FORMULAS = {
    "gamma(20)": stats.gamma(20),
    "normal(10, 1)": stats.norm(10, 1),
    "lognormal(0.3)": stats.lognorm(0.3),
    "lognormal(0.6)": stats.lognorm(0.6),
    "Student(5) + 30": stats.t(5, loc=30),
    "exponential + 1": stats.expon(loc=1),
}
PRODUCTS, PRODUCT_RATE = 500, 0.01  # images of two products that calibrate
RARER = [(share, higher) for share in (0.1, 0.15, 0.2, 0.25) for higher in ((3, 0.3), (5, 0.4))]  # than N(2, 0.2)

Scores = NDArray[np.float64]


class Population(NamedTuple):
    """Scores to draw n of, and the share of them above a threshold."""

    draw: Callable[[int, np.random.Generator], Scores]
    rate: Callable[[float], float]


def of_scores(scores: Scores) -> Population:
    def draw(n: int, rng: np.random.Generator) -> Scores:
        blurred: Scores = rng.choice(scores, n) * np.exp(SMOOTHING * rng.standard_normal(n))
        return blurred

    return Population(draw, lambda t: float(stats.norm.sf(np.log(t / scores) / SMOOTHING).mean()))


def of_formula(distribution: Any) -> Population:
    return Population(lambda n, rng: distribution.rvs(n, random_state=rng), lambda t: float(distribution.sf(t)))


def covered(thresholds: Sequence[Threshold], rates: Sequence[float]) -> float:
    return float(np.mean([t.rate_low <= rate <= t.rate_high for t, rate in zip(thresholds, rates, strict=True)]))


def report_rates(name: str, population: Population, seed: int = 0) -> list[float]:
    """Mean realised rate in units of the wanted one, for each of RATES, and how often the interval holds it."""
    ratios, parts = [], []
    for rate in RATES:
        rng = np.random.default_rng(seed)
        thresholds = [fit_threshold(population.draw(N, rng), rate) for _ in range(BOOTSTRAPS)]
        realised = [population.rate(t.value) for t in thresholds]
        widest = np.mean([t.rate_high for t in thresholds]) / rate
        ratios.append(float(np.mean(realised)) / rate)
        parts.append(f"{rate}: {ratios[-1]:.2f}, held {covered(thresholds, realised):.2f}, upper end {widest:.1f}")
    print(f"{name:24} realised / wanted   {';  '.join(parts)}", flush=True)
    return ratios


def report_dirty(name: str, good: Scores, bad: Scores, seed: int = 0) -> float:
    """Recall with DEFECTIVE of the calibrating images defective, over that of clean calibration."""
    population, defects = of_scores(good), of_scores(bad)
    rng, n_bad = np.random.default_rng(seed), int(N * DEFECTIVE)
    clean, dirty = [], []
    for _ in range(BOOTSTRAPS):
        images = population.draw(N, rng)
        clean.append(fit_threshold(images, DIRTY_RATE))
        dirty.append(fit_threshold(np.concatenate([images[n_bad:], defects.draw(n_bad, rng)]), DIRTY_RATE))
    before, after = (float(np.mean([defects.rate(t.value) for t in thresholds])) for thresholds in (clean, dirty))
    realised = [population.rate(t.value) for t in dirty]
    print(
        f"{name:24} recall {before:.3f} clean, {after:.3f} dirty: {after / before:.2f};  realised rate "
        f"{np.mean(realised):.4f}, in its interval {covered(dirty, realised):.2f};  provisional "
        f"{np.mean([t.provisional for t in dirty]):.2f}",
        flush=True,
    )
    return after / before


def report_products() -> None:
    """What is flagged where a share of the parts is another product, which scores higher."""
    print(f"\n{PRODUCTS} images of two products, wanted {PRODUCT_RATE}, {BOOTSTRAPS} draws: N(2, 0.2), and of a share")
    for share, (location, scale) in RARER:
        one, other, n = stats.norm(2, 0.2), stats.norm(location, scale), int(PRODUCTS * share)
        rng, values = np.random.default_rng(0), list[float]()
        for _ in range(BOOTSTRAPS):
            drawn = one.rvs(PRODUCTS - n, random_state=rng), other.rvs(n, random_state=rng)
            values.append(fit_threshold(np.concatenate(drawn), PRODUCT_RATE).value)
        of_one, of_other = float(one.sf(values).mean()), float(other.sf(values).mean())
        name, flagged = f"{share:.0%} N({location}, {scale})", (1 - share) * of_one + share * of_other
        print(f"{name:24} flagged {flagged:.4f}, of the rarer {of_other:.3f}", flush=True)


def report(orders: Sequence[Mapping[str, Scores]]) -> None:
    """All figures of real scores: of each order the scores of "good" images and of each kind of defect."""
    print(f"{BOOTSTRAPS} bootstraps of {N} images; seeds: the number of the order")
    ratios = [report_rates(f"order {i}", of_scores(scores["good"]), i) for i, scores in enumerate(orders)]
    means = ";  ".join(f"{rate}: {mean:.2f}" for rate, mean in zip(RATES, np.mean(ratios, 0), strict=True))
    print(f"{'mean of orders':24} realised / wanted   {means}")
    print(f"\n{DEFECTIVE:.0%} defective, wanted {DIRTY_RATE}")
    for kind in [kind for kind in orders[0] if kind != "good"]:
        shares = [report_dirty(f"order {i}, {kind}", s["good"], s[kind], i) for i, s in enumerate(orders)]
        print(f"{'mean of orders':24} recall, dirty / clean {np.mean(shares):.2f}")


def tile_scores(features: Mapping[str, Tensor], seed: int) -> dict[str, Scores]:
    """Scores of the good tiles that were not learned, and of the defective."""
    good = features["good"]
    order = torch.randperm(len(good), generator=torch.Generator().manual_seed(seed))
    learner = OnePassLearner(BANK, ZSpace(pca_variance_ratio=0.9), TOP_K)
    for part in good[order[:LEARNED]].split(8):
        learner.partial_fit(part)
    learner.freeze()
    tests = {**features, "good": good[order[LEARNED:]]}
    return {kind: torch.cat([learner.score(part) for part in x.split(8)]).double().numpy() for kind, x in tests.items()}


def main() -> None:
    for name, distribution in FORMULAS.items():
        report_rates(name, of_formula(distribution))
    report_products()
    features = tiles()
    if features is None:
        return
    good = torch.cat([features["train"], features["good"]])
    defective = {kind: features[kind] for kind in KINDS}
    print(f"\nmtd/tile, {LEARNED} of {len(good)} good tiles learned, bank {BANK}, top {TOP_K}")
    report([tile_scores({"good": good, **defective}, seed) for seed in range(ORDERS)])


if __name__ == "__main__":
    main()
