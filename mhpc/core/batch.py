"""Learning from all images at once: PatchCore as published, and scikit-learn's PCA and k-means in its place."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from mhpc.core.choices import PatchCoreAggregation
from mhpc.core.whitening import Whitening, ZSpace, check_features
from mhpc.linalg import all_or_nothing, blocks
from mhpc.mahalanobis import OnlineCovariance
from mhpc.sampler import make_sampler, share

PROJECTED = 128  # dimensions, PatchCore's own choice
PROJECT_FROM = 6 * PROJECTED


def projection_dimension(D: int) -> int | None:
    """To which rows of D features are projected before a coreset is selected; None: as they are.

    The projection of narrow rows would be a large share of them in memory, and saves little.
    """
    return PROJECTED if D >= PROJECT_FROM else None


class BatchLearner:
    """The memory bank of VANILLA: from the patch features of all images, which are held in memory once.

    1. Collect the features of all images on the CPU, [N, D].
    2. Find the space, by centred rows: scikit-learn's PCA, or the covariance of all of them.
    3. Take the rows there; whitened rows of full width take the place of the features, narrower ones replace them.
    4. Aggregate: a coreset, scikit-learn's MiniBatchKMeans on all rows at once, or all rows.

    Args:
        percentage: share of the rows that the coreset keeps, or of centres among them, in (0, 1).
        sampler: of the coreset, by its name in `mhpc.sampler.SAMPLERS`.
        seed: of the sampler or of k-means.
    """

    def __init__(
        self,
        percentage: float = 0.1,
        sampler: str = "greedy_coreset",
        device: torch.device | str = "cpu",
        space: ZSpace | None = None,
        aggregation: PatchCoreAggregation = PatchCoreAggregation.GREEDY,
        seed: int = 0,
    ) -> None:
        self.percentage = percentage
        self.sampler = sampler
        self.device = torch.device(device)
        self.space = space or ZSpace()
        self.aggregation = aggregation
        self.seed = seed
        self.images_learned_ = 0
        self.whitening_: Whitening | None = None
        self.bank_: Tensor | None = None

    def fit(self, batches: Iterable[Tensor]) -> "BatchLearner":
        """Learn from batches of patch features [B, P, D]; what was learned before is forgotten.

        Raises:
            ValueError: no batch, another shape, values that are not finite, or a covariance that is singular.
        """
        rows, images = collect(batches)
        whitening = self._find_whitening(rows)
        z = _projected(rows, whitening.projection)
        del rows  # where z is narrower, the features end here
        self.bank_ = self._aggregate(z).to(self.device)
        self.whitening_, self.images_learned_ = whitening.to(self.device), images
        return self

    def _find_whitening(self, rows: NDArray[np.float32]) -> Whitening:
        """Of rows [N, D], which it centres in place by the mean that it finds."""
        _, D = rows.shape
        if not self.space.needs_moments:
            return self.space.identity(D)
        if self.space.reduces:
            return self.space.of_rows(rows)
        covariance = OnlineCovariance(D)
        for block in blocks(torch.from_numpy(rows)):
            covariance.update(block)
        whitening = self.space.of_moments(covariance.moments_)
        rows -= whitening.mean.numpy()
        return whitening

    def _aggregate(self, z: Tensor) -> Tensor:
        if self.aggregation is PatchCoreAggregation.GREEDY:
            dimension = projection_dimension(z.shape[1])
            return make_sampler(self.sampler, self.percentage, self.device, self.seed, dimension).run(z)
        if self.aggregation is PatchCoreAggregation.KMEANS:
            kmeans = MiniBatchKMeans(share(len(z), self.percentage), random_state=self.seed).fit(z.numpy())
            return torch.from_numpy(kmeans.cluster_centers_)
        return z

    @property
    def memory_(self) -> Tensor:
        """The bank in Z-space [K, d]: what patches are compared with."""
        return self._fitted()[0]

    def whiten(self, features: Tensor) -> Tensor:
        """Features [B, P, D] in Z-space, [B, P, d]."""
        _, whitening = self._fitted()
        x = check_features(features, len(whitening.mean)).to(self.device, torch.float32)
        return whitening(x)

    def _fitted(self) -> tuple[Tensor, Whitening]:
        if self.bank_ is None or self.whitening_ is None:
            raise ValueError("nothing was learned yet: call fit with at least one image first")
        return self.bank_, self.whitening_

    def state_dict(self) -> dict[str, Tensor]:
        """All that was learned, as tensors on the CPU; `load_state_dict` takes it back."""
        state = {"images_learned": torch.tensor(self.images_learned_)}
        if self.bank_ is not None and self.whitening_ is not None:
            state |= {"bank": self.bank_} | self.whitening_.state_dict()
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Tensor]) -> "BatchLearner":
        """Take over another learner's `state_dict`.

        Raises:
            ValueError: a tensor is missing.
        """
        try:
            self.bank_ = self.whitening_ = None
            self.images_learned_ = int(state["images_learned"])
            if self.images_learned_:
                own = {name: value.to(self.device, copy=True) for name, value in state.items()}
                self.bank_, self.whitening_ = own["bank"], Whitening.of_state(own)
                self.whitening_.check(self.bank_)
        except KeyError as error:
            raise ValueError(f"the state has no tensor {error}; it holds {', '.join(sorted(state))}") from None
        return self


def collect(batches: Iterable[Tensor]) -> tuple[NDArray[np.float32], int]:
    """All rows [N, D] of batches [B, P, D] and the count of images, without ever holding them twice.

    NumPy's resize goes through realloc, which for large arrays moves pages and not bytes; a list that is concatenated
    in the end needs twice the memory.
    """
    rows, images, D = np.empty((0, 0), np.float32), 0, None
    for features in batches:
        B, P, D = check_features(features, D).shape
        n = len(rows)
        rows.resize((n + B * P, D), refcheck=False)  # no other array looks at it
        rows[n:] = features.detach().reshape(B * P, D).float().cpu().numpy()  # GPU sync
        images += B
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} patches in {images} images, expected at least 2: is the loader empty?")
    return rows, images


def _projected(rows: NDArray[np.float32], projection: Tensor | None) -> Tensor:
    """Centred rows [N, d] in Z-space, block by block; in place of the features where their width stays."""
    x = torch.from_numpy(rows)
    if projection is None:
        return x
    d, D = projection.shape
    z = x if d == D else torch.empty(len(x), d, dtype=x.dtype)
    for into, block in zip(blocks(z), blocks(x), strict=True):
        into.copy_(block @ projection.T)
    return z
