"""Leading eigenvectors of a covariance, from those that an earlier one had."""

import torch
from torch import Tensor

from mhpc.linalg import eigh_descending

EXTRA = 32  # directions beside those given: 16 leave twice as much to a round
ROUNDS = 4
LEAST_RATIO = 4  # features to directions, below which eigenvectors of all are as fast


def leading_eigh(covariance: Tensor, near: Tensor) -> tuple[Tensor, Tensor] | None:
    """Largest eigenvalues [p] and their eigenvectors as rows [p, D] of a covariance [D, D] in float64, approximately.

    A few rounds of subspace iteration from directions near [d, D] and EXTRA random ones, p in all, then Rayleigh-Ritz
    (Halko, Martinsson & Tropp, 2011, algorithm 4.4). The rows are orthonormal and uncorrelated to rounding, and a value
    is the variance along its row; what is approximate is the subspace. On real features it holds 0.9999 of the
    variance that the first d could (MobileNet v1, tiles, d = 66 to 73 of 768), in a fifth of the time.

    Returns:
        None where p is too many of the D features for that to be faster.
    """
    (d, _), (D, _) = near.shape, covariance.shape
    if LEAST_RATIO * (d + EXTRA) > D:
        return None
    random = torch.randn(EXTRA, D, dtype=covariance.dtype, generator=torch.Generator().manual_seed(0))
    basis = torch.cat([near.to(covariance), random.to(covariance)]).T
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(covariance @ basis).Q
    values, within = eigh_descending(basis.T @ covariance @ basis)
    return values, within @ basis.T
