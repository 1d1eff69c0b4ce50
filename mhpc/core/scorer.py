"""What answers: a whitening and a bank that stand still."""

from collections.abc import Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from mhpc.core.neighbours import Neighbours, groups_pay
from mhpc.core.patch_maps import PatchMaps
from mhpc.core.scoring import image_scores, patch_scores
from mhpc.core.whitening import Whitening, check_features
from mhpc.sampler import farthest_first


class Search:
    """How distances to a memory [K, d + 1] are found; what is built for it is built when first asked for."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory

    @cached_property
    def neighbours(self) -> Neighbours:
        return Neighbours(self.memory)


class Scorer:
    """Scores images by their patches' distance to a bank.

    An anchor in doubt is lifted out of the space of its patches: `memory` [K, d + 1] holds the anchors with the root of
    their lift as one coordinate more, which is 0 for every patch. So all that searches the bank sees the distance
    sqrt(||z - a||^2 + lift) without knowing of doubt.

    On a CPU image scores are found by bounds and refinement (`Neighbours`), elsewhere, and with a small bank, by brute
    force; both are exact. What the search has built is shared by shallow copies.
    """

    def __init__(self, whitening: Whitening, memory: Tensor, top_k: int) -> None:
        self.whitening = whitening
        self._search = Search(memory)
        self.top_k = top_k

    @property
    def memory(self) -> Tensor:
        return self._search.memory

    @classmethod
    def of_bank(cls, whitening: Whitening, images: Tensor, lift: Tensor, top_k: int) -> "Scorer":
        """From anchors images [K, d] and the squared distance lift [K] that doubt adds to each."""
        return cls(whitening, torch.cat([images, lift.sqrt()[:, None]], 1), top_k)

    def whiten(self, features: Tensor) -> Tensor:
        """Features [B, P, D] as the bank sees them, [B, P, d + 1].

        Raises:
            ValueError: not [B, P, D], or values that are not finite.
        """
        x = check_features(features, len(self.whitening.mean)).detach().to(self.memory.device, torch.float32)
        if x.device.type == "cpu":
            # An image at a time: products are the same in every batch, and what is subtracted stays in the cache.
            return F.pad(torch.stack([self.whitening(image) for image in x]), (0, 1))
        return F.pad(self.whitening(x), (0, 1))

    def whiten_maps(self, maps: PatchMaps, finite: bool = False) -> Tensor:
        """What `whiten` gives of the joined maps, up to rounding, [B, P, d + 1].

        Args:
            finite: whether they are known to be finite; finding out waits for a GPU.

        Raises:
            ValueError: the maps are of another D, or values are not finite.
        """
        mean, projection = self.whitening.mean, self.whitening.projection
        z = maps.joined() if projection is None else maps.projected(mean, projection)
        if not finite:
            check_features(z)
        return F.pad(z, (0, 1))

    def score_patches(self, features: Tensor) -> Tensor:
        """Distance [B, P] of each patch of features [B, P, D] to the bank, in standard deviations (Mahalanobis)."""
        return patch_scores(self.whiten(features), self.memory)

    def score(self, features: Tensor) -> Tensor:
        """Image scores [B] of patch features [B, P, D]."""
        return self.score_maps(self.whiten(features))[0]

    def score_maps(self, z: Tensor, exact_above: float | None = None) -> tuple[Tensor, Tensor]:
        """Image scores [B] and patch scores [B, P] of whitened patches z [B, P, d + 1].

        Image scores are exact; patch scores wherever they are above `exact_above`, and those that made the image's
        score. The others are upper bounds, within a tenth of the distance in the mean.
        """
        if groups_pay(self.memory, z.shape[1]):
            neighbours = self._search.neighbours
            patches = neighbours.refine(z, neighbours.bounds(z), self.top_k, exact_above).distances
        else:
            patches = patch_scores(z, self.memory)
        return image_scores(patches, self.top_k), patches

    def pin(self, features: Tensor, radius: float) -> int:
        """Add patches of features [B, P, D] until all of them are within the radius; returns how many it took."""
        z = self.whiten(features).flatten(0, 1)
        fresh = farthest_first(z, len(z), patch_scores(z[None], self.memory)[0], radius).indices
        self._search = Search(torch.cat([self.memory, z[fresh]]))
        return len(fresh)

    def state_dict(self) -> dict[str, Tensor]:
        """All of it, copied to the CPU; `of_state` takes it back."""
        state = {"memory": self.memory} | self.whitening.state_dict()
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], top_k: int, device: torch.device | str = "cpu") -> "Scorer":
        """From a `state_dict`.

        Raises:
            ValueError: a tensor is missing.
        """
        try:
            whitening = Whitening.of_state(state).to(torch.device(device))
            return cls(whitening, state["memory"].to(device), top_k)
        except KeyError as error:
            raise ValueError(f"the state has no tensor {error}; it holds {', '.join(sorted(state))}") from None
