"""Memory banks of a stream: rows in feature space, seen through a whitening; and the one that samples uniformly."""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mhpc.core.whitening import Whitening
from mhpc.linalg import nearest


class Nearest(NamedTuple):
    """Whitened rows z [N, d], their distance [N] to the nearest anchor, and its index, labels [N]."""

    z: Tensor
    distances: Tensor
    labels: Tensor


def nothing_near(x: Tensor, z: Tensor) -> Nearest:
    """For rows x [N, D], whitened z [N, d]: infinitely far from a bank that is empty."""
    far = torch.full((len(x),), torch.inf, device=x.device)
    return Nearest(z, far, torch.zeros(len(x), dtype=torch.int64, device=x.device))


class Bank:
    """Rows of features that stand for all rows seen, and their view in Z-space.

    A row stored in a moving basis goes stale; one stored in feature space does not, and since whitening is linear the
    mean of features maps to the mean of their images. So `anchors` are features and `images` their Z-space view,
    recomputed when the basis is refreshed.

    Attributes (K anchors, D features, d components): anchors [K, D], images [K, d].
    """

    STATE: tuple[str, ...] = ("anchors", "images")

    def __init__(self, bank_size: int, num_features: int, device: torch.device) -> None:
        self.bank_size = bank_size
        self.whitening: Whitening  # from the first refresh on, which precedes the first row
        self.anchors = torch.empty(0, num_features, device=device)
        self.images = torch.empty(0, 0, device=device)

    def __len__(self) -> int:
        return len(self.anchors)

    def whiten(self, x: Tensor) -> Tensor:
        """Rows x [N, D] in Z-space, [N, d]."""
        return self.whitening(x)

    def nearest(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Distance [N] of whitened rows z [N, d] to their nearest anchor, and its index [N]."""
        return nearest(z, self.images)

    def find(self, x: Tensor) -> Nearest:
        """Rows x [N, D] as the bank sees them."""
        z = self.whiten(x)
        return Nearest(z, *self.nearest(z)) if len(self) else nothing_near(x, z)

    def refresh(self, whitening: Whitening) -> None:
        """See the anchors through a new basis."""
        self.whitening = whitening
        self.images = whitening(self.anchors)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.STATE} | self.whitening.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in self.STATE:
            setattr(self, name, state[name])
        self.whitening = Whitening.of_state(state)
        self.whitening.check(self.images)


class Reservoir(Bank):
    """A uniform sample of bank_size of the rows seen, those not chosen by anything.

    Each row draws a key, the smallest keys stay: bottom-k sampling (Cohen & Kaplan, 2007), equal to Vitter's (1985)
    reservoir in distribution. Keys follow from the seed and the count of rows, so a replay draws the same.
    """

    STATE = ("anchors", "images", "keys", "rows_drawn")

    def __init__(self, bank_size: int, num_features: int, device: torch.device, seed: int) -> None:
        super().__init__(bank_size, num_features, device)
        self.seed = seed
        self.keys = torch.empty(0, dtype=torch.float64, device=device)
        self.rows_drawn = torch.tensor(0)
        self.radius = 0.0

    def learn(self, x: Tensor, z: Tensor, distances: Tensor, labels: Tensor, pictures: Tensor) -> None:
        """Offer rows x [N, D] (whitened z [N, d]); the rest is what a MemoryBank looks at."""
        if int(self.rows_drawn) <= self.bank_size < int(self.rows_drawn) + len(x):  # GPU sync
            warnings.warn(
                f"the reservoir of bank_size = {self.bank_size} rows is full: from here on a uniform sample is kept, "
                "which misses rare normal patches; GREEDY or KMEANS cover them, a larger bank_size misses fewer",
                stacklevel=2,
            )
        drawn = np.random.default_rng([self.seed, int(self.rows_drawn)]).random(len(x))  # GPU sync
        self.rows_drawn = self.rows_drawn + len(x)
        self.anchors, self.images = torch.cat([self.anchors, x]), torch.cat([self.images, z])
        self.keys = torch.cat([self.keys, torch.from_numpy(drawn).to(x.device)])
        self.reduce()

    def reduce(self) -> None:
        if len(self) > self.bank_size:
            kept = self.keys.topk(self.bank_size, largest=False).indices.sort().values
            self.anchors, self.images, self.keys = self.anchors[kept], self.images[kept], self.keys[kept]
