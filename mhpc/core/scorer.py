"""What answers: a whitening and a bank that stand still."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mhpc.core.scoring import image_scores, patch_scores
from mhpc.core.whitening import Whitening, check_features
from mhpc.sampler import farthest_first


class Scorer:
    """Scores images by their patches' distance to a bank.

    An anchor in doubt is lifted out of the space of its patches: `memory` [K, d + 1] holds the anchors with the root of
    their lift as one coordinate more, which is 0 for every patch. So all that searches the bank sees the distance
    sqrt(||z - a||^2 + lift) without knowing of doubt.
    """

    def __init__(self, whitening: Whitening, memory: Tensor, top_k: int) -> None:
        self.whitening = whitening
        self.memory = memory
        self.top_k = top_k

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
        return F.pad(self.whitening(x), (0, 1))

    def score_patches(self, features: Tensor) -> Tensor:
        """Distance [B, P] of each patch of features [B, P, D] to the bank, in standard deviations (Mahalanobis)."""
        return patch_scores(self.whiten(features), self.memory)

    def score(self, features: Tensor) -> Tensor:
        """Image scores [B] of patch features [B, P, D]."""
        return image_scores(self.score_patches(features), self.top_k)

    def pin(self, features: Tensor, radius: float) -> int:
        """Add patches of features [B, P, D] until all of them are within the radius; returns how many it took."""
        z = self.whiten(features).flatten(0, 1)
        fresh = farthest_first(z, len(z), patch_scores(z[None], self.memory)[0], radius).indices
        self.memory = torch.cat([self.memory, z[fresh]])
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
