"""Mini-batch k-means (Sculley, 2010), seeded by farthest-first selection."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import RandomState
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.cluster import kmeans_plusplus
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state
from torch import Tensor

from mhpc.linalg import Array, all_or_nothing, as_rows, blocks, check_rows, check_state, like, nearest_index
from mhpc.sampler import weighted_farthest

SEEDING_SAMPLE = 3  # times the larger of batch_size and n_clusters: rows that k-means++ looks at, as in scikit-learn


def move_centers_(centers: Tensor, counts: Tensor, x: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
    """Move, in place, centers [K, D] by rows of x [N, D] (labels [N]), with step size 1 / count.

    counts [K] are those *after* the rows were added: c' = c + (sum of its rows - n c) / count, so a centre is the mean
    of all rows that it ever took; one whose count is infinite stays. Rows and centres may be any linear image of the
    features. With weights [N] >= 0 a row counts as often as it weighs, in the sum, in n and in counts.
    """
    by_label, order = labels.sort(stable=True)
    touched, slots, n = by_label.unique_consecutive(return_inverse=True, return_counts=True)
    weighed = torch.ones_like(order, dtype=torch.float64) if weights is None else weights[order].double()
    taken = torch.zeros_like(n, dtype=torch.float64).index_add_(0, slots, weighed)
    step = torch.where(taken > 0, 1 / counts[touched].double(), 0)  # a centre whose rows all weigh nothing stays
    shares = (step[slots] * weighed).to(x.dtype)
    # A weighted sum of each label's rows, in one pass over x and in order.
    sums = F.embedding_bag(order, x, n.cumsum(0) - n, mode="sum", per_sample_weights=shares)
    old, left = centers.index_select(0, touched), (step * taken).to(x.dtype)
    centers.index_copy_(0, touched, sums.addcmul_(old, left[:, None], value=-1).add_(old))


class MiniBatchKMeans(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]  # scikit-learn publishes no types
    TransformerMixin,  # type: ignore[misc]  # the same
    ClusterMixin,  # type: ignore[misc]  # the same
    BaseEstimator,  # type: ignore[misc]  # the same
):
    """k-means on a stream of batches, with scikit-learn's names.

    `partial_fit` takes the next batch of a stream, `fit` draws batches from rows that are all at hand. Rows are
    tensors, or arrays as scikit-learn takes them; what methods return, and `labels_`, is of the same kind. A centre
    that takes no row stays where it is.

    Args:
        n_clusters: K; where it is set anew, from the next `fit` on, as in scikit-learn.
        init: where centres begin, from the first batch (in `fit`, from all rows): "k-center" (farthest-first),
            "k-means++" (scikit-learn's, on a sample), "random" (rows drawn at random), or centres [K, D].
        random_state: a seed or RandomState for "k-means++", "random" and the order of rows in `fit`.
        batch_size: rows per batch in `fit`.
        max_iter: epochs of `fit`, at most.
        tol: `fit` stops after an epoch whose inertia is not smaller than the last one's by this share.

    Attributes: `cluster_centers_` [K, D] of the first rows' type and device, `counts_` [K] rows that each centre has
    taken, or the sum of their weights, in float64; `labels_` [N] and `inertia_` (sum of squared distances, weighted)
    of the last batch before it moved the centres, or after `fit` of all rows; `n_iter_` epochs of `fit`,
    `n_features_in_`.
    """

    cluster_centers_: Tensor  # from the first rows on
    counts_: Tensor
    labels_: Any  # of the kind of the rows

    def __init__(
        self,
        n_clusters: int = 8,
        init: str | Array = "k-center",
        random_state: int | RandomState | None = 0,
        batch_size: int = 1024,
        max_iter: int = 100,
        tol: float = 1e-3,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.random_state = random_state
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol

    @all_or_nothing
    def fit(self, X: Array, y: object = None, sample_weight: Array | None = None) -> "MiniBatchKMeans":
        """Start anew, with batches of the rows X [N, D] in random order, epoch after epoch.

        Args:
            sample_weight: [N] how often each row counts.

        Raises:
            ValueError: a wrong shape, values not finite or too large to square, fewer (distinct) rows than clusters.
        """
        x, weights = self._checked(X, sample_weight, first=True)
        N, _ = x.shape
        if self.batch_size < 1 or self.max_iter < 1:
            raise ValueError(f"batch_size is {self.batch_size}, max_iter {self.max_iter}, expected 1 or more of both")
        self._enough(N)
        draw = check_random_state(self.random_state)
        self._seed(x, weights, draw)
        last = torch.inf
        for epoch in range(self.max_iter):
            order = torch.from_numpy(draw.permutation(N)).to(x.device)
            inertias = [
                self._step(x[rows], None if weights is None else weights[rows])[1]
                for rows in order.split(self.batch_size)
            ]
            inertia = _finite(torch.stack(inertias).sum(), x)
            self.n_iter_ = epoch + 1
            if inertia >= last * (1 - self.tol):
                break
            last = inertia
        labels = self._labels(x)
        self.labels_, self.inertia_ = like(X, labels), _finite(self._inertia(x, labels, weights), x)
        return self

    @all_or_nothing
    def partial_fit(self, X: Array, y: object = None, sample_weight: Array | None = None) -> "MiniBatchKMeans":
        """Assign the rows X [N, D] to their nearest centres and move those.

        Args:
            sample_weight: [N] how often each row counts.

        Raises:
            ValueError: as by `fit`; fewer rows than clusters in the first batch alone.
        """
        first = not self._begun
        x, weights = self._checked(X, sample_weight, first)
        if first:
            self._seed(x, weights, check_random_state(self.random_state))
        labels, inertia = self._step(x, weights)
        self.labels_, self.inertia_ = like(X, labels), _finite(inertia, x)
        return self

    def predict(self, X: Array) -> Any:
        """Index [N] of each row's nearest centre."""
        return like(X, self._labels(self._rows(X)))

    def transform(self, X: Array) -> Any:
        """Distances [N, K] to every centre, by difference."""
        x = self._rows(X)
        return like(X, torch.cdist(x, self.cluster_centers_, compute_mode="donot_use_mm_for_euclid_dist"))

    def score(self, X: Array, y: object = None, sample_weight: Array | None = None) -> float:
        """Minus the sum of squared distances to the nearest centres."""
        x = self._rows(X)
        weights = None if sample_weight is None else _weights(sample_weight, x)
        return -float(self._inertia(x, self._labels(x), weights))  # GPU sync

    def to(self, device: torch.device | str) -> "MiniBatchKMeans":
        """Keep the centres on that device from now on, and labels that are a tensor."""
        if self._begun:
            self.cluster_centers_, self.counts_ = self.cluster_centers_.to(device), self.counts_.to(device)
            if isinstance(getattr(self, "labels_", None), Tensor):
                self.labels_ = self.labels_.to(device)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Centres and counts, copied to the CPU; empty before the first batch. `load_state_dict` takes it back."""
        if not self._begun:
            return {}
        state = {"cluster_centers": self.cluster_centers_, "counts": self.counts_}
        return {name: value.to("cpu", copy=True) for name, value in state.items()}

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Tensor]) -> "MiniBatchKMeans":
        """Continue from another one's `state_dict`, on the state's device.

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        learned = ("cluster_centers_", "counts_", "labels_", "inertia_", "n_iter_", "n_features_in_")
        for name in (*learned, "feature_names_in_"):
            self.__dict__.pop(name, None)
        if state:
            K = self.n_clusters
            centers, counts = check_state(state, {"cluster_centers": (K, "D"), "counts": (K,)})
            self.cluster_centers_, self.counts_ = centers.clone(), counts.to(torch.float64, copy=True)
            self.n_features_in_ = centers.shape[1]
        return self

    def _step(self, x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Labels [N] and inertia of rows x [N, D], before they move the centres."""
        labels = self._labels(x)
        inertia = self._inertia(x, labels, weights)
        exact = None if weights is None else weights.double()
        self.counts_ = self.counts_ + torch.bincount(labels, exact, minlength=len(self.counts_))
        self.cluster_centers_ = self.cluster_centers_.clone()
        move_centers_(self.cluster_centers_, self.counts_, x, labels, weights)
        return labels, inertia

    def _labels(self, x: Tensor) -> Tensor:
        """Index [N] of the centre nearest to each row of x [N, D]."""
        mean = self.cluster_centers_.mean(0)  # seen from afar, squares would leave no digits to what sets them apart
        return torch.cat([nearest_index(block - mean, self.cluster_centers_ - mean) for block in blocks(x)])

    def _inertia(self, x: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        pairs = zip(blocks(x), blocks(labels), strict=True)
        squares = torch.cat([(rows - self.cluster_centers_[at]).norm(dim=1) for rows, at in pairs]).square()
        return torch.sum(squares if weights is None else squares * weights, dtype=torch.float64)

    def _checked(self, X: Array, sample_weight: Array | None, first: bool) -> tuple[Tensor, Tensor | None]:
        """Rows and weights [N], of the centres' type and device unless these are yet to be seeded."""
        if first and not (isinstance(self.n_clusters, Integral) and self.n_clusters >= 1):
            raise ValueError(f"n_clusters is {self.n_clusters!r}, expected an int of 1 or more")
        x = as_rows(self, X, first)
        x = x.to(torch.promote_types(x.dtype, torch.float32)) if first else x.to(self.cluster_centers_)
        return x, None if sample_weight is None else _weights(sample_weight, x)

    def _rows(self, X: Array) -> Tensor:
        if not self._begun:
            raise NotFittedError("MiniBatchKMeans has seen no batch: call partial_fit or fit first")
        return as_rows(self, X, first=False).to(self.cluster_centers_)

    @property
    def _begun(self) -> bool:
        return "cluster_centers_" in vars(self)

    @property
    def _n_features_out(self) -> int:  # scikit-learn's name, for get_feature_names_out
        return len(self.cluster_centers_)

    def _enough(self, N: int, distinct: str = "") -> None:
        if self.n_clusters > N:
            raise ValueError(
                f"X has {N} {distinct}rows (n_samples = {N}), expected at least n_clusters = {self.n_clusters}: "
                "give more rows, or ask for fewer clusters"
            )

    def _seed(self, x: Tensor, weights: Tensor | None, draw: RandomState) -> None:
        """Centres from rows x [N, D], those of them that weigh something."""
        if weights is not None:
            x, weights = x[weights > 0], weights[weights > 0]  # GPU sync
        if isinstance(self.init, str):
            self._enough(len(x))
            chosen = self._choose(x, weights, draw).to(x.device)
            self._enough(len(chosen), "distinct ")
            self.cluster_centers_ = x[chosen]
        else:
            centers = self._given()
            if centers.shape != (self.n_clusters, x.shape[1]):
                raise ValueError(
                    f"init has shape {list(centers.shape)}, expected [{self.n_clusters}, {x.shape[1]}] for "
                    "n_clusters centres of as many features as X has"
                )
            self.cluster_centers_ = check_rows(centers.to(x, copy=True), name="init").detach()
        self.counts_ = torch.zeros(self.n_clusters, dtype=torch.float64, device=x.device)

    def _given(self) -> Tensor:
        try:
            return torch.as_tensor(self.init)
        except (TypeError, ValueError, RuntimeError) as error:  # torch's, for what holds no numbers
            raise ValueError(self._unknown_init("D")) from error

    def _unknown_init(self, D: int | str) -> str:
        return f'init is {self.init!r}, expected "k-center", "k-means++", "random" or centres [{self.n_clusters}, {D}]'

    def _choose(self, x: Tensor, weights: Tensor | None, draw: RandomState) -> Tensor:
        """Indices [K] of the rows x [N, D] at which centres begin; fewer if fewer are distinct."""
        N, K = len(x), self.n_clusters
        if self.init == "k-center":
            return weighted_farthest(x, K, weights)
        share = None if weights is None else (weights.double() / weights.double().sum()).cpu().numpy()
        if self.init == "random":
            return torch.from_numpy(draw.choice(N, K, replace=False, p=share))
        if self.init == "k-means++":
            sample = draw.permutation(N)[: SEEDING_SAMPLE * max(self.batch_size, K)]
            rows, weighed = x.cpu().numpy()[sample], None if share is None else share[sample]
            return torch.from_numpy(sample[kmeans_plusplus(rows, K, sample_weight=weighed, random_state=draw)[1]])
        raise ValueError(self._unknown_init(x.shape[1]))


def _finite(inertia: Tensor, x: Tensor) -> float:
    """The inertia, unless squared distances of rows x [N, D] overflow: ValueError then."""
    if not bool(torch.isfinite(inertia)):  # GPU sync
        raise ValueError(f"rows {list(x.shape)} {x.dtype} reach {float(x.abs().max()):.1e}, whose square overflows")
    return float(inertia)


def _weights(sample_weight: Array, x: Tensor) -> Tensor:
    """Checked weights [N] of rows x [N, D], of their type and device.

    Raises:
        ValueError: another shape, negative, not finite, or all zero.
    """
    weights = torch.as_tensor(sample_weight if isinstance(sample_weight, Tensor) else np.asarray(sample_weight, float))
    if weights.shape != x.shape[:1]:
        raise ValueError(f"sample_weight has shape {list(weights.shape)}, expected [{len(x)}], one for each row of X")
    weights = weights.detach().to(x)
    lowest, total = float(weights.min()), float(weights.sum())  # GPU sync
    if not (lowest >= 0 and 0 < total < torch.inf):
        raise ValueError(
            f"sample_weight has minimum {lowest} and sum {total}: expected finite numbers >= 0 that are not all zero"
        )
    return weights
