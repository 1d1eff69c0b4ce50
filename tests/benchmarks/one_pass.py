"""Accuracy of one pass against batch PatchCore: the same features, bank size and image score, in one run."""

import time

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mhpc.core.learner import OnePassLearner
from mhpc.core.scoring import image_scores
from mhpc.core.whitening import ZSpace
from mhpc.linalg import nearest
from mhpc.sampler import GreedyCoresetSampler
from tests.benchmarks.tiles import tiles

LEARNED, BANK, TOP_K = 200, 6000, 20


def main() -> None:
    features = tiles()
    if features is None:
        return
    train = features.pop("train")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    train = train[order[:LEARNED]]
    truth = np.concatenate([np.full(len(x), kind != "good") for kind, x in features.items()])

    rows = train.reshape(-1, train.shape[-1])
    bank = GreedyCoresetSampler(BANK / len(rows)).run(rows)
    batch = torch.cat([nearest(x.reshape(-1, x.shape[-1]), bank)[0].reshape(len(x), -1) for x in features.values()])
    report("batch PatchCore (greedy, Euclidean)", batch, truth)
    for ratio in (0.9, 0.99):
        learner = OnePassLearner(BANK, ZSpace(pca_variance_ratio=ratio), TOP_K)
        start = time.perf_counter()
        for chunk in train.split(8):
            learner.partial_fit(chunk)
        learner.freeze()
        seconds = time.perf_counter() - start
        one_pass = torch.cat([learner.score_patches(part) for x in features.values() for part in x.split(8)])
        report(f"one pass, PCA {ratio} ({1000 * seconds / LEARNED:.0f} ms per image learned)", one_pass, truth)


def report(name: str, patches: Tensor, truth: np.ndarray) -> None:
    figures = ", ".join(f"top {k} {roc_auc_score(truth, image_scores(patches, k)):.4f}" for k in (1, TOP_K))
    print(f"mtd/tile, bank {BANK}, image AUROC: {figures}   {name}", flush=True)
