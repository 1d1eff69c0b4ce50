"""From patch features to the space in which distances are Euclidean: all, or principal, directions; whitened or not."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from mhpc.core.choices import PatchCoreDistance, PatchCoreFeatureReduction
from mhpc.core.subspace import leading_eigh
from mhpc.decomposition import IncrementalPCA, count_components, deviations
from mhpc.linalg import Moments, all_finite, batch_moments
from mhpc.mahalanobis import CovarianceCholesky, check_trace, oas

UNSOUND = "is the backbone's output sound?"


@dataclass(frozen=True)
class Whitening:
    """z = (x - mean) projection^T, for mean [D] and projection [d, D]; without a projection, z = x.

    For MAHALANOBIS the covariance of z is I, so Euclidean distances between z are Mahalanobis distances between x.
    """

    mean: Tensor
    projection: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.projection is None else (x - self.mean) @ self.projection.T

    def turned_from(self, before: "Whitening") -> float:
        """Share in [0, 1] of this one's directions that another's do not span: 1 minus the mean of their squared
        cosines (of the principal angles between the subspaces, where both have as many)."""
        if self.projection is None or before.projection is None:
            return 0.0
        new = self.projection / self.projection.norm(dim=1, keepdim=True)
        old = torch.linalg.qr(before.projection.T).Q  # [D, d]
        return float((1 - (new @ old).square().sum(1)).mean().clamp(0, 1))  # GPU sync

    def to(self, device: torch.device) -> "Whitening":
        return Whitening(self.mean.to(device), None if self.projection is None else self.projection.to(device))

    def check(self, z: Tensor) -> None:
        """Raise ValueError unless rows z [K, d] can be what this gives."""
        d = len(self.mean) if self.projection is None else len(self.projection)
        if z.ndim != 2 or z.shape[1] != d:
            raise ValueError(f"the state's bank has shape {list(z.shape)}, its space {d} dimensions: it is damaged")

    def state_dict(self) -> dict[str, Tensor]:
        state = {"whitening_mean": self.mean}
        return state if self.projection is None else state | {"whitening_projection": self.projection}

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> "Whitening":
        return cls(state["whitening_mean"], state.get("whitening_projection"))


@dataclass(frozen=True)
class ZSpace:
    """Which space is asked for; `of_moments` and `of_rows` find it.

    Args:
        pca_variance_ratio: share of the variance that PCA keeps, in (0, 1).
        jitter: added to the covariance's diagonal. None: nothing with PCA, whose small directions are left out; without
            PCA, Oracle Approximating Shrinkage.
    """

    feature_reduction: PatchCoreFeatureReduction = PatchCoreFeatureReduction.PCA
    distance: PatchCoreDistance = PatchCoreDistance.MAHALANOBIS
    pca_variance_ratio: float = 0.99
    jitter: float | None = None

    @property
    def reduces(self) -> bool:
        return self.feature_reduction is PatchCoreFeatureReduction.PCA

    @property
    def whitens(self) -> bool:
        return self.distance is PatchCoreDistance.MAHALANOBIS

    @property
    def needs_moments(self) -> bool:
        return self.reduces or self.whitens

    def identity(self, D: int) -> Whitening:
        """Where no moments are needed: z = x."""
        return Whitening(torch.zeros(D, dtype=torch.float32), None)

    def of_moments(self, moments: Moments, before: Whitening | None = None) -> Whitening:
        """From n, mean and scatter alone: one pass. One row is as two that are equal.

        Args:
            before: a whitening by moments that were similar. Where that is faster, components are looked for near its
                own (`leading_eigh`): they keep as much of the variance, but may be a few more than the best.

        Raises:
            ValueError: a covariance that is singular, with a jitter of 0.
        """
        moments = moments._replace(n=max(2, moments.n))
        if self.reduces:
            if before is not None and (found := self._near(before, moments)):
                return found
            pca = IncrementalPCA(self.pca_variance_ratio, torch.float32).restore(moments)
            return self.of_components(pca.mean_, pca.components_, pca.deviations_)
        return Whitening(moments.mean.float(), self._inverse_factor(moments).float())

    def _near(self, before: Whitening, moments: Moments) -> Whitening | None:
        """From components near those before; None where that is no faster, or they keep too little."""
        n, mean, scatter = moments
        covariance = scatter / (n - 1)
        if before.projection is None or not (found := leading_eigh(covariance, before.projection)):
            return None
        values, rows = found
        total = covariance.trace()
        if not bool(values.sum() >= self.pca_variance_ratio * total > 0):  # GPU sync
            return None
        d, mean = count_components(values, self.pca_variance_ratio, n, torch.float32, total), mean.float()
        return self.of_components(mean, rows[:d].float(), deviations(values[:d].float(), mean))

    def of_rows(self, x: NDArray[np.float32]) -> Whitening:
        """By scikit-learn's PCA, from all rows x [N, D] at once, which it centres in place.

        Raises:
            ValueError: their squares overflow.
        """
        N, D = x.shape
        centre = x.mean(0, dtype=np.float64).astype(x.dtype)
        x -= centre
        flat = torch.from_numpy(x).flatten()
        check_trace(flat @ flat, torch.from_numpy(x), UNSOUND)
        # Of centred rows both are exact: the covariance is X^T X less N mean mean^T, which in float32 cancels where
        # features have a mean. It needs D x D beside the rows, the SVD a copy of them.
        pca = PCA(self.pca_variance_ratio, svd_solver="covariance_eigh" if N >= D else "full").fit(x)
        mean, components, variance = (
            torch.from_numpy(learned).float() for learned in (centre, pca.components_, pca.explained_variance_)
        )
        return self.of_components(mean, components, deviations(variance, mean))

    def of_projected(self, pca: IncrementalPCA, moments: Moments) -> Whitening:
        """The second of three passes: from the moments of the rows as `pca` projects them, by their Cholesky factor."""
        inverse = self._inverse_factor(moments)
        U = pca.components_.double()  # [d, D]
        return Whitening((pca.mean_.double() + moments.mean @ U).float(), (inverse @ U).float())

    def of_components(self, mean: Tensor, components: Tensor, deviations: Tensor) -> Whitening:
        """In the components' own coordinates the covariance is diagonal: L = diag(deviations)."""
        components = components.contiguous()  # as a loaded one is: products round by their operands' layout
        if not self.whitens:
            return Whitening(mean, components)
        L = (deviations.square() + (self.jitter or 0.0)).sqrt()
        return Whitening(mean, components / L[:, None])

    def _inverse_factor(self, moments: Moments) -> Tensor:
        """L^-1 [D, D] float64, with L L^T the covariance, shrunk or with jitter."""
        n, mean, scatter = moments
        if self.jitter is None and not bool(scatter.diagonal().any()):  # GPU sync; all rows are equal
            return torch.eye(len(mean), dtype=scatter.dtype, device=scatter.device)
        shrunk = self.jitter is None and not self.reduces
        covariance = oas(scatter / n, n) if shrunk else scatter / (n - 1)
        # Float32 rows cannot tell a smaller pivot from none; what was shrunk or has jitter is positive by construction.
        bare = self.jitter == 0 or (self.jitter is None and self.reduces)
        L = CovarianceCholesky(self.jitter or 0.0, torch.float32 if bare else None).compute(covariance)
        identity = torch.eye(len(L), dtype=L.dtype, device=L.device)
        inverse: Tensor = torch.linalg.solve_triangular(L, identity, upper=False)
        return inverse.contiguous()


