"""Memory banks of a stream: rows in feature space, seen through a whitening; and the one that samples uniformly."""

import warnings
from collections.abc import Mapping
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mhpc.core.neighbours import Neighbours, groups_pay
from mhpc.core.scorer import Scorer
from mhpc.core.whitening import Whitening
from mhpc.linalg import nearest

ROUNDS = 2  # of k-means for groups that serve one step
PROBES = 2  # groups searched for each row


class Nearest(NamedTuple):
    """Whitened rows z [N, d], their distance [N] to the nearest anchor, and its index, labels [N].

    With `neighbours` a distance may be an upper bound, and the anchor the nearest of a few; `exact` [N] tells.
    """

    z: Tensor
    distances: Tensor
    labels: Tensor
    exact: Tensor | None = None
    neighbours: Neighbours | None = None

    def of(self, rows: Tensor) -> "Nearest":
        """Of some of the rows, as a mask [N] says."""
        exact = None if self.exact is None else self.exact[rows]
        return Nearest(self.z[rows], self.distances[rows], self.labels[rows], exact, self.neighbours)

    def exactly(self, index: Tensor) -> Tensor:
        """Distances [m] of the rows at index [m]; these and their labels are brought up to date in place."""
        if self.exact is not None and self.neighbours is not None:
            stale = index[~self.exact[index]]
            if len(stale):
                self.distances[stale], self.labels[stale] = self.neighbours.nearest(self.z[stale])
                self.exact[stale] = True
        return self.distances[index]


def nothing_near(x: Tensor, z: Tensor) -> Nearest:
    """For rows x [N, D], whitened z [N, d]: infinitely far from a bank that is empty."""
    far = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    return Nearest(z, far, torch.zeros(len(x), dtype=torch.int64, device=x.device))


class Bank:
    """Rows of features that stand for all rows seen, and their view in Z-space.

    A row stored in a moving basis goes stale; one stored in feature space does not, and since whitening is linear the
    mean of features maps to the mean of their images. So `anchors` are features and `images` their Z-space view,
    recomputed when the basis is refreshed.

    Attributes (K anchors, D features, d components): anchors [K, D], images [K, d].
    """

    STATE: tuple[str, ...] = ("anchors", "images")
    SCORES_BY: tuple[str, ...] = ("whitening", "images")

    def __init__(self, bank_size: int, num_features: int, device: torch.device) -> None:
        self.bank_size = bank_size
        self.whitening: Whitening  # from the first refresh on, which precedes the first row
        self.anchors = torch.empty(0, num_features, dtype=torch.float32, device=device)
        self.images = torch.empty(0, 0, dtype=torch.float32, device=device)
        self._scorer: tuple[Scorer, list[object]] | None = None

    def __len__(self) -> int:
        return len(self.anchors)

    def whiten(self, x: Tensor) -> Tensor:
        """Rows x [N, D] in Z-space, [N, d]."""
        return self.whitening(x)

    def nearest(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Distance [N] of whitened rows z [N, d] to their nearest anchor, and its index [N]."""
        return nearest(z, self.images)

    def find(self, x: Tensor, P: int, top_k: int = 0) -> Nearest:
        """Rows x [N, D] of images with P patches each, as the bank sees them.

        Exact are at least the top_k largest distances of each image. Groups are made anew from the rows of the bank:
        a learner that was restored finds what one that went on does.
        """
        # On a CPU an image at a time: its products are the same in every batch, what is subtracted stays in the cache.
        z = torch.cat([self.whiten(rows) for rows in x.split(P if x.device.type == "cpu" else len(x))])
        if not len(self):
            return nothing_near(x, z)
        if not (self.bounds_suffice and groups_pay(self.images, P)):
            return Nearest(z, *self.nearest(z))
        neighbours, patches = Neighbours(self.images, ROUNDS), z.reshape(-1, P, z.shape[1])
        found = neighbours.bounds(patches, PROBES)
        if top_k:
            found = neighbours.refine(patches, found, top_k, self.exact_above)
        distances, labels, exact = (t.flatten() for t in found)
        return Nearest(z, distances, labels, exact, neighbours)

    @property
    def bounds_suffice(self) -> bool:
        """Whether most rows need no exact distance."""
        return True

    @property
    def exact_above(self) -> float | None:
        """The distance above which rows that are found need an exact one, beside the largest of each image."""
        return None

    @property
    def lifts(self) -> Tensor:
        """Squared distance [K] that doubt adds to each row in scoring."""
        return torch.zeros(len(self), dtype=torch.float32, device=self.images.device)

    @property
    def free_number(self) -> int:
        """For pictures to come: above the numbers of all that it tells apart."""
        return 0

    def scorer(self, top_k: int) -> Scorer:
        """What scores by the bank as it is; it shares the bank's tensors, which are replaced and never changed.

        As long as they are the same, scorers share what one of them has built for its search.
        """
        made_of = [getattr(self, name) for name in self.SCORES_BY]
        if self._scorer is None or any(new is not old for new, old in zip(made_of, self._scorer[1], strict=True)):
            self._scorer = Scorer.of_bank(self.whitening, self.images, self.lifts, top_k), made_of
        scorer = copy(self._scorer[0])
        scorer.top_k = top_k
        return scorer

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
    reservoir in distribution. Keys are exponential, by a rate that is the row's weight (Efraimidis & Spirakis, 2006,
    "Weighted random sampling with a reservoir"): 1, or what `forget` has left of it. They follow from the seed and the
    count of rows, so a replay draws the same.
    """

    STATE = ("anchors", "images", "keys", "rows_drawn")

    def __init__(self, bank_size: int, num_features: int, device: torch.device, seed: int) -> None:
        super().__init__(bank_size, num_features, device)
        self.seed = seed
        self.keys = torch.empty(0, dtype=torch.float64, device=device)
        self.rows_drawn = torch.tensor(0)
        self.radius = 0.0

    def learn(self, x: Tensor, known: Nearest, pictures: Tensor) -> None:
        """Offer rows x [N, D] as they were found; the rest is what a MemoryBank looks at."""
        if int(self.rows_drawn) <= self.bank_size < int(self.rows_drawn) + len(x):  # GPU sync
            warnings.warn(
                f"the reservoir of bank_size = {self.bank_size} rows is full: from here on a uniform sample is kept, "
                "which misses rare normal patches; GREEDY or KMEANS cover them, a larger bank_size misses fewer",
                stacklevel=2,
            )
        drawn = np.random.default_rng([self.seed, int(self.rows_drawn)]).exponential(size=len(x))  # GPU sync
        self.rows_drawn = self.rows_drawn + len(x)
        self.anchors, self.images = torch.cat([self.anchors, x]), torch.cat([self.images, known.z])
        self.keys = torch.cat([self.keys, torch.from_numpy(drawn).to(x.device)])
        self.reduce()

    def settle(self) -> Tensor:
        """As a MemoryBank does: a sample is never larger than it may be, and nothing in it is in doubt."""
        return torch.empty(0, dtype=torch.int64)

    def forget(self, share: float) -> None:
        """Keep a share of each row's weight."""
        self.keys = self.keys / share

    def reduce(self) -> None:
        if len(self) > self.bank_size:
            kept = self.keys.topk(self.bank_size, largest=False).indices.sort().values
            self.anchors, self.images, self.keys = self.anchors[kept], self.images[kept], self.keys[kept]
