"""Principal components of a stream of rows, from its covariance."""

from typing import NamedTuple

import torch
from torch import Tensor

from mhpc.linalg import Moments, check_rows, eigh_descending
from mhpc.mahalanobis import OnlineCovariance


class Spectrum(NamedTuple):
    """Eigenvalues [D], largest first, and eigenvectors as rows [D, D] of a covariance, float64."""

    values: Tensor
    rows: Tensor


class IncrementalPCA:
    """PCA of all rows ever seen, in one pass.

    The eigenvectors of the exact covariance: equal to scikit-learn's `PCA` on all rows at once, where scikit-learn's
    `IncrementalPCA` truncates after each batch (Ross et al., 2008). The decomposition is done when it is read.

    Args:
        n_components: int, a share of the variance in (0, 1), or None for all D.
        dtype: of the rows as they are multiplied and of what is read.

    Attributes, with scikit-learn's names: `components_` [d, D], `explained_variance_` [d],
    `explained_variance_ratio_` [d], `mean_` [D], `n_components_`, `n_samples_seen_`, `noise_variance_`.
    """

    def __init__(
        self,
        n_components: int | float | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        self.n_components = n_components
        self.dtype = dtype
        self.device = device
        self.covariance_: OnlineCovariance | None = None
        self._spectrum: Spectrum | None = None  # of covariance_, until the next row

    def partial_fit(self, X: Tensor) -> "IncrementalPCA":
        """Add rows X [N, D].

        Raises:
            ValueError: another D than before, no rows, values not finite, or an n_components that D cannot give.
        """
        if self.covariance_ is None:
            D = check_rows(X).shape[1]
            _check_n_components(self.n_components, D)
            self.covariance_ = OnlineCovariance(D, self.dtype, self.device or X.device)
        self.covariance_.update(X)
        self._spectrum = None
        return self

    def merge(self, other: "IncrementalPCA") -> "IncrementalPCA":
        """Add all that `other` has seen, exactly; `other` stays as it is."""
        theirs = other.covariance_
        if theirs is not None:
            if self.covariance_ is None:
                _check_n_components(self.n_components, theirs.num_features)
                device = self.device or theirs.mean_.device
                self.covariance_ = OnlineCovariance(theirs.num_features, self.dtype, device)
            self.covariance_.merge(theirs)
            self._spectrum = None
        return self

    def restore(self, moments: Moments) -> "IncrementalPCA":
        """Continue from moments that another one held."""
        self.covariance_ = OnlineCovariance(len(moments.mean), self.dtype, moments.mean.device)
        self.covariance_.moments_ = moments
        self._spectrum = None
        return self

    def transform(self, X: Tensor) -> Tensor:
        """Rows in the components' coordinates, [N, d]."""
        rows = check_rows(X, self._fitted().num_features).to(self.mean_)
        return (rows - self.mean_) @ self.components_.T

    def inverse_transform(self, Z: Tensor) -> Tensor:
        """Rows [N, D] back from the components' coordinates [N, d]."""
        return check_rows(Z, self.n_components_).to(self.mean_) @ self.components_ + self.mean_

    def whiten(self, X: Tensor) -> Tensor:
        """Rows with unit variance along each component, [N, d]; ||z|| is the Mahalanobis distance in the kept space."""
        return self.transform(X) / self.deviations_

    @property
    def moments_(self) -> Moments:
        return self._fitted().moments_

    @property
    def n_samples_seen_(self) -> int:
        return 0 if self.covariance_ is None else self.covariance_.n_samples_seen_

    @property
    def mean_(self) -> Tensor:
        return self._fitted().mean_

    @property
    def n_components_(self) -> int:
        return count_components(self._decomposed().values, self.n_components, self.n_samples_seen_)

    @property
    def components_(self) -> Tensor:
        return self._decomposed().rows[: self.n_components_].to(self.dtype)

    @property
    def explained_variance_(self) -> Tensor:
        return self._decomposed().values[: self.n_components_].to(self.dtype)

    @property
    def deviations_(self) -> Tensor:
        """Standard deviation [d] along each component; 1 where rows vary by no more than rounding.

        So whitening stays finite for rows that are all equal.
        """
        deviations = self.explained_variance_.sqrt()
        rounding = torch.finfo(self.dtype).eps * self.mean_.abs().amax()
        return torch.where(deviations > rounding, deviations, 1)

    @property
    def explained_variance_ratio_(self) -> Tensor:
        values = self._decomposed().values
        return (values[: self.n_components_] / values.sum()).to(self.dtype)

    @property
    def singular_values_(self) -> Tensor:
        return (self.explained_variance_.double() * (self.n_samples_seen_ - 1)).sqrt().to(self.dtype)

    @property
    def noise_variance_(self) -> float:
        """Mean variance along the components left out; Tipping & Bishop (1999), eq. 8."""
        rest = self._decomposed().values[self.n_components_ :]
        return float(rest.mean()) if rest.numel() else 0.0  # GPU sync

    def _fitted(self) -> OnlineCovariance:
        if self.covariance_ is None or self.covariance_.n_samples_seen_ < 2:
            raise ValueError(
                f"IncrementalPCA has seen {self.n_samples_seen_} rows, expected at least 2: partial_fit first"
            )
        return self.covariance_

    def _decomposed(self) -> Spectrum:
        if self._spectrum is None:
            n, _, scatter = self._fitted().moments_
            self._spectrum = Spectrum(*eigh_descending(scatter / (n - 1)))
        return self._spectrum


def count_components(values: Tensor, n_components: int | float | None, n_samples: int) -> int:
    """How many of the eigenvalues [D], largest first, n_components asks for; never more than have rank.

    A share asks for the fewest components that explain at least it (scikit-learn's rule). Directions without
    variance are left out, since whitening would divide by zero.
    """
    negligible = values[0] * values.shape[0] * torch.finfo(torch.float32).eps
    rank = min(int((values > negligible).sum()), max(n_samples - 1, 1))  # GPU sync
    if n_components is None:
        return max(rank, 1)
    if isinstance(n_components, int):
        return max(min(n_components, rank), 1)
    explained = (values / values.sum()).cumsum(0)
    return max(min(int((explained < n_components).sum()) + 1, rank), 1)  # GPU sync


def _check_n_components(n_components: int | float | None, D: int) -> None:
    whole = isinstance(n_components, int) and not isinstance(n_components, bool) and 1 <= n_components <= D
    share = isinstance(n_components, float) and 0 < n_components < 1
    if n_components is not None and not whole and not share:
        raise ValueError(f"n_components is {n_components!r}, expected an int in 1..{D}, a share in (0, 1), or None")
