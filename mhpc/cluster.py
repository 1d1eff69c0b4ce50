"""Mini-batch k-means (Sculley, 2010), seeded by farthest-first selection."""

import torch
from torch import Tensor

from mhpc.linalg import check_rows, nearest
from mhpc.sampler import farthest_first


def move_centers(centers: Tensor, counts: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """centers [K, D] after each took its rows of x [N, D] (labels [N]) with step size 1 / count.

    counts [K] are those *after* the rows were added: c' = c + (sum of its rows - n c) / count, so a centre is the mean
    of all rows that it ever took. Rows and centres may be any linear image of the features.
    """
    touched, slots, n = labels.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(touched), x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, slots, x)
    old = centers[touched]
    moved = centers.clone()
    moved[touched] = old + (sums - n[:, None] * old) / counts[touched, None].to(x.dtype)
    return moved


class MiniBatchKMeans:
    """k-means on a stream of batches, with scikit-learn's names.

    Args:
        n_clusters: K.
        init: "k-center" (farthest-first on the first batch) or centres [K, D].

    Attributes: `cluster_centers_` [K, D], `counts_` [K] rows each centre has taken, `inertia_` of the last batch
    before it moved the centres.
    """

    def __init__(self, n_clusters: int, init: str | Tensor = "k-center") -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.cluster_centers_: Tensor
        self.counts_: Tensor

    def partial_fit(self, X: Tensor) -> "MiniBatchKMeans":
        """Assign the rows X [N, D] to their nearest centres and move those.

        Raises:
            ValueError: a wrong shape, values not finite, or a first batch with fewer distinct rows than clusters.
        """
        if not hasattr(self, "cluster_centers_"):
            self._seed(check_rows(X))
        x = check_rows(X, self.cluster_centers_.shape[1])
        distances, labels = nearest(x, self.cluster_centers_)
        self.inertia_ = float(distances.square().sum())  # GPU sync
        self.counts_ = self.counts_ + torch.bincount(labels, minlength=self.n_clusters)
        self.cluster_centers_ = move_centers(self.cluster_centers_, self.counts_, x, labels)
        return self

    def predict(self, X: Tensor) -> Tensor:
        """Index [N] of each row's nearest centre."""
        return nearest(check_rows(X, self._fitted().shape[1]), self.cluster_centers_)[1]

    def transform(self, X: Tensor) -> Tensor:
        """Distances [N, K] to every centre."""
        return torch.cdist(check_rows(X, self._fitted().shape[1]), self.cluster_centers_)

    def _fitted(self) -> Tensor:
        if not hasattr(self, "cluster_centers_"):
            raise ValueError("MiniBatchKMeans has seen no batch: call partial_fit first")
        return self.cluster_centers_

    def _seed(self, x: Tensor) -> None:
        N, D = x.shape
        if isinstance(self.init, Tensor):
            if self.init.shape != (self.n_clusters, D):
                raise ValueError(f"init has shape {list(self.init.shape)}, expected [{self.n_clusters}, {D}]")
            self.cluster_centers_ = self.init.to(x, copy=True)
        elif self.init == "k-center":
            if self.n_clusters > N:
                raise ValueError(f"the first batch has {N} rows, expected at least n_clusters = {self.n_clusters}")
            chosen = farthest_first(x, self.n_clusters).indices
            if len(chosen) < self.n_clusters:
                raise ValueError(
                    f"the first batch has {len(chosen)} distinct rows, expected at least n_clusters = {self.n_clusters}"
                )
            self.cluster_centers_ = x[chosen]
        else:
            raise ValueError(f'init is {self.init!r}, expected "k-center" or centres [{self.n_clusters}, {D}]')
        self.counts_ = torch.zeros(self.n_clusters, dtype=torch.int64, device=x.device)
