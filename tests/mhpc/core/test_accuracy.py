"""One pass against batch PatchCore, on real tiles: the same features, bank size and image score."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mhpc.core.backbones import load_backbone
from mhpc.core.learner import OnePassLearner
from mhpc.core.patch_features import PatchFeatures
from mhpc.core.scoring import image_scores
from mhpc.linalg import nearest
from mhpc.sampler import GreedyCoresetSampler

SIDE = 192  # pixels
BANK_SIZE = 800
TOP_K = 20
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


class Tiles(NamedTuple):
    """Patch features [B, P, D]: good tiles to learn from, good and broken ones to score, and which are broken."""

    train: Tensor
    test: Tensor
    labels: list[int]


def batches(paths: list[Path]) -> Iterator[Tensor]:
    for start in range(0, len(paths), 8):
        images = [Image.open(path).convert("RGB").resize((SIDE, SIDE)) for path in paths[start : start + 8]]
        pixels = np.stack([np.asarray(image, np.float32) / 255 for image in images])
        yield torch.from_numpy((pixels - MEAN) / DEVIATION).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def tiles(shared_data: Path) -> Tiles:
    """80 good tiles to learn from; 40 good ones, 30 with blowholes and 30 broken ones to score."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(shared_data)
        extract = PatchFeatures(load_backbone("mobilenet_v1:mobilenet_v1"), ["block5", "block11"])

    def features(folder: str, n: int) -> Tensor:
        paths = sorted((shared_data / "mtd" / "tile" / folder).iterdir())[:n]
        return torch.cat([extract(images)[0] for images in batches(paths)])

    test = [features("test/good", 40), features("test/blowhole", 30), features("test/break", 30)]
    return Tiles(features("train/good", 80), torch.cat(test), [0] * 40 + [1] * 60)


def batch_scores(tiles: Tiles) -> Tensor:
    """Batch PatchCore (Roth et al., 2022): a greedy coreset of all patches at once, Euclidean distance."""
    rows = tiles.train.flatten(0, 1)
    bank = GreedyCoresetSampler(BANK_SIZE / len(rows)).run(rows)
    assert len(bank) == BANK_SIZE
    distances, _ = nearest(tiles.test.flatten(0, 1), bank)
    return image_scores(distances.reshape(tiles.test.shape[:2]), TOP_K)


def test_one_pass_is_as_accurate_as_batch_patchcore(tiles: Tiles) -> None:
    learner = OnePassLearner(BANK_SIZE, top_k=TOP_K)
    learner.partial_fit(tiles.train)
    learner.freeze()
    one_pass = roc_auc_score(tiles.labels, learner.score(tiles.test))
    batch = roc_auc_score(tiles.labels, batch_scores(tiles))
    assert one_pass >= batch - 0.015
    assert one_pass >= 0.88  # 80 tiles and 800 anchors give 0.90 to 0.91; 760 tiles and 6,000 anchors, 0.97
