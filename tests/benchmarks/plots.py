"""The two plots of docs/how-it-learns.md: python -m tests.benchmarks plots."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from mhpc.core.calibration import fit_threshold
from tests.benchmarks import calibration, learning
from tests.benchmarks.tiles import tiles

DOCS = Path(__file__).parents[2] / "docs"
LEARNED = (16, 32, 48, 72, 96, 128, 160, 200, 240)
BATCH = (32, 96, 240)
WANTED = (0.1, 0.05, 0.03, 0.02, 0.01)
BOOTSTRAPS = 100


def main() -> None:
    features = tiles()
    if features is None:
        return
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    draw_learning(axes, features)
    figure.savefig(DOCS / "learning-curve.png", dpi=110)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    draw_rates(axes, features)
    figure.savefig(DOCS / "false-positives.png", dpi=110)
    print(f"{DOCS}/learning-curve.png and false-positives.png are written")


def draw_learning(axes: Axes, features: Mapping[str, Tensor]) -> None:
    """Image AUROC against the images learned, clean and with 5 % defective parts among them."""
    for share, color in ((0.0, "tab:blue"), (learning.DEFECTIVE, "tab:orange")):
        curves = np.array([curve(features, order, share) for order in range(learning.ORDERS)])
        name = "clean" if not share else f"{share:.0%} of them defective"
        axes.plot(LEARNED, curves.mean(0), "-o", ms=4, color=color, label=f"one pass, {name}")
        axes.fill_between(LEARNED, curves.min(0), curves.max(0), color=color, alpha=0.15, lw=0)
        batch = [batch_auroc(features, n, share) for n in BATCH]
        axes.plot(BATCH, batch, "s", ms=6, mfc="none", color=color, label=f"batch PatchCore, {name}")
    axes.set(xlabel="images learned", ylabel="image AUROC")
    axes.set_title(f"Magnetic tiles, at most {learning.BANK:,} anchors; shaded: three orders", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def curve(features: Mapping[str, Tensor], order: int, share: float) -> list[float]:
    """AUROC after each of LEARNED images of one stream: the learner goes on, a copy of it is frozen."""
    parts = learning.split(features, order, share)
    learner, found, start = learning.new_learner(), [], 0
    for stop in LEARNED:
        for at in range(start, stop, 8):
            learner.partial_fit(torch.stack([features[name][i] for name, i in parts.learn[at : min(at + 8, stop)]]))
        start = stop
        frozen = learning.new_learner().load_state_dict(learner.state_dict())
        frozen.freeze()
        found.append(learning.auroc(learning.scored(features, parts.score, frozen)))
    return found


def batch_auroc(features: Mapping[str, Tensor], n: int, share: float) -> float:
    parts = learning.split(features, 0, share)
    return learning.auroc(learning.batch_scored(features, parts._replace(learn=parts.learn[:n])))


def draw_rates(axes: Axes, features: Mapping[str, Tensor]) -> None:
    """Realised against wanted false-positive rate, with 200 images to calibrate on, over all orders."""
    good = torch.cat([features["train"], features["good"]])
    orders = [calibration.tile_scores({"good": good}, seed)["good"] for seed in range(calibration.ORDERS)]
    for rate in WANTED:
        realised, low, high = [], [], []
        for seed, scores in enumerate(orders):
            population, rng = calibration.of_scores(scores), np.random.default_rng(seed)
            thresholds = [fit_threshold(population.draw(calibration.N, rng), rate) for _ in range(BOOTSTRAPS)]
            realised += [population.rate(t.value) for t in thresholds]
            low += [t.rate_low for t in thresholds]
            high += [t.rate_high for t in thresholds]
        stated, mean, (least, most) = (
            [np.mean(low), np.mean(high)],
            np.mean(realised),
            np.quantile(realised, [0.05, 0.95]),
        )
        axes.plot([rate, rate], stated, color="tab:blue", lw=9, alpha=0.2, solid_capstyle="butt")
        axes.plot([rate, rate], [least, most], color="tab:blue", lw=1.5)
        axes.plot(rate, mean, "o", color="tab:blue")
    axes.plot([0, max(WANTED)], [0, max(WANTED)], "--", color="grey", lw=1)
    axes.set(xlabel="wanted false-positive rate", ylabel="realised", xlim=(0, 0.108), ylim=(0, None))
    axes.set_title(
        "200 calibration images; dot: mean, line: 90 % of bootstraps, shaded: the interval stated", fontsize=9
    )
    axes.grid(alpha=0.3)
