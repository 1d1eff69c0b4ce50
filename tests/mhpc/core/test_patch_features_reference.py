"""PatchFeatures with dimensions against patchcore-inspection's steps, written out."""

from math import ceil, floor

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

import mhpc.core.patch_features
from mhpc.core.patch_features import PatchFeatures

Array = npt.NDArray[np.float64]


class Pyramid(nn.Module):
    """Three maps of prime channels; without padding their sides are as odd as the images'."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 5, 3, 2), nn.Conv2d(5, 7, 3, 2), nn.Conv2d(7, 11, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        c: Tensor = self.c(self.b(self.a(x)))
        return c


@pytest.fixture(scope="module")
def pyramid() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Pyramid().eval().requires_grad_(False)


def pictures(B: int, H: int = 64, W: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(seed))


def neighbourhoods(layer: Array, size: int, stride: int) -> Array:
    """[B, C, H, W] -> [B, h, w, C, size, size], zeros beyond the border."""
    B, C, H, W = layer.shape
    padded = np.zeros((B, C, H + size - 1, W + size - 1))
    padded[:, :, size // 2 : size // 2 + H, size // 2 : size // 2 + W] = layer
    rows, columns = range(0, H, stride), range(0, W, stride)
    return np.stack(
        [np.stack([padded[:, :, y : y + size, x : x + size] for x in columns], 1) for y in rows], 1
    )  # centred on (y, x)


def scaled(values: Array, n: int, axis: int) -> Array:
    """An axis brought linearly to n cells; the corners of the outermost cells, not their centres, are aligned."""
    old, scaled_cells = values.shape[axis], []
    for i in range(n):
        at = max((i + 0.5) * old / n - 0.5, 0)
        low = floor(at)
        high = min(low + 1, old - 1)
        scaled_cells.append((1 - at + low) * values.take(low, axis) + (at - low) * values.take(high, axis))
    return np.stack(scaled_cells, axis)


def adaptively_pooled(rows: Array, n: int) -> Array:
    """[N, L] -> [N, n]: bin i is the mean from floor(i L / n) to ceil((i + 1) L / n)."""
    L = rows.shape[1]
    return np.stack([rows[:, floor(i * L / n) : ceil((i + 1) * L / n)].mean(1) for i in range(n)], 1)


def reference(maps: list[Tensor], size: int, stride: int, pretrain: int | None, target: int | None) -> Array:
    """patchcore-inspection's order of steps, written out in float64: features [B, P, D].

    Each value of each neighbourhood is scaled bilinearly, and only then is anything pooled.
    """
    cut = [neighbourhoods(m.double().numpy(), size, stride) for m in maps]
    B, h, w = max((c.shape[:3] for c in cut), key=lambda shape: shape[1] * shape[2])
    layers = []
    for c in cut:
        aligned = scaled(scaled(c, h, 1), w, 2)  # [B, h, w, C, size, size]
        if pretrain is None:
            layers.append(aligned.mean((4, 5)).reshape(B * h * w, -1))
        else:
            layers.append(adaptively_pooled(aligned.reshape(B * h * w, -1), pretrain))
    features = np.concatenate(layers, 1)
    if target is not None:
        features = adaptively_pooled(features, target)
    return features.reshape(B, h * w, -1)


@pytest.mark.parametrize(("H", "W"), [(64, 64), (37, 45)])
@pytest.mark.parametrize(
    ("layers", "size", "stride", "pretrain", "target"),
    [
        ("ab", 3, 1, 16, 16),
        ("abc", 3, 1, 45, 50),  # 45 = 5 * 3^2: the first layer is taken as it is
        ("ab", 3, 1, 128, 96),  # more than there are values
        ("abc", 5, 2, 10, 7),
        ("b", 1, 1, 3, 4),
        ("bac", 3, 2, 11, 13),  # the largest map is not the first
        ("ac", 7, 3, 6, 1),
        ("ab", 3, 1, 12, None),
        ("abc", 3, 1, None, 9),
        ("ac", 5, 2, None, 20),
        ("abc", 3, 3, None, None),
    ],
)
def test_features_equal_patchcores_written_out(
    pyramid: nn.Module, layers: str, size: int, stride: int, pretrain: int | None, target: int | None, H: int, W: int
) -> None:
    images = pictures(2, H, W)
    features, grid = PatchFeatures(
        pyramid,
        list(layers),
        size,
        patchstride=stride,
        pretrain_embed_dimension=pretrain,
        target_embed_dimension=target,
    )(images)
    with torch.inference_mode():
        maps = create_feature_extractor(pyramid, list(layers))(images)
    expected = reference([maps[name] for name in layers], size, stride, pretrain, target)
    assert features.shape == expected.shape
    assert grid[0] * grid[1] == features.shape[1]
    largest = float(np.abs(expected).max())
    np.testing.assert_allclose(features.numpy(), expected, rtol=1e-5, atol=1e-6 * largest)


@pytest.mark.parametrize("limit", [1, 3 * 4 * 5 * 9 * 31 * 31])
def test_neighbourhoods_are_cut_out_in_groups_that_keep_to_the_limit(
    pyramid: nn.Module, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    images = pictures(7)
    extract = PatchFeatures(pyramid, ["a", "b"], pretrain_embed_dimension=16, target_embed_dimension=16)
    at_once, grid = extract(images)
    sizes: list[tuple[int, int]] = []  # images and bytes
    unfold = F.unfold

    def watched(x: Tensor, *args: int, **kwargs: int) -> Tensor:
        cut = unfold(x, *args, **kwargs)
        sizes.append((len(cut), cut.nbytes))
        return cut

    monkeypatch.setattr(mhpc.core.patch_features, "UNFOLD_BYTES", limit)
    monkeypatch.setattr(F, "unfold", watched)
    grouped, grouped_grid = extract(images)
    assert grouped_grid == grid
    torch.testing.assert_close(grouped, at_once, rtol=1e-6, atol=1e-6)
    assert max(B for B, _ in sizes) == (1 if limit == 1 else 3)
    assert all(B == 1 or size <= limit for B, size in sizes)
