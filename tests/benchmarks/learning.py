"""What one pass over a stream learns of real tiles, beside batch PatchCore of equal size, clean and with 5 % bad parts.

The same features, images, bank size and image score for both, in one run; three orders of the images. A part was
photographed several times: who learns a defective picture learns the very defect that others show, so that what 5 %
cost is told for all pictures, and for those of parts none of which was learned from.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mhpc.core.backbones import load_backbone
from mhpc.core.learner import OnePassLearner
from mhpc.core.scoring import image_scores, patch_scores
from mhpc.core.whitening import ZSpace
from mhpc.sampler import GreedyCoresetSampler
from tests.benchmarks.tiles import KINDS, TILES, parts_shown, tiles

BANK, SMALL_BANK, TOP_K, PCA = 6000, 1000, 20, 0.9
ORDERS = 3
DEFECTIVE = 0.05  # of the images learned from, half of either kind; those are not scored
BOOTSTRAPS = 1000
TURNS = 5  # of learning and of the forward pass that it is held against
Scores = dict[str, NDArray[np.float64]]  # by kind
Items = list[tuple[str, int]]  # folder and number of the image


class Split(NamedTuple):
    """Images to learn from, in order, and those to score."""

    learn: Items
    score: dict[str, list[int]]


def split(features: Mapping[str, Tensor], order: int, share: float) -> Split:
    """As many images to learn from as there are in train, a share of them defective."""
    generator = torch.Generator().manual_seed(order)
    N = len(features["train"])
    bad = round(N * share)
    good = torch.randperm(N, generator=generator)[: N - bad].tolist()
    learn, score = [("train", i) for i in good], {"good": list(range(len(features["good"])))}
    for kind in KINDS:
        numbers = torch.randperm(len(features[kind]), generator=generator).tolist()
        learn += [(kind, i) for i in numbers[: bad // len(KINDS)]]
        score[kind] = sorted(numbers[bad // len(KINDS) :])
    return Split([learn[i] for i in torch.randperm(len(learn), generator=generator)], score)


def new_learner(bank_size: int = BANK) -> OnePassLearner:
    return OnePassLearner(bank_size, ZSpace(pca_variance_ratio=PCA), TOP_K)


def one_pass(features: Mapping[str, Tensor], learn: Items, bank_size: int = BANK) -> OnePassLearner:
    learner = new_learner(bank_size)
    for start in range(0, len(learn), 8):
        learner.partial_fit(torch.stack([features[name][i] for name, i in learn[start : start + 8]]))
    learner.freeze()
    return learner


def scored(features: Mapping[str, Tensor], chosen: dict[str, list[int]], learner: OnePassLearner) -> Scores:
    return {
        kind: torch.cat([learner.score(features[kind][part]) for part in torch.tensor(numbers).split(8)]).numpy()
        for kind, numbers in chosen.items()
    }


def batch_scored(features: Mapping[str, Tensor], parts: Split) -> Scores:
    """Batch PatchCore: greedy on all rows as they are, Euclidean, the same size and image score."""
    rows = torch.cat([features[name][i] for name, i in parts.learn])
    bank = GreedyCoresetSampler(BANK / len(rows), dimension_to_project_features_to=None).run(rows)
    found = {}
    for kind, numbers in parts.score.items():
        chunks = [image_scores(patch_scores(features[kind][n], bank), TOP_K) for n in torch.tensor(numbers).split(8)]
        found[kind] = torch.cat(chunks).numpy()
    return found


def auroc(scores: Scores, draw: dict[str, NDArray[np.int64]] | None = None) -> float:
    """Of all defects against the good parts; of the drawn images, if a draw is given."""
    by_kind = scores if draw is None else {kind: x[draw[kind]] for kind, x in scores.items()}
    truth = np.concatenate([np.full(len(x), kind != "good") for kind, x in by_kind.items()])
    return float(roc_auc_score(truth, np.concatenate(list(by_kind.values()))))


def paired_interval(pairs: list[tuple[Scores, Scores]], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean difference in AUROC, over bootstraps of the test images, the same for both sides."""
    rng = np.random.default_rng(seed)
    differences = []
    for _ in range(BOOTSTRAPS):
        found = []
        for ours, theirs in pairs:
            draw = {kind: rng.integers(0, len(x), len(x)) for kind, x in ours.items()}
            found.append(auroc(ours, draw) - auroc(theirs, draw))
        differences.append(np.mean(found))
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high)


