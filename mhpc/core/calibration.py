"""The threshold for a wanted false-positive rate, from the scores of normal images alone."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EXPECTED_ABOVE = 10  # images that a plain quantile wants beyond it
TAIL_SHARE = 0.1  # of the scores, the exceedances that a tail is fitted to
SHAPE_PRIOR = 50  # exceedances that an exponential tail weighs in the shape: alone, few scores fit it far too freely
MIN_TAIL = 10
OUTLIER_DEVIATIONS = 8.0  # robust standard deviations above the median
MAX_TRIMMED = 0.1


class Threshold(NamedTuple):
    """Scores above `value` are anomalous; `n_trimmed` of the given scores were left out of the estimate."""

    value: float
    method: str  # "quantile" or "tail"
    n_scores: int
    n_trimmed: int


def outlier_limit(scores: NDArray[np.floating], deviations: float = OUTLIER_DEVIATIONS) -> float:
    """Median + deviations * 1.4826 MAD: scores beyond it do not belong with the rest (Leys et al., 2013)."""
    median = float(np.median(scores))
    return median + deviations * 1.4826 * float(np.median(np.abs(scores - median)))


def fit_threshold(scores: NDArray[np.floating], false_positive_rate: float) -> Threshold:
    """Threshold that a share false_positive_rate of normal images exceeds.

    By the scores' quantile where at least EXPECTED_ABOVE of them lie beyond it, else by a generalised Pareto
    distribution fitted to the largest (peaks over threshold: Pickands, 1975; Balkema & de Haan, 1974).

    Raises:
        ValueError: fewer than 2 * MIN_TAIL scores, some not finite, or a rate outside (0, 1).
    """
    x = np.sort(np.asarray(scores, dtype=np.float64))
    if x.ndim != 1 or len(x) < 2 * MIN_TAIL or not np.isfinite(x).all():
        raise ValueError(f"scores of shape {list(x.shape)}, expected at least {2 * MIN_TAIL} finite ones")
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"false_positive_rate is {false_positive_rate}, expected a value in (0, 1)")
    kept = x[x <= outlier_limit(x)] if x[0] < x[-1] else x
    kept = x[: max(len(kept), int(np.ceil(len(x) * (1 - MAX_TRIMMED))))]
    n = len(kept)
    if n * false_positive_rate >= EXPECTED_ABOVE:
        value, method = float(np.quantile(kept, 1 - false_positive_rate)), "quantile"
    else:
        value, method = _tail_quantile(kept, false_positive_rate), "tail"
    return Threshold(float(np.nextafter(value, np.inf)), method, n, len(x) - n)


def _tail_quantile(x: NDArray[np.float64], rate: float) -> float:
    """Threshold with an *expected* exceedance of rate, from a generalised Pareto tail; x is sorted.

    By probability-weighted moments (Hosking & Wallis, 1987, eq. 12-13), steadier than maximum likelihood on so few:
    a0 = mean, a1 = mean of (1 - F) y; shape k = a0 / (a0 - 2 a1) - 2, scale = 2 a0 a1 / (a0 - 2 a1). Their k is -xi.

    The plain quantile, at -log(ratio) mean excesses, is exceeded too often on average, since a tail fitted too short
    costs more than one too long saves. With a0 ~ Gamma(m, 1 / m), the mean of m exponential excesses,
    E exp(-c a0) = (1 + c / m)^-m; so c = m (ratio^(-1/m) - 1) takes the place of -log(ratio).
    """
    n = len(x)
    m = max(MIN_TAIL, int(n * TAIL_SHARE))
    start = x[n - m - 1]
    y = x[n - m :] - start
    if y[-1] <= 0:
        return float(start)
    plotting = (np.arange(1, m + 1) - 0.35) / m
    a0, a1 = float(y.mean()), float(((1 - plotting) * y).mean())
    # xi in [-0.5, 0.5]: variance exists, and no end point falls among the data
    k = float(np.clip(a0 / (a0 - 2 * a1) - 2, -0.5, 0.5)) if a0 > 2 * a1 else 0.5
    k *= m / (m + SHAPE_PRIOR)
    scale = a0 * (1 + k)  # the tail's mean is scale / (1 + k)
    ratio = rate * n / m
    c = m * (ratio ** (-1 / m) - 1)
    excess = scale * c if abs(k) < 1e-6 else scale * -np.expm1(-k * c) / k
    return float(start + excess)