def sampled_moments(x: Tensor, share: float, draw: list[int]) -> Moments:
    """Moments of a random share in (0, 1] of the rows of x [N, D], weighted as if they were all N.

    Args:
        draw: seeds of which rows those are.

    Raises:
        ValueError: their squares overflow.
    """
    N, _ = x.shape
    if (n := min(N, max(2, round(N * share)))) < N:
        rows = np.sort(np.random.default_rng(draw).choice(N, n, replace=False))
        x = x[torch.from_numpy(rows).to(x.device)]
    _, mean, scatter = batch_moments(x)
    check_trace(scatter.trace(), x, UNSOUND)
    return Moments(N, mean, scatter if n == N else scatter.mul_(N / n))


def faded_moments(moments: Moments, share: float) -> Moments:
    """As of a share of the rows: mean and covariance stay."""
    n, mean, scatter = moments
    kept = max(2, round(n * share))
    return Moments(kept, mean, scatter * (kept / n))


def checked_share(share: float, name: str = "share") -> float:
    """The share.

    Raises:
        ValueError: it is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"{name} is {share}, expected a value in (0, 1]")
    return share


def check_features(features: Tensor, D: int | None = None) -> Tensor:
    """Return patch features that are [B, P, D] and finite.

    Raises:
        ValueError: what came and what was expected.
    """
    if features.ndim != 3 or 0 in features.shape or (D is not None and features.shape[2] != D):
        raise ValueError(f"features have shape {list(features.shape)}, expected [B, P, {D or 'D'}] with B, P >= 1")
    if not all_finite(features):
        raise ValueError(f"features {list(features.shape)} hold NaN or infinite values; {UNSOUND}")
    return features
