"""Whether the images of late are still those that a model was calibrated on: two-sample distances with a level."""

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from mhpc.core.calibration import FLOOR, MARGIN, MAX_TRIMMED, fit_threshold
from mhpc.linalg import check_state, check_tensor

ANOMALOUS_RATE = 0.01  # of normal images, that are left out with the anomalous
LOOKS = 4  # a window is looked at so many times while it passes

Array = NDArray[np.float64]


class DriftMonitor:
    """Compares the images of late with those of calibration, by their scores and by their means in Z-space.

    Scores: the Kolmogorov-Smirnov distance between the two samples. Means z of an image's whitened features, averaged
    over its patches, see what scores do not, such as a change of brightness that the bank still covers: with
    m recent images, n of calibration, and s_j the deviation of component j among the latter,

        Q = sum_j (difference of means_j / s_j)^2 / (d (1 / m + 1 / n)),

    Hotelling's T^2 (1931) with a diagonal covariance (Srivastava & Du, 2008, "A test for the mean vector with fewer
    observations than the dimension", eq. 2.2), which n below d allows, and which on real parts under changing light was
    more powerful than one with a shrunk covariance. Its level is that of a weighted sum of chi^2, the weights being the
    eigenvalues of the means' correlation, by its first three moments (Buckley & Eagleson, 1988, "An approximation to
    the distribution of quadratic forms in normal random variables").

    An anomalous part is no drift. Images that score above a limit, which 1 % of calibration's exceed, are left out on
    both sides, so that the distances are between what remains; of the recent a tenth at most, so that a change of all
    images is seen.

    Args:
        window: m, the recent images that are compared; a look is taken each LOOKS-th of it.
        false_alarm_rate: per image of a stationary stream of independent images; 1e-6 is a false alarm in a million.

    Attributes:
        drift_: the larger of the two distances at the last look, in units of its level: above 1 is an alarm; 0 until
            the window has been full.
        score_drift_, mean_drift_: each of them.
    """

    def __init__(self, window: int = 256, false_alarm_rate: float = 1e-6) -> None:
        self.window = window
        self.false_alarm_rate = false_alarm_rate

    @property
    def drift_(self) -> float:
        return max(self.score_drift_, self.mean_drift_)

    @property
    def alarm_(self) -> bool:
        return self.drift_ > 1

    def fit(self, scores: Tensor, means: Tensor | None = None) -> "DriftMonitor":
        """Take calibration's scores [n] and means [n, d] in Z-space; without means only scores are compared.

        Raises:
            ValueError: fewer than 20 images, scores that are negative, values that are not finite, shapes that do not
                match, or settings out of range.
        """
        if self.window < 2 * LOOKS:
            raise ValueError(f"window is {self.window}, expected at least {2 * LOOKS} images")
        if not 0 < self.false_alarm_rate * self.window < 1:
            raise ValueError(
                f"false_alarm_rate is {self.false_alarm_rate} per image, expected less than one in a window "
                f"of {self.window}, and more than 0"
            )
        s, z = _checked(scores, means, None)
        self.limit_ = fit_threshold(s, ANOMALOUS_RATE).value
        normal = _normal(s, self.limit_)
        self.scores_, z = np.sort(s[normal]), z[normal]
        n, d = z.shape
        self.mean_ = z.mean(0)
        self.scale_ = np.maximum(z.std(0, ddof=1), FLOOR)
        y = (z - self.mean_) / self.scale_
        # of R = y^T y / (n - 1), by the smaller side; components that do not vary are left with nothing
        eigenvalues = np.linalg.eigvalsh(y.T @ y if d < n else y @ y.T) / (n - 1)
        second, third = float((eigenvalues**2).sum()), float((eigenvalues**3).sum())
        self.freedom_ = second**3 / third**2 if third > 0 else 1.0
        self.spread_ = math.sqrt(2 * second) / d if third > 0 else math.sqrt(2)
        return self.reset()

    def reset(self) -> "DriftMonitor":
        """Forget the recent images, not calibration's."""
        self.recent_scores_ = np.empty(0)
        self.recent_means_ = np.empty((0, len(self.mean_)))
        self.since_look_ = 0
        self.score_drift_ = self.mean_drift_ = 0.0
        return self

    def update(self, scores: Tensor, means: Tensor | None = None) -> "DriftMonitor":
        """Take scores [m] and means [m, d] of the newest images, in any batches: looks fall after the same images.

        Raises:
            ValueError: as by `fit`, or means that are missing or of another d than calibration's.
        """
        s, z = _checked(scores, means, len(self.mean_))
        stride = self.window // LOOKS
        while len(s):
            room = stride - self.since_look_
            self.recent_scores_ = np.concatenate([self.recent_scores_, s[:room]])[-self.window :]
            self.recent_means_ = np.concatenate([self.recent_means_, z[:room]])[-self.window :]
            self.since_look_ += len(s[:room])
            s, z = s[room:], z[room:]
            if self.since_look_ == stride:
                self.since_look_ = 0
                if len(self.recent_scores_) == self.window:
                    self._look()
        return self

    def _look(self) -> None:
        error = self.false_alarm_rate * (self.window // LOOKS) / 2  # of each of two distances
        normal = _normal(self.recent_scores_, self.limit_)
        s, z = self.recent_scores_[normal], self.recent_means_[normal]
        share = 1 / len(s) + 1 / len(self.scores_)
        self.score_drift_ = _score_distance(s, self.scores_) / (_kolmogorov_level(error) * math.sqrt(share))
        if len(self.mean_):
            q = float(np.square((z.mean(0) - self.mean_) / self.scale_).mean()) / share
            self.mean_drift_ = math.sqrt(q / self._mean_level(error))

    def _mean_level(self, error: float) -> float:
        """Q that a share `error` of looks exceeds: mean 1, as chi^2 of Buckley & Eagleson (1988), deviations estimated.

        t^2 of n images has the mean (n - 1) / (n - 3), and F's second degrees of freedom are those of all deviations.
        """
        n, freedom = len(self.scores_), self.freedom_
        chi2 = freedom * _f_level(error, freedom, freedom * (n - 1))
        return (n - 1) / (n - 3) * (1 + self.spread_ * (chi2 - freedom) / math.sqrt(2 * freedom))

    def state_dict(self) -> dict[str, Tensor]:
        """All that it knows, on the CPU: n + window numbers, and window + 2 times d."""
        counts = [
            self.since_look_,
            self.limit_,
            self.freedom_,
            self.spread_,
            self.score_drift_,
            self.mean_drift_,
        ]
        arrays = {
            "scores": self.scores_,
            "mean": self.mean_,
            "scale": self.scale_,
            "recent_scores": self.recent_scores_,
            "recent_means": self.recent_means_,
            "counts": np.array(counts),
        }
        return {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> "DriftMonitor":
        """Continue from another one's `state_dict`; of a longer window the newest images are kept.

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        shapes: dict[str, tuple[int | str, ...]] = {
            "scores": ("n",), "mean": ("d",), "scale": ("d",),
            "recent_scores": ("m",), "recent_means": ("m", "d"), "counts": (6,),
        }  # fmt: skip
        arrays = [tensor.double().cpu().numpy().copy() for tensor in check_state(state, shapes)]
        self.scores_, self.mean_, self.scale_, scores, means, counts = arrays
        self.recent_scores_, self.recent_means_ = scores[-self.window :], means[-self.window :]
        since, self.limit_, self.freedom_, self.spread_, self.score_drift_, self.mean_drift_ = counts.tolist()
        self.since_look_ = int(since) % (self.window // LOOKS)
        return self


# Each look asks for the same two; scipy takes 0.1 ms for either.
@lru_cache(256)
def _kolmogorov_level(error: float) -> float:
    return float(stats.kstwobign.isf(error))


@lru_cache(256)
def _f_level(error: float, n: float, m: float) -> float:
    return float(stats.f.isf(error, n, m))


def _normal(scores: Array, limit: float) -> NDArray[np.bool_]:
    """Which images [m] are taken as normal: all but those above the limit, of which the largest tenth at most."""
    allowed = int(MAX_TRIMMED * len(scores))
    normal = np.ones(len(scores), dtype=bool)
    largest = np.argsort(scores, kind="stable")[len(scores) - allowed :]
    normal[largest] = scores[largest] <= limit
    return normal


def _score_distance(recent: Array, reference: Array) -> float:
    """Kolmogorov-Smirnov distance between scores [m] and [n] that differ by more than rounding.

    Scores of equal images are equal up to rounding, which must not tell the two samples apart: so either one-sided
    distance is of recent scores that lie nearer to the others by so much.
    """
    rounding = max(FLOOR, MARGIN * float(np.median(reference)))
    return max(_one_sided(reference, recent - rounding), _one_sided(recent + rounding, reference))


def _one_sided(a: Array, b: Array) -> float:
    """sup(F_a - F_b) over the distribution functions of samples a [m] and b [n], without the p-value of scipy's
    `ks_2samp`, which takes ten times as long."""
    at = np.concatenate([a, b])
    shares = (np.sort(sample).searchsorted(at, side="right") / len(sample) for sample in (a, b))
    return float(max(0.0, np.subtract(*shares).max()))


def _checked(scores: Tensor, means: Tensor | None, d: int | None) -> tuple[Array, Array]:
    """Scores [m] and means [m, d] in float64; no means are d = 0."""
    check_tensor(scores, "scores")
    s = scores.detach().cpu().double().numpy()
    if means is None:
        means = torch.empty(len(scores) if scores.ndim else 0, 0)
    check_tensor(means, "means")
    z = means.detach().cpu().double().numpy()
    if s.ndim != 1 or z.ndim != 2 or len(s) != len(z) or (d is not None and z.shape[1] != d):
        raise ValueError(
            f"scores {list(s.shape)} and means {list(z.shape)}, expected [m] and [m, {'d' if d is None else d}]"
        )
    if not (np.isfinite(s).all() and np.isfinite(z).all()):
        raise ValueError(f"scores {list(s.shape)} or means {list(z.shape)} hold NaN or infinite values")
    if len(s) and s.min() < 0:
        raise ValueError(f"scores down to {s.min():.6g}, expected distances, which are not negative")
    return s, z