def report(name: str, runs: list[Scores]) -> float:
    found = [auroc(run) for run in runs]
    kinds = [np.mean([auroc({k: run[k] for k in ("good", kind)}) for run in runs]) for kind in KINDS]
    by_kind = ", ".join(f"{kind} {value:.4f}" for kind, value in zip(KINDS, kinds, strict=True))
    print(f"  {name:42} {np.mean(found):.4f}  ({by_kind}; orders {', '.join(f'{f:.4f}' for f in found)})", flush=True)
    return float(np.mean(found))


def of_other_parts(runs: list[Scores], splits: list[Split], dirty: list[Split]) -> list[Scores]:
    """Of runs over splits, the scores of those pictures that show no defective part which dirty learns from."""
    shown = {kind: np.array(parts_shown(TILES / "test" / kind)) for kind in KINDS}
    found = []
    for run, (_, score), (learn, _) in zip(runs, splits, dirty, strict=True):
        kept = dict(run)
        for kind, parts in shown.items():
            known = parts[[i for name, i in learn if name == kind]]
            kept[kind] = run[kind][~np.isin(parts[score[kind]], known)]
        found.append(kept)
    return found


def main() -> None:
    features = tiles()
    if features is None:
        return
    print(f"mtd/tile, MobileNet v1, {len(features['train'])} learned, image AUROC (mean of the top {TOP_K} patches)")
    splits = {share: [split(features, order, share) for order in range(ORDERS)] for share in (0.0, DEFECTIVE)}
    runs: dict[tuple[str, float], list[Scores]] = {}
    means = {}
    for share, parts in splits.items():
        learners = [one_pass(features, part.learn) for part in parts]
        ours = [scored(features, part.score, learner) for part, learner in zip(parts, learners, strict=True)]
        theirs = [batch_scored(features, part) for part in parts]
        runs["one pass", share], runs["batch PatchCore", share] = ours, theirs
        means[share] = report(f"one pass, {BANK} anchors, {share:.0%} defective", ours)
        batch = report(f"batch PatchCore, {BANK} rows, {share:.0%} defective", theirs)
        low, high = paired_interval(list(zip(ours, theirs, strict=True)))
        print(f"    one pass less batch: {means[share] - batch:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}")
        if not share:
            small = [scored(features, p.score, one_pass(features, p.learn, SMALL_BANK)) for p in parts]
            gap = report(f"one pass, {SMALL_BANK} anchors, clean", small) - means[share]
            print(f"    {SMALL_BANK} anchors less {BANK}: {gap:+.4f}")
    print(f"    5 % defective less clean: {means[DEFECTIVE] - means[0.0]:+.4f}")
    print("  pictures of parts of which no defective picture was learned from:")
    dirty = splits[DEFECTIVE]
    for name in ("one pass", "batch PatchCore"):
        kept = {share: of_other_parts(runs[name, share], parts, dirty) for share, parts in splits.items()}
        found = [report(f"{name}, {share:.0%} defective", scores) for share, scores in kept.items()]
        print(f"    5 % defective less clean: {found[1] - found[0]:+.4f}")
    cost(features["train"][:80])


def cost(images: Tensor) -> None:
    """Learning's own arithmetic for a batch of 8, refreshes and reductions included, in forward passes: medians of
    TURNS that both take in turn, since a machine's speed moves from minute to minute."""
    network, x = load_backbone("wide_resnet50_2", "random:0"), torch.randn(8, 3, 224, 224)
    begun = new_learner()
    begun.partial_fit(images[:40])
    state, rest = begun.state_dict(), images[40:]
    forwards, learnings = list[float](), list[float]()
    for _ in range(1 + TURNS):
        learner = new_learner().load_state_dict(state)
        learnings.append(_timed(partial(learner.partial_fit, rest)) / (len(rest) / 8))
        with torch.inference_mode():
            forwards.append(_timed(partial(network, x)))
    learning, forward = median(learnings[1:]), median(forwards[1:])  # the first of each finds no memory at hand
    print(
        f"  learning costs {learning / forward:.2f} of wide_resnet50_2's forward pass in float32 "
        f"({1000 * learning:.0f} and {1000 * forward:.0f} ms for 8 images)"
    )


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
