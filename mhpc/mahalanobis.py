"""Mean and covariance of a stream of rows, mergeable, and the Cholesky factor that whitens by them."""

import torch
from torch import Tensor

from mhpc.linalg import Moments, batch_moments, check_rows, cholesky, merge_moments


class OnlineCovariance:
    """Covariance of all rows ever seen, in one pass and O(D^2) memory.

    `update` and `merge` are one rule (`merge_moments`), with a batch's own moments as the other side; so the result
    does not depend on how rows were split, ordered or spread over several estimators. Sums are float64.

    Args:
        num_features: D.
        dtype: of the rows as they are multiplied and of what is read; float64 is exact to 1e-10.
    """

    def __init__(
        self, num_features: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> None:
        self.num_features = num_features
        self.dtype = dtype
        zero = torch.zeros(num_features, num_features, dtype=torch.float64, device=device)
        self.moments_ = Moments(0, zero[0].clone(), zero)

    @property
    def n_samples_seen_(self) -> int:
        return self.moments_.n

    @property
    def mean_(self) -> Tensor:
        return self.moments_.mean.to(self.dtype)

    def update(self, batch: Tensor) -> "OnlineCovariance":
        """Add a batch [N, features...]; the dimensions behind the first are flattened to num_features.

        Raises:
            ValueError: another number of features, no rows, or values that are not finite.
        """
        rows = batch.flatten(1) if batch.ndim > 2 else batch
        x = check_rows(rows, self.num_features, "batch").to(self.moments_.mean.device, self.dtype)
        self.moments_ = merge_moments(self.moments_, batch_moments(x))
        return self

    def merge(self, other: "OnlineCovariance") -> "OnlineCovariance":
        """Add all that `other` has seen; `other` stays as it is and shares no memory with this one."""
        if other.num_features != self.num_features:
            raise ValueError(f"other has {other.num_features} features, expected {self.num_features}")
        n, mean, scatter = other.moments_
        device = self.moments_.mean.device
        self.moments_ = merge_moments(self.moments_, Moments(n, mean.to(device), scatter.to(device)))
        return self

    def covariance(self, unbiased: bool = True) -> Tensor:
        """Covariance [D, D]: scatter / (n - 1), or / n when not unbiased.

        Raises:
            ValueError: too few rows were seen to divide.
        """
        divisor = self.n_samples_seen_ - int(unbiased)
        if divisor < 1:
            raise ValueError(
                f"covariance of {self.n_samples_seen_} rows is undefined, expected at least {1 + int(unbiased)}"
            )
        return (self.moments_.scatter / divisor).to(self.dtype)


class CovarianceCholesky:
    """Lower Cholesky factor L of a covariance: with z = L^-1 (x - mean), ||z|| is the Mahalanobis distance.

    Mahalanobis (1936), "On the generalised distance in statistics".
    """

    def __init__(self, jitter: float = 0.0) -> None:
        self.jitter = jitter

    def compute(self, covariance: Tensor) -> Tensor:
        """L [D, D] with L L^T = covariance + jitter I.

        Raises:
            ValueError: not square, or not positive definite.
        """
        if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
            raise ValueError(f"covariance has shape {list(covariance.shape)}, expected [D, D]")
        return cholesky(covariance, self.jitter)
