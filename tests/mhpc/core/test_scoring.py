import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mhpc.core.scoring import SIGMA, anomaly_maps, image_scores


def patch_scores(B: int, P: int) -> Tensor:
    return torch.rand(B, P, generator=torch.Generator().manual_seed(0)) * 10


def test_an_image_scores_its_largest_patch() -> None:
    patches = patch_scores(4, 30)
    assert torch.equal(image_scores(patches), patches.amax(1))


@pytest.mark.parametrize("top_k", [2, 20, 30, 99])
def test_with_top_k_it_scores_the_mean_of_its_largest(top_k: int) -> None:
    patches = patch_scores(4, 30)
    expected = np.sort(patches.numpy(), axis=1)[:, ::-1][:, :top_k].mean(1)
    np.testing.assert_allclose(image_scores(patches, top_k), expected, rtol=1e-6)


@pytest.mark.parametrize(("grid", "size"), [((8, 8), (64, 64)), ((6, 10), (48, 90)), ((28, 28), (224, 224))])
def test_maps_equal_scipys_gaussian_of_the_bilinear_upsampling(grid: tuple[int, int], size: tuple[int, int]) -> None:
    patches = patch_scores(2, grid[0] * grid[1])
    upsampled = F.interpolate(patches.reshape(2, 1, *grid), size=size, mode="bilinear", align_corners=False)[:, 0]
    maps = anomaly_maps(patches, grid, size)
    assert maps.shape == (2, *size)
    for found, plain in zip(maps, upsampled, strict=True):
        np.testing.assert_allclose(found, gaussian_filter(plain.numpy(), SIGMA, mode="mirror"), rtol=1e-4)


def test_a_map_smaller_than_the_kernel_keeps_its_level() -> None:
    maps = anomaly_maps(torch.full((1, 4), 3.0), (2, 2), (8, 8))
    torch.testing.assert_close(maps, torch.full((1, 8, 8), 3.0))


def test_a_hot_patch_is_hottest_where_it_lies() -> None:
    patches = torch.zeros(1, 8, 12)
    patches[0, 2, 9] = 1
    maps = anomaly_maps(patches.reshape(1, -1), (8, 12), (64, 96))
    row, column = np.unravel_index(int(maps[0].argmax()), (64, 96))
    assert row in (19, 20)  # the patch covers rows 16 to 23, columns 72 to 79
    assert column in (75, 76)


def test_maps_do_not_depend_on_the_batch() -> None:
    patches = patch_scores(3, 64)
    together = anomaly_maps(patches, (8, 8), (64, 64))
    alone = anomaly_maps(patches[1:2], (8, 8), (64, 64))
    torch.testing.assert_close(together[1:2], alone)
