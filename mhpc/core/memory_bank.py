"""Memory banks of a stream: anchors in feature space, seen through a whitening."""

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mhpc.cluster import move_centers
from mhpc.core.whitening import Whitening
from mhpc.linalg import nearest
from mhpc.sampler import farthest_first

OVERFULL = 1.25  # times bank_size, where the bank is reduced
ROUNDING = 16  # machine epsilons: distances below so many norms are none
RADIUS_SAMPLE = 1024  # anchors whose nearest distances tell how a new basis scales


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


class MemoryBank(Bank):
    """Anchors of a streaming k-center, `bank_size` once reduced, up to OVERFULL times that in between.

    Attributes, beside those of a Bank:
        mass [K]: rows an anchor stands for; sums to the rows seen.
        moves [K]: rows it has moved by; its step size is 1 / moves.
        support [K]: distinct pictures with a patch nearest to it.
        radius: tau, beyond which a row becomes an anchor; 0 until the bank has been full.

    Args:
        moving: whether anchors move to the mean of the rows nearest to them (mini-batch k-means), or stay.
    """

    STATE = ("anchors", "images", "mass", "moves", "support")

    def __init__(self, bank_size: int, num_features: int, device: torch.device, moving: bool = True) -> None:
        super().__init__(bank_size, num_features, device)
        self.moving = moving
        self.mass = torch.empty(0, dtype=torch.int64, device=device)
        self.moves = torch.empty(0, dtype=torch.int64, device=device)
        self.support = torch.empty(0, dtype=torch.int64, device=device)
        self.radius = 0.0

    def refresh(self, whitening: Whitening) -> None:
        """See the anchors through a new basis, and scale the radius as the distances between them scaled."""
        old = self._spacing() if self.radius > 0 else None
        super().refresh(whitening)
        if old is not None:
            new = self._spacing()
            # A lone anchor has no other; images of equal anchors may differ by what their products round.
            apart = torch.minimum(old, new) > ROUNDING * torch.finfo(new.dtype).eps * float(
                self.images.norm(dim=1).max()
            )
            if bool(apart.any()):  # GPU sync
                self.radius *= float((new[apart] / old[apart]).median())  # GPU sync

    def _spacing(self) -> Tensor:
        """Distance of a fixed sample of anchors to the nearest other one; 0 for a lone anchor."""
        K = len(self)
        sample = torch.arange(0, K, max(1, K // RADIUS_SAMPLE), device=self.images.device)
        z = self.images[sample]
        products = torch.addmm(self.images.square().sum(1) / 2, z, self.images.T, alpha=-1)  # as in linalg's nearest
        products[torch.arange(len(sample)), sample] = torch.inf
        apart: Tensor = (z - self.images[products.argmin(1)]).norm(dim=1)
        return apart

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"radius": torch.tensor(self.radius, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.radius = float(state["radius"])

    def learn(self, x: Tensor, z: Tensor, distances: Tensor, labels: Tensor, pictures: Tensor) -> None:
        """Learn rows x [N, D] (whitened z [N, d]) whose nearest anchors are known.

        1. Rows beyond the radius become anchors, farthest first, until none is left beyond it.
        2. All others count for the anchor nearest to them and, where anchors move, move it: mini-batch k-means with
           k-center seeding.
        3. An overfull bank is reduced to bank_size.

        Args:
            pictures: [N] index of the picture that each row is from, for `support`.
        """
        fresh = farthest_first(z, len(z), distances, self.radius).indices
        others = torch.ones(len(z), dtype=torch.bool, device=z.device)
        others[fresh] = False
        distances, labels = distances[others], labels[others]
        if len(fresh):
            near, index = nearest(z[others], z[fresh])
            labels = torch.where(near < distances, index + len(self), labels)
            self._append(x[fresh], z[fresh])
        self._move(x[others], z[others], labels)
        all_labels = torch.empty(len(z), dtype=torch.int64, device=z.device)
        all_labels[others] = labels
        all_labels[fresh] = torch.arange(len(self) - len(fresh), len(self), device=z.device)
        self._count_support(all_labels, pictures)
        if len(self) > OVERFULL * self.bank_size:
            self.reduce()

    def _append(self, x: Tensor, z: Tensor) -> None:
        one = torch.ones(len(x), dtype=torch.int64, device=x.device)
        self.anchors = torch.cat([self.anchors, x])
        self.images = torch.cat([self.images, z])
        self.mass = torch.cat([self.mass, one])
        self.moves = torch.cat([self.moves, one])
        self.support = torch.cat([self.support, torch.zeros_like(one)])

    def _move(self, x: Tensor, z: Tensor, labels: Tensor) -> None:
        if not len(x):
            return
        n = torch.bincount(labels, minlength=len(self))
        self.mass = self.mass + n
        if not self.moving:
            return
        self.moves = self.moves + n
        self.anchors = move_centers(self.anchors, self.moves, x, labels)
        self.images = move_centers(self.images, self.moves, z, labels)

    def _count_support(self, labels: Tensor, pictures: Tensor) -> None:
        """An anchor and a picture count once, however many patches of the one are nearest to the other."""
        pairs = torch.stack([labels, pictures]).unique(dim=1)
        self.support = self.support + torch.bincount(pairs[0], minlength=len(self))

    def reduce(self) -> None:
        """Keep bank_size anchors by exact greedy selection; the radius becomes what they cover.

        A dropped anchor's mass goes to the kept one nearest to it, its support is merged by maximum.
        """
        if len(self) <= self.bank_size:
            return
        kept, radius = farthest_first(self.images, self.bank_size)
        gone = torch.ones(len(self), dtype=torch.bool, device=kept.device)
        gone[kept] = False
        heirs = nearest(self.images[gone], self.images[kept])[1]
        self.mass = self.mass[kept].index_add(0, heirs, self.mass[gone])
        self.support = self.support[kept].scatter_reduce(0, heirs, self.support[gone], "amax")
        self.moves = self.moves[kept]
        self.anchors, self.images = self.anchors[kept], self.images[kept]
        self.radius = radius
