"""One backbone, several threads."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import torch
from torch import Tensor, nn

from mhpc.core.patch_features import PatchFeatures


def pictures(B: int, seed: int = 0) -> Tensor:
    return torch.randn(B, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


class Slow(nn.Module):
    """Lets other threads in between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.AvgPool2d(2), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        time.sleep(0.02)
        y: Tensor = self.last(x)
        return y


def test_extractors_that_share_a_backbone_give_each_thread_its_own_features() -> None:
    backbone = Slow().eval()
    extractors = [PatchFeatures(backbone, ["first", "last"], size) for size in (1, 1, 3, 3)]
    images = [pictures(1, seed=seed) for seed in range(4)]
    expected = [extract(x)[0] for extract, x in zip(extractors, images, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda extract, x: extract(x)[0], extractors, images))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_an_extractor_that_was_called_can_be_copied_and_pickled() -> None:
    extractor = PatchFeatures(Slow().eval(), ["last"])
    expected, _ = extractor(pictures(1))
    for again in (deepcopy(extractor), pickle.loads(pickle.dumps(extractor))):  # noqa: S301 - our own
        assert torch.equal(again(pictures(1))[0], expected)
