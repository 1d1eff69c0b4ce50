"""Principal components of a stream of rows, from its covariance."""

from collections.abc import Mapping
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import NotFittedError
from torch import Tensor

from mhpc.linalg import Array, Moments, all_or_nothing, as_rows, as_tensor, blocks, check_state, eigh_descending, like
from mhpc.mahalanobis import OnlineCovariance, negligible


class Spectrum:
    """Eigenvalues [D], largest first, and eigenvectors as rows [D, D] of a covariance, float64, found when read."""

    def __init__(self, moments: Moments) -> None:
        self.moments = moments

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        n, _, scatter = self.moments
        return eigh_descending(scatter / (n - 1))

    @property
    def values(self) -> Tensor:
        return self._eigen[0]

    @property
    def rows(self) -> Tensor:
        return self._eigen[1]


class IncrementalPCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]  # untyped
    """PCA of all rows ever seen, in one pass.

    The eigenvectors of the exact covariance: equal to scikit-learn's `PCA` on all rows at once, where scikit-learn's
    `IncrementalPCA` truncates after each batch (Ross et al., 2008). The decomposition is done when it is read.

    Rows are tensors, or arrays as scikit-learn takes them; what methods return is of the same kind. Learned attributes
    are tensors on `device`, which NumPy takes as they are where that is the CPU.

    Args:
        n_components: an int; a share of the variance in (0, 1), for the fewest components that explain at least it;
            or None for all that have variance.
        dtype: of the rows as they are multiplied and of what is read; None is the first rows' own, at least float32.
        device: where the sums are; None is the first rows' own.

    Attributes, with scikit-learn's names: `components_` [d, D], `explained_variance_` [d],
    `explained_variance_ratio_` [d], `singular_values_` [d], `mean_` [D], `n_components_`, `n_features_in_`,
    `n_samples_seen_`, `noise_variance_`. Reading one of fewer than 2 rows, or of fewer than an int n_components,
    raises ValueError.
    """

    covariance_: OnlineCovariance  # from the first rows on
    spectrum_: Spectrum  # of the rows so far

    def __init__(
        self,
        n_components: int | float | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.n_components = n_components
        self.dtype = dtype
        self.device = device

    @all_or_nothing
    def fit(self, X: Array, y: object = None) -> "IncrementalPCA":
        """Start anew, with rows X [N, D].

        Raises:
            ValueError: fewer than 2 rows or an int n_components, no [N, D], or values that are not finite.
        """
        x = as_rows(self, X, first=True)
        self._begin(x.shape[1], x)
        for block in blocks(x):  # a block is copied to be centred
            self.covariance_.add(block)
        self._learned()
        self._fitted()
        return self

    @all_or_nothing
    def partial_fit(self, X: Array, y: object = None) -> "IncrementalPCA":
        """Add rows X [N, D].

        Raises:
            ValueError: another D than before, no rows, values not finite, or an n_components that D cannot give.
        """
        first = not self._begun
        x = as_rows(self, X, first)
        if first:
            self._begin(x.shape[1], x)
        self.covariance_.add(x)
        return self._learned()

    @all_or_nothing
    def merge(self, other: "IncrementalPCA") -> "IncrementalPCA":
        """Add all that `other` has seen, exactly; `other` stays as it is and shares no memory with this one."""
        if other._begun:
            theirs = other.covariance_
            if not self._begun:
                self._begin(theirs.num_features, theirs.mean_)
            self.covariance_.merge(theirs)
            self._learned()
        return self

    @all_or_nothing
    def restore(self, moments: Moments) -> "IncrementalPCA":
        """Continue from moments that another one held; they are shared, and never changed.

        They do not tell the rows' type: without a `dtype` it is torch's default, float32.
        """
        mean = moments.mean
        self._forget()
        self._begin(len(mean), torch.empty(0, dtype=torch.get_default_dtype(), device=mean.device))
        self.covariance_.moments_ = moments
        return self._learned()

    def to(self, device: torch.device | str) -> "IncrementalPCA":
        """Keep the sums on that device from now on."""
        self.device = device
        if self._begun:
            self.covariance_.to(device)
            self._learned()
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """All that was learned, copied to the CPU; `load_state_dict` takes it back.

        `rows` [0, D] holds no rows, only their type.
        """
        if not self._begun:
            return {"n_samples_seen": torch.tensor(0)}
        covariance = self.covariance_
        return covariance.state_dict() | {"rows": torch.empty(0, covariance.num_features, dtype=covariance.dtype)}

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Tensor]) -> "IncrementalPCA":
        """Continue from another one's `state_dict`, on this one's `device`, or else on the CPU.

        Raises:
            ValueError: a tensor is missing or has another shape, or an n_components that D cannot give.
        """
        (n,) = check_state(state, {"n_samples_seen": ()})
        self._forget()
        if not int(n):
            return self
        (rows,) = check_state(state, {"rows": (0, "D")})
        self._begin(rows.shape[1], rows)
        self.covariance_.load_state_dict(state)
        return self._learned()

    def transform(self, X: Array) -> Any:
        """Rows in the components' coordinates, [N, d]."""
        mean = self.mean_
        rows = as_rows(self, X, first=False).to(mean)
        return like(X, (rows - mean) @ self.components_.T)

    def inverse_transform(self, Z: Array) -> Any:
        """Rows [N, D] back from the components' coordinates [N, d]."""
        mean = self.mean_
        return like(Z, as_tensor(Z, self.n_components_, "Z").to(mean) @ self.components_ + mean)

    def whiten(self, X: Array) -> Any:
        """Rows with unit variance along each component, [N, d]; ||z|| is the Mahalanobis distance in the kept space."""
        mean = self.mean_
        rows = as_rows(self, X, first=False).to(mean)
        return like(X, (rows - mean) @ self.components_.T / self.deviations_)

    @property
    def moments_(self) -> Moments:
        """Of one row, too: it has a mean, and no spread."""
        return (self.covariance_ if self.n_samples_seen_ else self._fitted()).moments_

    @property
    def n_samples_seen_(self) -> int:
        return self.covariance_.n_samples_seen_ if self._begun else 0

    @property
    def mean_(self) -> Tensor:
        return self._fitted().mean_

    @property
    def n_components_(self) -> int:
        dtype = self._fitted().dtype
        return count_components(self.spectrum_.values, self.n_components, self.n_samples_seen_, dtype)

    @property
    def components_(self) -> Tensor:
        d = self.n_components_
        return self.spectrum_.rows[:d].to(self.covariance_.dtype, copy=True)  # the caller may write to it

    @property
    def explained_variance_(self) -> Tensor:
        d = self.n_components_
        return self.spectrum_.values[:d].to(self.covariance_.dtype, copy=True)

    @property
    def deviations_(self) -> Tensor:
        """Standard deviation [d] along each component, as `deviations` has it."""
        return deviations(self.explained_variance_, self.mean_)

    @property
    def explained_variance_ratio_(self) -> Tensor:
        d, values = self.n_components_, self.spectrum_.values
        total = values.sum()
        return (values[:d] / torch.where(total > 0, total, 1)).to(self.covariance_.dtype)

    @property
    def singular_values_(self) -> Tensor:
        """Of the centred rows: sqrt((n - 1) explained_variance_)."""
        d = self.n_components_
        return (self.spectrum_.values[:d] * (self.n_samples_seen_ - 1)).sqrt().to(self.covariance_.dtype)

    @property
    def noise_variance_(self) -> float:
        """Mean variance along the components left out; Tipping & Bishop (1999), eq. 8."""
        d = self.n_components_
        rest = self.spectrum_.values[d : self.n_samples_seen_]  # n rows have no more, as scikit-learn counts them
        return float(rest.mean()) if rest.numel() else 0.0  # GPU sync

    @property
    def _n_features_out(self) -> int:  # scikit-learn's name, for get_feature_names_out
        return self.n_components_

    @property
    def _begun(self) -> bool:
        return "covariance_" in vars(self)

    def _begin(self, D: int, rows: Tensor) -> None:
        """Empty sums over D features, of the rows' type and device unless they are given."""
        _check_n_components(self.n_components, D)
        dtype = self.dtype or torch.promote_types(rows.dtype, torch.float32)
        self.covariance_ = OnlineCovariance(D, dtype, self.device or rows.device)
        self.n_features_in_ = D

    def _learned(self) -> "IncrementalPCA":
        self.spectrum_ = Spectrum(self.covariance_.moments_)
        return self

    def _forget(self) -> None:
        for name in ("covariance_", "spectrum_", "n_features_in_", "feature_names_in_"):
            self.__dict__.pop(name, None)

    def _fitted(self) -> OnlineCovariance:
        n, asked = self.n_samples_seen_, self.n_components
        if n < 2:
            raise NotFittedError(
                f"IncrementalPCA has seen {n} rows (n_samples = {n}), expected at least 2: partial_fit first"
            )
        _check_n_components(asked, self.covariance_.num_features)
        if isinstance(asked, Integral) and int(asked) > n:
            raise ValueError(
                f"n_components is {asked}, but IncrementalPCA has seen only {n} rows (n_samples = {n}), which have no "
                "more components: give more rows, or ask for fewer or for a share of the variance"
            )
        return self.covariance_


