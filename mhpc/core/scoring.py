"""Patches and memory bank to patch scores, those to image scores and anomaly maps."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mhpc.linalg import k_nearest, nearest

SIGMA = 4.0  # pixels; PatchCore section 3.3
TRUNCATE = 4.0  # standard deviations at which the kernel is cut, as in SciPy


def image_scores(patch_scores: Tensor, top_k: int = 1) -> Tensor:
    """Score [B] of each image: the mean of its top_k largest patch scores [B, P]; top_k 1 is the maximum."""
    _, P = patch_scores.shape
    return patch_scores.topk(min(top_k, P), dim=1).values.mean(1)


def patch_scores(z: Tensor, bank: Tensor, num_nn: int = 1) -> Tensor:
    """Score [B, P] of patches z [B, P, d]: mean distance to their num_nn nearest rows of the bank [K, d].

    Raises:
        ValueError: the bank has fewer rows.
    """
    B, P, d = z.shape
    rows = z.reshape(B * P, d)
    distances = nearest(rows, bank)[0] if num_nn == 1 else k_nearest(rows, bank, num_nn)[0].mean(1)
    return distances.reshape(B, P)


def reweighted_scores(z: Tensor, scores: Tensor, bank: Tensor, num_nn: int) -> Tensor:
    """Image scores [B] of patches z [B, P, d] with patch scores [B, P]; Roth et al. (2022), eq. 7.

    With q the patch of the largest score s and m its nearest row of the bank, the score is w s, where
    w = 1 - exp |q - m| / sum over the num_nn rows n nearest to m, itself among them, of exp |q - n|: a patch far from
    one lone row of the bank is less sure to be anomalous than one far from many.

    Raises:
        ValueError: the bank has fewer rows.
    """
    images = torch.arange(len(z), device=z.device)
    q = z[images, scores.argmax(1)]  # [B, d]
    distance, m = nearest(q, bank)
    neighbours = bank[k_nearest(bank[m], bank, num_nn)[1]]  # [B, num_nn, d]
    around = (neighbours - q[:, None]).norm(dim=2).logsumexp(1)
    # A duplicate of m may stand for it among the neighbours, at the same distance; rounding must not make w negative.
    weight: Tensor = (1 - (distance - around).exp()).clamp_min(0)
    return weight * scores.amax(1)


def anomaly_maps(patch_scores: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Patch scores [B, h * w] to maps [B, H, W]: bilinear upsampling, then a Gaussian (Roth et al., 2022, 3.3)."""
    B, _ = patch_scores.shape
    maps = patch_scores.reshape(B, 1, *grid)
    maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return _smoothed(maps)[:, 0]


def _smoothed(maps: Tensor) -> Tensor:
    """Separable Gaussian of SIGMA over maps [B, 1, H, W], reflected at the borders as by `scipy.ndimage`."""
    for dim in (2, 3):
        reach = min(int(TRUNCATE * SIGMA + 0.5), maps.shape[dim])
        offsets = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
        kernel = torch.softmax(-offsets.square() / (2 * SIGMA**2), 0)
        weight = kernel.reshape(1, 1, -1, 1) if dim == 2 else kernel.reshape(1, 1, 1, -1)
        first, last = maps.narrow(dim, 0, reach), maps.narrow(dim, maps.shape[dim] - reach, reach)
        maps = F.conv2d(torch.cat([first.flip(dim), maps, last.flip(dim)], dim), weight)
    return maps
