import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mhpc.core.scoring import SIGMA, anomaly_maps, image_scores, reweighted_scores
from mhpc.core.scoring import patch_scores as scored


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
        np.testing.assert_allclose(found, gaussian_filter(plain.numpy(), SIGMA), rtol=1e-4)


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


def bank_and_patches() -> tuple[Tensor, Tensor]:
    """A bank [40, 6] and patches [3, 10, 6]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, 6, generator=generator), 2 * torch.randn(3, 10, 6, generator=generator)


@pytest.mark.parametrize("num_nn", [1, 2, 9, 40])
def test_a_patch_scores_its_mean_distance_to_the_nearest_rows(num_nn: int) -> None:
    bank, z = bank_and_patches()
    distances = np.linalg.norm(z.numpy()[:, :, None] - bank.numpy(), axis=3)  # [3, 10, 40]
    expected = np.sort(distances, axis=2)[:, :, :num_nn].mean(2)
    np.testing.assert_allclose(scored(z, bank, num_nn), expected, rtol=1e-5)


@pytest.mark.parametrize("num_nn", [2, 3, 9, 40])
def test_reweighting_is_equation_7(num_nn: int) -> None:
    bank, z = bank_and_patches()
    b, x = bank.double().numpy(), z.double().numpy()
    expected = []
    for image in x:
        distances = np.linalg.norm(image[:, None] - b, axis=2)
        worst = distances.min(1).argmax()
        nearest = distances[worst].argmin()
        around = np.linalg.norm(b - b[nearest], axis=1).argsort()[:num_nn]
        weight = 1 - np.exp(distances[worst, nearest]) / np.exp(distances[worst, around]).sum()
        expected.append(weight * distances[worst, nearest])
    np.testing.assert_allclose(reweighted_scores(z, scored(z, bank), bank, num_nn), expected, rtol=1e-5)


def test_far_patches_do_not_overflow_the_weight() -> None:
    bank, z = bank_and_patches()
    scores = reweighted_scores(1000 * z, scored(1000 * z, bank), bank, 9)
    assert scores.isfinite().all()
    assert (scores >= 0).all()


def test_more_neighbours_than_the_bank_has_are_refused() -> None:
    bank, z = bank_and_patches()
    with pytest.raises(ValueError, match="40"):
        scored(z, bank, 41)
    with pytest.raises(ValueError, match="40"):
        reweighted_scores(z, scored(z, bank), bank, 41)