def deviations(variance: Tensor, mean: Tensor) -> Tensor:
    """Standard deviations [d] of variance [d]; 1 where rows about mean [D] vary by no more than rounding.

    So whitening stays finite for rows that are all equal, and along directions in which rows do not vary.
    """
    spread = variance.sqrt()
    eps = torch.finfo(mean.dtype).eps
    rounding = torch.maximum(eps * mean.abs().amax(), negligible(variance.amax(), mean.dtype).sqrt())
    return torch.where(spread > rounding, spread, 1)


def count_components(
    values: Tensor, n_components: int | float | None, n_samples: int, dtype: torch.dtype, total: Tensor | None = None
) -> int:
    """How many of the eigenvalues [D], largest first, n_components asks for; of a `total` where these are not all.

    An int asks for just so many. A share asks for the fewest components that explain at least it (scikit-learn takes
    one more where they explain just that), None for all; both leave out directions in which rows of the dtype vary by
    no more than rounding, but for the first, since whitening would divide by zero.
    """
    if isinstance(n_components, Integral):
        return int(n_components)
    rank = max(min(int((values > negligible(values[0], dtype)).sum()), n_samples - 1), 1)  # GPU sync
    if n_components is None:
        return rank
    explained = (values / (values.sum() if total is None else total)).cumsum(0)
    return min(int((explained < n_components).sum()) + 1, rank)  # GPU sync


def _check_n_components(n_components: object, D: int) -> None:
    if n_components is None:
        return
    whole = isinstance(n_components, Integral) and not isinstance(n_components, bool) and 1 <= int(n_components) <= D
    share = isinstance(n_components, Real) and not isinstance(n_components, Integral) and 0 < float(n_components) < 1
    if not whole and not share:
        raise ValueError(f"n_components is {n_components!r}, expected an int in 1..{D}, a share in (0, 1), or None")
