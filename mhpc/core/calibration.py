"""The threshold for a wanted false-positive rate, from the scores of images that the bank has not learned."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

EXPECTED_ABOVE = 10  # images that a plain quantile wants beyond it
TAIL_SHARE = 0.1  # of the scores, the exceedances that a tail is fitted to
SHAPE_PRIOR = 50  # exceedances that an exponential tail weighs in the shape: alone, few scores fit it far too freely
MIN_TAIL = 10
OUTLIER_DEVIATIONS = 8.0  # robust standard deviations above the median
MAX_TRIMMED = 0.1  # share of the images that may be of defective parts
BODY = (0.15, 0.8)  # quantiles between which normal scores are alone with themselves: few defective parts score so low
BODY_SHAPE = 0.19  # xi, at least; on textures 0.22 finds an eighth fewer defects after a dirty calibration
BODY_ROUNDS = 4
SHAPES, SHAPE_BULK = np.arange(0, 0.51, 0.05), (0.02, 0.85)  # tried for what lies between these quantiles
UNUSUAL = 0.02  # share of good parts that may look unusual; a larger excess is likely of defective ones, and by its
LIGHTER, LIGHTEST = 10.0, 0.03  # share xi is less by so much, down to the second
MAX_CAUTION = 3.0  # the wanted rate is divided by at most so much where the tail is heavy
TRIMMED_EXPECTED = 0.1  # normal images beyond the limit of trimming
CONFIDENCE = 0.95  # of the stated interval
PROVISIONAL = 4.0  # times the wanted rate
MARGIN = 1e-5  # relative; the float32 distances of equal images differ by less
FLOOR = 1e-3  # standard deviations; what lies nearer to the bank in Z-space differs from it by rounding alone
TRACKED = (500, 5000)  # scores that a tracked threshold is fitted to, at least and at most


class Threshold(NamedTuple):
    """Scores above `value` are anomalous.

    Attributes:
        value: in the scores' unit, standard deviations in Z-space; at least FLOOR.
        method: "quantile" of the scores, "tail" fitted to the largest, "body" where these are higher than what the
            tail of the bulk explains, or "bounded" where a tracked one reached its bound.
        n_scores: the estimate is of so many.
        n_trimmed: further scores, too high to be of normal images, were left out.
        rate_low, rate_high: the share of normal images above `value` lies between, with a confidence of CONFIDENCE.
        provisional: the interval is too wide to rely on: `rate_high` exceeds PROVISIONAL times the wanted rate.
    """

    value: float
    method: str
    n_scores: int
    n_trimmed: int
    rate_low: float
    rate_high: float
    provisional: bool


class Body(NamedTuple):
    """Generalised extreme value distribution fitted to the bulk; a share `excess` of the scores is beyond its tail."""

    location: float
    scale: float
    shape: float  # xi
    excess: float

    def isf(self, rate: float) -> float:
        """Score that a share `rate` of normal images exceeds."""
        return self.location + self.scale * float(_extreme_quantile(1 - rate, self.shape))


def outlier_limit(scores: NDArray[np.floating], deviations: float = OUTLIER_DEVIATIONS) -> float:
    """Median + deviations * 1.4826 MAD: scores beyond it do not belong with the rest (Leys et al., 2013)."""
    median = float(np.median(scores))
    return median + deviations * 1.4826 * float(np.median(np.abs(scores - median)))


def fit_threshold(scores: NDArray[np.floating], false_positive_rate: float) -> Threshold:
    """Threshold that a share false_positive_rate of normal images exceeds, from scores [N].

    Up to MAX_TRIMMED of the images may be of defective parts. No rule on the largest scores tells these from normal
    parts of unusual looks, since on textures the two overlap. So the threshold is the lower of two:

    1. The scores' quantile where at least EXPECTED_ABOVE of them lie beyond it, else that of a generalised Pareto
       distribution fitted to the largest (peaks over threshold: Pickands, 1975; Balkema & de Haan, 1974). Defective
       parts raise it. Where m images are in excess of what the bulk explains, these may be normal and the tail heavy;
       too low a threshold floods people with alarms, so the rate is divided by 1 + m, by MAX_CAUTION at most.
    2. The quantile of an extreme value distribution fitted to the bulk (Fisher & Tippett, 1928: scores are maxima over
       patches), which they do not reach. Its tail is as heavy as unusual good parts make it on textures, and heavier
       where the bulk's own shape says so. A few images in excess of it may be such parts; the more there are beyond a
       share UNUSUAL, the likelier they are defective, and the lighter the tail is taken to be.

    Raises:
        ValueError: fewer than 2 * MIN_TAIL scores, some negative or not finite, or a rate outside (0, 1).
    """
    x = _checked(scores, false_positive_rate)
    body = _fit_body(x, max(BODY_SHAPE, _bulk_shape(x)))
    kept = x if body is None else _trimmed(x, body)
    if body is None or false_positive_rate >= 1 - BODY[1]:
        value, method = _plain_threshold(kept, false_positive_rate)
    else:
        unexplained = max(0.0, body.excess * len(x) - (len(x) - len(kept)))
        cautious = false_positive_rate / min(1 + unexplained, MAX_CAUTION)
        value, method = _plain_threshold(kept, cautious)
        if value > (limit := _lighter(x, body).isf(false_positive_rate)):
            value, method = limit, "body"
    return _stated(x, len(kept), body, max(value * (1 + MARGIN), FLOOR), method, false_positive_rate)


def track_threshold(
    calibrated: Threshold, recent_scores: NDArray[np.floating], false_positive_rate: float, bound: float = 0.2
) -> Threshold:
    """Threshold for the newest scores [N], within `bound` (a share) of the calibrated value.

    It follows a slow change of the normal scores. Anomalous parts among the recent are left out as in calibration;
    where they are too many for that, an epidemic of defects, the bound holds, since it is the calibrated value's and
    not the last one's. Keep the newest `tracked_scores(false_positive_rate)`, beginning with calibration's, and
    all of them: without the anomalous the threshold would sink with each refit.

    Raises:
        ValueError: as by `fit_threshold`, or a bound outside (0, 1).
    """
    if not 0 < bound < 1:
        raise ValueError(f"bound is {bound}, expected a value in (0, 1)")
    fitted = fit_threshold(recent_scores, false_positive_rate)
    value = float(np.clip(fitted.value, calibrated.value * (1 - bound), calibrated.value * (1 + bound)))
    if value == fitted.value:
        return fitted
    x = _checked(recent_scores, false_positive_rate)
    body = _fit_body(x, max(BODY_SHAPE, _bulk_shape(x)))
    return _stated(x, fitted.n_scores, body, value, "bounded", false_positive_rate)


def tracked_scores(false_positive_rate: float) -> int:
    """How many recent scores to keep for `track_threshold`: EXPECTED_ABOVE beyond it, within TRACKED."""
    return int(np.clip(math.ceil(EXPECTED_ABOVE / false_positive_rate), *TRACKED))


def _checked(scores: NDArray[np.floating], rate: float) -> NDArray[np.float64]:
    """The scores, sorted."""
    x = np.sort(np.asarray(scores, dtype=np.float64))
    if x.ndim != 1 or len(x) < 2 * MIN_TAIL or not np.isfinite(x).all():
        raise ValueError(f"scores of shape {list(x.shape)}, expected at least {2 * MIN_TAIL} finite ones")
    if x[0] < 0:
        raise ValueError(f"scores down to {x[0]:.6g}, expected distances, which are not negative")
    if not 0 < rate < 1:
        raise ValueError(f"false_positive_rate is {rate}, expected a value in (0, 1)")
    return x


def _extreme_quantile(p: float | NDArray[np.floating], xi: float) -> NDArray[np.float64]:
    """Of the standard generalised extreme value distribution: ((-log p)^-xi - 1) / xi."""
    return -np.asarray(special.boxcox(-np.log(p), -xi))


def _bulk_shape(x: NDArray[np.float64]) -> float:
    """The xi of SHAPES whose probability plot of the bulk of sorted scores x [N] is straightest (Filliben, 1975)."""
    n = len(x)
    i = np.arange(int(n * SHAPE_BULK[0]), int(n * SHAPE_BULK[1]))
    plots = [
        np.corrcoef(_extreme_quantile((i + 0.6) / (n + 0.2), xi), x[i])[0, 1] for xi in SHAPES if x[i[-1]] > x[i[0]]
    ]
    return float(SHAPES[np.argmax(plots)]) if plots else BODY_SHAPE


def _fit_body(x: NDArray[np.float64], shape: float) -> Body | None:
    """Fit sorted scores x [N] by their probability plot between the quantiles BODY; None where that says nothing.

    The share of scores in excess of the tail is sup (S_n - S) over the largest, S_n their empirical survival function;
    since it moves the quantiles, the fit is repeated among 1 - excess of the scores. Equal scores have no scale, and
    where more than MAX_TRIMMED of them are in excess, it is no minority of defective parts but another product, say. Of
    that much may score below the largest tenth: it is looked for in the upper half, by two standard deviations of such
    a share more, since half of the scores go so far by chance sooner than a tenth.
    """
    n, excess = len(x), 0.0
    top = x[n // 2 :]
    survival = np.arange(len(top), 0, -1) / n
    largest = int(n * (1 - MAX_TRIMMED)) - 1 - n // 2
    by_chance = 2 * math.sqrt(MAX_TRIMMED * (1 - MAX_TRIMMED) / n)
    for _ in range(BODY_ROUNDS):
        m = n * (1 - excess)
        i = np.arange(int(m * BODY[0]), int(m * BODY[1]))
        z = _extreme_quantile((i + 0.6) / (m + 0.2), shape)
        (zz, zx), _ = np.cov(z, x[i])  # least squares; scipy's linregress takes ten times as long
        scale = zx / zz
        if not scale > 0:
            return None
        location = x[i].mean() - scale * z.mean()
        beyond = survival - stats.genextreme.sf(top, -shape, location, scale)
        excess = max(0.0, float(beyond[largest:].max()))
        if max(excess, float(beyond.max()) - by_chance) > MAX_TRIMMED:
            return None
    return Body(float(location), float(scale), shape, excess)


def _lighter(x: NDArray[np.float64], body: Body) -> Body:
    """The body of sorted scores x [N] with a tail as light as what is in excess of it suggests."""
    defective = max(0.0, body.excess - UNUSUAL)
    if not defective:
        return body
    return _fit_body(x, max(body.shape - LIGHTER * defective, LIGHTEST)) or body


def _trimmed(x: NDArray[np.float64], body: Body) -> NDArray[np.float64]:
    """Sorted scores x without those beyond what TRIMMED_EXPECTED of all images reach, MAX_TRIMMED at most."""
    n = len(x)
    kept = int(np.searchsorted(x, body.isf(TRIMMED_EXPECTED / n), side="right"))
    return x[: max(kept, math.ceil(n * (1 - MAX_TRIMMED)))]


def _stated(x: NDArray[np.float64], n: int, body: Body | None, value: float, method: str, rate: float) -> Threshold:
    """A threshold at `value` with its interval, n of the sorted scores x being kept.

    Of order statistics (Wilks, 1941): k of n scores above give Beta(k, n - k + 1) and Beta(k + 1, n - k). They hold for
    a fitted value too, which lies between two order statistics. Those above may all be normal; at the lower end those
    in excess of the lightest tail, and two standard deviations of their number more, are taken as defective.
    """
    above, suspected = int((x[:n] > value).sum()), 0
    if body is not None:
        lightest = _fit_body(x, LIGHTEST) or body
        excess = max(body.excess, lightest.excess) * len(x)
        suspected = math.ceil(excess + 2 * math.sqrt(excess)) - (len(x) - n)
    fewest = max(0, above - max(0, suspected))
    error = (1 - CONFIDENCE) / 2
    low = float(stats.beta.ppf(error, fewest, n - fewest + 1)) if fewest else 0.0
    high = float(stats.beta.isf(error, above + 1, n - above)) if above < n else 1.0
    return Threshold(float(value), method, n, len(x) - n, low, high, high > PROVISIONAL * rate)


def _plain_threshold(x: NDArray[np.float64], rate: float) -> tuple[float, str]:
    """Threshold that a share rate of all sorted scores x [N] exceeds, and by which method."""
    if len(x) * rate >= EXPECTED_ABOVE:
        return float(np.quantile(x, 1 - rate)), "quantile"
    return _tail_quantile(x, rate), "tail"


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
