"""Batch moments and their merge, distances, Cholesky with jitter: functions without state."""

from typing import NamedTuple

import torch
from torch import Tensor

ROWS_PER_BLOCK = 4096  # of a distance matrix that is reduced at once


class Moments(NamedTuple):
    """Sums from which mean and covariance are read: n rows, mean [D] and scatter [D, D] in float64.

    The scatter is sum_i (x_i - mean)(x_i - mean)^T; divide by n - 1 (or n) on reading.
    """

    n: int
    mean: Tensor
    scatter: Tensor


def batch_moments(x: Tensor) -> Moments:
    """Moments of the rows of x [N, D]; products in the rows' precision, sums in float64.

    Many GPUs are slow in float64: for float32 rows the product X^T X of the *centred* rows is float32, which keeps
    its error relative to the batch's own spread; float64 rows are exact to rounding.
    """
    N, _ = x.shape
    mean = x.mean(0, dtype=torch.float64)
    centred = x - mean.to(x.dtype)
    residual = centred.sum(0, dtype=torch.float64)  # what rounding the mean to the rows' precision left over
    scatter = (centred.T @ centred).double() - torch.outer(residual, residual) / N
    return Moments(N, mean, scatter)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of the union, from those of two disjoint sets; neither side is changed or shared.

    Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance", eq. 2.1, for vectors:
    S = S_a + S_b + (n_a n_b / n) (m_b - m_a)(m_b - m_a)^T.
    """
    n = a.n + b.n
    if n == 0:
        return Moments(0, a.mean.clone(), a.scatter.clone())
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.n / n)
    scatter = a.scatter + b.scatter
    scatter.addr_(delta, delta, alpha=a.n * b.n / n)
    return Moments(n, mean, scatter)


def eigh_descending(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [D], largest first and not negative, and eigenvectors as rows [D, D], each with a fixed sign.

    The sign is scikit-learn's `svd_flip`: the entry of largest magnitude is positive.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values, rows = values.flip(0).clamp_min(0), vectors.T.flip(0).contiguous()
    largest = rows.abs().argmax(1, keepdim=True)
    return values, rows * rows.gather(1, largest).sign()


def cholesky(covariance: Tensor, jitter: float) -> Tensor:
    """Lower factor L [D, D] with L L^T = covariance + jitter I.

    Raises:
        ValueError: that sum is not positive definite.
    """
    D, _ = covariance.shape
    shifted = covariance + jitter * torch.eye(D, dtype=covariance.dtype, device=covariance.device)
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(shifted)
    if failed := int(info):  # GPU sync
        raise ValueError(
            f"covariance [{D}, {D}] plus jitter {jitter} is not positive definite (leading minor {failed}): "
            "give more rows than features, keep fewer components, or raise the jitter"
        )
    return factor


def nearest(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distance [N] of each row of x [N, D] to the nearest of centers [K, D], and its index [N].

    The winner is found by ||c||^2 - 2 x.c and its distance recomputed by difference: for equal rows the expanded
    square errs by about 0.02 in float32. Blocks keep memory at ROWS_PER_BLOCK x K.
    """
    half_squares = centers.square().sum(1) / 2  # argmin over c of ||x - c||^2 = argmin of ||c||^2 / 2 - x.c
    index = torch.cat([_argmin(torch.addmm(half_squares, block, centers.T, alpha=-1)) for block in blocks(x)])
    distances: Tensor = (x - centers[index]).norm(dim=1)
    return distances, index


def _argmin(rows: Tensor) -> Tensor:
    """Index [N] of each row's smallest value; on the CPU by NumPy, whose argmin is several times torch's."""
    return torch.from_numpy(rows.numpy().argmin(1)) if rows.device.type == "cpu" else rows.argmin(1)


def blocks(x: Tensor) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = x.split(ROWS_PER_BLOCK)
    return parts


def check_rows(x: Tensor, num_features: int | None = None, name: str = "X") -> Tensor:
    """Return x if it is [N, D], floating and finite with N >= 1 (and D as given).

    Raises:
        ValueError: what came and what was expected.
    """
    expected = f"[N, {num_features or 'D'}]"
    if x.ndim != 2 or x.shape[0] == 0 or (num_features is not None and x.shape[1] != num_features):
        raise ValueError(f"{name} has shape {list(x.shape)}, expected {expected} with N >= 1")
    if not x.is_floating_point():
        raise ValueError(f"{name} is {x.dtype}, expected a floating type; convert it first")
    if not all_finite(x):
        raise ValueError(f"{name} {list(x.shape)} holds NaN or infinite values, expected finite ones")
    return x


def all_finite(x: Tensor) -> bool:
    """Whether x holds neither NaN nor infinity; the norm settles it in one fast pass unless it overflows."""
    return bool(torch.isfinite(x.norm())) or bool(torch.isfinite(x).all())  # GPU sync
