"""Accuracy of one pass against batch PatchCore: the same features, bank size and image score, in one run."""

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mhpc.core.backbones import load_backbone
from mhpc.core.learner import OnePassLearner
from mhpc.core.patch_features import PatchFeatures
from mhpc.core.scoring import image_scores
from mhpc.core.whitening import ZSpace
from mhpc.linalg import nearest
from mhpc.sampler import GreedyCoresetSampler
from worker.engine import DEVIATION, MEAN

TILES = Path(__file__).parents[3] / "shared" / "data" / "mtd" / "tile"
LEARNED, BANK, TOP_K = 200, 6000, 20


def tile_features(extract: PatchFeatures, folder: Path, n: int | None = None) -> Tensor:
    """Features [N, P, D] of a folder's pictures, or of the first n, at 224 x 224."""
    chunks = []
    for path in sorted(folder.iterdir())[:n]:
        pixels = np.asarray(Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        chunks.append(extract(((x - MEAN) / DEVIATION)[None])[0])
    return torch.cat(chunks)


def main() -> None:
    if not TILES.is_dir():
        print(f"{TILES} is absent: the real tiles are not at hand")
        return
    sys.path.insert(0, str(TILES.parents[1]))
    if importlib.util.find_spec("mobilenet_v1") is None:
        print("mobilenet_v1 is not importable")
        return
    extract = PatchFeatures(load_backbone("mobilenet_v1:mobilenet_v1"), ["block5", "block11"])
    train = tile_features(extract, TILES / "train" / "good")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    train = train[order[:LEARNED]]
    test = {kind: tile_features(extract, TILES / "test" / kind) for kind in ("good", "blowhole", "break")}
    truth = np.concatenate([np.full(len(x), kind != "good") for kind, x in test.items()])

    rows = train.reshape(-1, train.shape[-1])
    bank = GreedyCoresetSampler(BANK / len(rows)).run(rows)
    batch = torch.cat([nearest(x.reshape(-1, x.shape[-1]), bank)[0].reshape(len(x), -1) for x in test.values()])
    report("batch PatchCore (greedy, Euclidean)", batch, truth)
    for ratio in (0.9, 0.99):
        learner = OnePassLearner(BANK, ZSpace(pca_variance_ratio=ratio), TOP_K)
        start = time.perf_counter()
        for chunk in train.split(8):
            learner.partial_fit(chunk)
        learner.freeze()
        seconds = time.perf_counter() - start
        one_pass = torch.cat([learner.score_patches(part) for x in test.values() for part in x.split(8)])
        report(f"one pass, PCA {ratio} ({1000 * seconds / LEARNED:.0f} ms per image learned)", one_pass, truth)


def report(name: str, patches: Tensor, truth: np.ndarray) -> None:
    figures = ", ".join(f"top {k} {roc_auc_score(truth, image_scores(patches, k)):.4f}" for k in (1, TOP_K))
    print(f"mtd/tile, bank {BANK}, image AUROC: {figures}   {name}", flush=True)
