"""Patch features as the maps of their layers, not joined yet: what is linear in them costs less on small maps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PatchMaps:
    """Pooled maps of the layers, each [B, C, ., .] float32, of the same B images.

    Joined, smaller maps are brought bilinearly to the largest one's grid (h, w), and channels are concatenated:
    features [B, P, D], with P = h * w, and D the sum of the channels.
    """

    maps: tuple[Tensor, ...]

    @classmethod
    def of_features(cls, features: Tensor, grid: tuple[int, int]) -> "PatchMaps":
        """Of features [B, P, D] that are joined already: one map."""
        B, _, D = features.shape
        return cls((features.reshape(B, *grid, D).permute(0, 3, 1, 2),))

    @classmethod
    def cat(cls, parts: Sequence["PatchMaps"]) -> "PatchMaps":
        """Of the images of all parts."""
        return cls(tuple(torch.cat(of_layer) for of_layer in zip(*(part.maps for part in parts), strict=True)))

    @property
    def grid(self) -> tuple[int, int]:
        h, w = max((m.shape[2:] for m in self.maps), key=lambda size: size[0] * size[1])
        return h, w

    @property
    def device(self) -> torch.device:
        return self.maps[0].device

    def __len__(self) -> int:
        return len(self.maps[0])

    def images(self, start: int, stop: int) -> "PatchMaps":
        """Of the images from start to stop."""
        return PatchMaps(tuple(m[start:stop] for m in self.maps))

    def joined(self) -> Tensor:
        """Features [B, P, D]."""
        h, w = self.grid
        features = torch.cat([self._aligned(m) for m in self.maps], 1) if len(self.maps) > 1 else self.maps[0]
        return features.permute(0, 2, 3, 1).reshape(len(self), h * w, -1)  # [B, h * w, sum of the channels]

    def projected(self, mean: Tensor, projection: Tensor) -> Tensor:
        """z = W (x - m) of the joined features x, [B, P, d], for m = mean [D] and W = projection [d, D].

        With the layers l, their means m_l and blocks W_l, and the bilinear map U, which keeps what is the same
        everywhere: W (x - m) = sum_l U (W_l (x_l - m_l)). So the products take each map as small as it is, and no row
        [D] is ever laid out.

        Raises:
            ValueError: mean and projection are of another D.
        """
        channels = [m.shape[1] for m in self.maps]
        if sum(channels) != len(mean):
            raise ValueError(f"maps have {sum(channels)} channels in all, expected {len(mean)}")
        blocks = zip(self.maps, mean.split(channels), projection.split(channels, 1), strict=True)
        first, *rest = (self._aligned(_projected(*block)) for block in blocks)
        z: Tensor = sum(rest, first)
        return z.permute(0, 2, 3, 1).flatten(1, 2)  # [B, h * w, d]

    def _aligned(self, x: Tensor) -> Tensor:
        """A map [B, C, ., .] brought to the grid."""
        if x.shape[2:] == self.grid:
            return x
        return F.interpolate(x, size=self.grid, mode="bilinear", align_corners=False)


def _projected(x: Tensor, mean: Tensor, W: Tensor) -> Tensor:
    """W (x - mean) of each cell of a map [B, C, h, w], for mean [C] and W [d, C]: [B, d, h, w], channels last."""
    cells = x.permute(0, 2, 3, 1)  # [B, h, w, C]
    if x.device.type != "cpu":
        return ((cells - mean) @ W.T).permute(0, 3, 1, 2)
    # An image at a time: products are the same in every batch, and what is subtracted stays in the cache.
    return torch.stack([(image - mean) @ W.T for image in cells]).permute(0, 3, 1, 2)
