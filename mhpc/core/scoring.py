"""Patch scores to image scores and anomaly maps."""

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA = 4.0  # pixels; PatchCore section 3.3
TRUNCATE = 4.0  # standard deviations at which the kernel is cut, as in SciPy


def image_scores(patch_scores: Tensor, top_k: int = 1) -> Tensor:
    """Score [B] of each image: the mean of its top_k largest patch scores [B, P]; top_k 1 is the maximum."""
    _, P = patch_scores.shape
    return patch_scores.topk(min(top_k, P), dim=1).values.mean(1)


def anomaly_maps(patch_scores: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Patch scores [B, h * w] to maps [B, H, W]: bilinear upsampling, then a Gaussian (Roth et al., 2022, 3.3)."""
    B, _ = patch_scores.shape
    maps = patch_scores.reshape(B, 1, *grid)
    maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return _smoothed(maps)[:, 0]


def _smoothed(maps: Tensor) -> Tensor:
    """Separable Gaussian of SIGMA over maps [B, 1, H, W], mirrored at the borders as far as the map reaches."""
    for dim in (2, 3):
        reach = min(int(TRUNCATE * SIGMA + 0.5), maps.shape[dim] - 1)
        offsets = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
        kernel = torch.softmax(-offsets.square() / (2 * SIGMA**2), 0)
        pad = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
        weight = kernel.reshape(1, 1, -1, 1) if dim == 2 else kernel.reshape(1, 1, 1, -1)
        maps = F.conv2d(F.pad(maps, pad, mode="reflect"), weight)
    return maps
