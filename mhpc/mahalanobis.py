"""Mean and covariance of a stream of rows, mergeable, and the Cholesky factor that whitens by them."""

from collections.abc import Mapping
from numbers import Integral

import torch
from torch import Tensor

from mhpc.linalg import Moments, batch_moments, check_rows, check_state, check_tensor, cholesky, merge_moments

ASYMMETRY = torch.finfo(torch.float32).eps ** 0.5  # of correlations: half of float32's digits; X^T X errs by 1e-7
ROUNDING = 16  # epsilons; float32 rows leave up to 0.6 in an eigenvalue that is none
EPSILONS = (2.0**-46, 2.0**-23)  # of sums in float64, of which long streams make 36 of float64's; and float32's


class OnlineCovariance:
    """Covariance of all rows ever seen, in one pass and O(D^2) memory.

    `update` and `merge` are one rule (`merge_moments`), with a batch's own moments as the other side; so the result
    does not depend on how rows were split, ordered or spread over several estimators. Sums are float64.

    Args:
        num_features: D.
        dtype: of the rows as they are multiplied (in float32 at least) and of what is read; float64 is exact to 1e-10.

    Raises:
        ValueError: num_features is no int of 1 or more, or the dtype is not floating.
    """

    def __init__(
        self, num_features: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> None:
        _check_num_features(num_features)
        if not dtype.is_floating_point:
            raise ValueError(f"dtype is {dtype}, expected a floating type: float32, or float64 to be exact")
        self.num_features = num_features
        self.dtype = dtype
        zero = torch.zeros(num_features, num_features, dtype=torch.float64, device=device)
        self.moments_ = Moments(0, zero[0].clone(), zero)

    @property
    def n_samples_seen_(self) -> int:
        return self.moments_.n

    @property
    def mean_(self) -> Tensor:
        return self.moments_.mean.to(self.dtype, copy=True)

    def update(self, batch: Tensor) -> "OnlineCovariance":
        """Add a batch [N, features...]; the dimensions behind the first are flattened to num_features.

        Raises:
            ValueError: no tensor, another number of features, no rows, or values that are not finite or whose squares
                overflow.
        """
        check_tensor(batch, "batch")
        rows = batch.flatten(1) if batch.ndim > 2 else batch
        return self.add(check_rows(rows, self.num_features, "batch"))

    def add(self, rows: Tensor) -> "OnlineCovariance":
        """`update` for rows [N, num_features] that were checked already."""
        # Half a float's products overflow from 256^2 on, and a mean of such rows has three digits.
        x = rows.detach().to(self.moments_.mean.device, torch.promote_types(self.dtype, torch.float32))
        wider = "" if x.dtype is torch.float64 else ", or choose dtype=torch.float64"
        moments = merge_moments(self.moments_, batch_moments(x))
        check_trace(moments.scatter.trace(), x, f"scale them down{wider}")
        self.moments_ = moments
        return self

    def merge(self, other: "OnlineCovariance") -> "OnlineCovariance":
        """Add all that `other` has seen; `other` stays as it is and shares no memory with this one."""
        if other.num_features != self.num_features:
            raise ValueError(f"other has {other.num_features} features, expected {self.num_features}")
        n, mean, scatter = other.moments_
        device = self.moments_.mean.device
        self.moments_ = merge_moments(self.moments_, Moments(n, mean.to(device), scatter.to(device)))
        return self

    def to(self, device: torch.device | str) -> "OnlineCovariance":
        """Keep the sums on that device from now on."""
        n, mean, scatter = self.moments_
        self.moments_ = Moments(n, mean.to(device), scatter.to(device))
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """All that was learned, copied to the CPU; `load_state_dict` takes it back."""
        n, mean, scatter = self.moments_
        return {
            "n_samples_seen": torch.tensor(n),
            "mean": mean.to("cpu", copy=True),
            "scatter": scatter.to("cpu", copy=True),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> "OnlineCovariance":
        """Continue from another one's `state_dict`, on this one's device.

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        D, device = self.num_features, self.moments_.mean.device
        n, mean, scatter = check_state(state, {"n_samples_seen": (), "mean": (D,), "scatter": (D, D)})
        self.moments_ = Moments(
            int(n), mean.to(device, torch.float64, copy=True), scatter.to(device, torch.float64, copy=True)
        )
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


def check_trace(trace: Tensor, x: Tensor, remedy: str) -> None:
    """Raise ValueError where squares of finite rows x [N, D] overflowed, by the trace of a scatter that holds them."""
    if not bool(torch.isfinite(trace)):  # GPU sync; no other entry overflows before the diagonal
        raise ValueError(
            f"rows {list(x.shape)} of up to {float(x.abs().max()):.3g} have squares whose sum overflows {x.dtype}: "
            f"{remedy}"
        )


def _check_num_features(num_features: object) -> None:
    if not isinstance(num_features, Integral) or isinstance(num_features, bool) or int(num_features) < 1:
        raise ValueError(f"num_features is {num_features!r}, expected an int of 1 or more")


def negligible(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """The variance that rounding of rows of the dtype may leave in a direction, beside the largest eigenvalue.

    Products are in float32 at least, sums in float64.
    """
    least, most = EPSILONS
    return ROUNDING * min(max(torch.finfo(dtype).eps, least), most) * largest


def oas(covariance: Tensor, n: int) -> Tensor:
    """Shrink a biased covariance [D, D] of n rows towards mu I, mu its mean variance: (1 - rho) S + rho mu I.

    Oracle Approximating Shrinkage: Chen, Wiesel, Eldar & Hero (2010), "Shrinkage algorithms for MMSE covariance
    estimation", eq. 23, as `sklearn.covariance.oas` has it, without the terms in 2 / D. Positive definite for any
    number of rows that are not all equal.

    Raises:
        ValueError: not a square tensor, not finite, or no rows.
    """
    covariance = _checked_square(covariance)
    if n < 1:
        raise ValueError(f"n is {n}, expected the number of rows, at least 1, that the covariance is of")
    D, _ = covariance.shape
    if D == 1:
        return covariance.clone()
    wide = covariance.double()  # squares of float32 variances beyond 1e19, or below 1e-19, leave its range
    square = wide.square().mean()  # trace(S S) / D^2
    mu = wide.diagonal().mean()
    surplus = (n + 1) * (square - mu.square() / D)  # 0, or rounding, for a multiple of I, which is its own target
    rho = torch.where(surplus <= 0, 1.0, (square + mu.square()) / surplus).clamp(max=1)
    return (1 - rho) * covariance + rho * mu * torch.eye(D, dtype=covariance.dtype, device=covariance.device)


class CovarianceCholesky:
    """Lower Cholesky factor L of a covariance: with z = L^-1 (x - mean), ||z|| is the Mahalanobis distance.

    Mahalanobis (1936), "On the generalised distance in statistics".

    Args:
        jitter: added to the diagonal.
        precision: of the products that the covariance was summed from, where that is coarser than its own: sums in
            float64 of products in float32, as an OnlineCovariance of float32 holds, are no surer of a small pivot.
    """

    def __init__(self, jitter: float = 0.0, precision: torch.dtype | None = None) -> None:
        self.jitter = jitter
        self.precision = precision

    def compute(self, covariance: Tensor) -> Tensor:
        """L [D, D] with L L^T = covariance + jitter I, in float32 at least.

        Raises:
            ValueError: no square tensor, not finite, asymmetric by more than rounding, or singular: not positive
                definite by more than rounding.
        """
        came = covariance
        covariance = _checked_square(came)
        _check_symmetric(covariance, self.jitter, came.dtype)
        # What came in half precision is no surer of its pivots for being widened.
        coarser = [dtype for dtype in (self.precision, came.dtype) if dtype is not None]
        return cholesky(covariance, self.jitter, max(coarser, key=lambda dtype: torch.finfo(dtype).eps))


def _checked_square(covariance: Tensor) -> Tensor:
    """The covariance in float32 at least: no factorisation is made in half precision."""
    check_tensor(covariance, "covariance")
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"covariance has shape {list(covariance.shape)}, expected [D, D]")
    return check_rows(covariance, name="covariance").to(torch.promote_types(covariance.dtype, torch.float32))


def _check_symmetric(covariance: Tensor, jitter: float, dtype: torch.dtype) -> None:
    """Refuse S where |S_ij - S_ji| exceeds rounding of sigma_i sigma_j, so that features' units do not count.

    Sums in float64 may be of products in float32: rounding is float32's, or that of a coarser dtype that S came in.
    """
    D, _ = covariance.shape
    sigma = (covariance.diagonal() + jitter).clamp_min(0).sqrt()
    difference = (covariance - covariance.T).abs()
    beyond = difference - max(ASYMMETRY, torch.finfo(dtype).eps ** 0.5) * torch.outer(sigma, sigma)
    i, j = divmod(int(beyond.argmax()), D)  # GPU sync
    if beyond[i, j] > 0:  # GPU sync
        raise ValueError(
            f"covariance [{D}, {D}] is asymmetric: [{i}, {j}] is {float(covariance[i, j]):.6g}, [{j}, {i}] is "
            f"{float(covariance[j, i]):.6g}, a difference of {float(difference[i, j]):.3g}, more than rounding makes; "
            "expected S = S^T, of which only the lower triangle would be read: give (S + S^T) / 2 if that is meant"
        )
