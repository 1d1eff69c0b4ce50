"""Figures of merit: of image scores, and of anomaly maps against masks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

AUPRO_LIMIT = 0.3  # false-positive rate up to which the curve counts (Bergmann et al., 2021, section 6.2)
EIGHT_CONNECTED = np.ones((3, 3), dtype=np.int64)  # as in the authors' evaluation code


class PixelFigures(NamedTuple):
    """`auroc` over all pixels; `aupro`, see `pixel_figures`."""

    auroc: float
    aupro: float


class Decisions(NamedTuple):
    """What a threshold decides: `f1` of the defective class, `false_positive_rate` among the good pictures."""

    f1: float
    false_positive_rate: float


def image_auroc(scores: ArrayLike, is_anomaly: ArrayLike) -> float:
    """Area under the ROC curve of scores [N]: the chance that a defective picture scores above a good one.

    Raises:
        ValueError: not [N] each, scores that are not finite, or one class alone.
    """
    return float(roc_auc_score(*_checked(scores, is_anomaly)))


def image_average_precision(scores: ArrayLike, is_anomaly: ArrayLike) -> float:
    """Average precision of scores [N], the area under the precision-recall curve as a step function.

    Raises:
        ValueError: as `image_auroc`.
    """
    return float(average_precision_score(*_checked(scores, is_anomaly)))


def decisions(scores: ArrayLike, is_anomaly: ArrayLike, threshold: float) -> Decisions:
    """F1 and false-positive rate where scores [N] above the threshold are called anomalous.

    Raises:
        ValueError: as `image_auroc`.
    """
    y, s = _checked(scores, is_anomaly)
    called = s > threshold
    return Decisions(float(f1_score(y, called, zero_division=0.0)), float(called[~y].mean()))


def pixel_figures(
    maps: Sequence[NDArray[np.floating]], masks: Sequence[NDArray[np.bool_]], limit: float = AUPRO_LIMIT
) -> PixelFigures:
    """Pixel AUROC and AUPRO of anomaly maps, each [H, W], against masks of the same shape, True where defective.

    AUPRO (Bergmann et al., 2021, "The MVTec Anomaly Detection Dataset", section 6.2): at each threshold the share of
    each ground-truth region that is found, averaged over the 8-connected regions whatever their size, as a curve over
    the false-positive rate of the sound pixels; its area up to `limit`, divided by `limit`.

    Both areas are means over the defective pixels: one that scores s is on the curve from the rate F(s) of sound pixels
    above it onwards, so it adds the length of [F(s), limit]; AUROC's limit is 1, and its weights are equal. So one sort
    of the sound pixels serves both, and no curve is kept: about 5 bytes a pixel beside the maps.

    Raises:
        ValueError: shapes that differ, maps that are not finite, or masks without a defective or a sound pixel.
    """
    _check_pixels(maps, masks)
    sound = np.concatenate([np.asarray(s, np.float32)[~m] for s, m in zip(maps, masks, strict=True)])
    sound.sort()
    found, weights = [], []
    for scores, mask in zip(maps, masks, strict=True):
        regions, n = label(mask, EIGHT_CONNECTED)
        of = regions[mask] - 1
        found.append(np.asarray(scores, np.float32)[mask])
        weights.append(1 / np.bincount(of, minlength=n)[of])  # a region's pixels weigh 1 together
    s, w = np.concatenate(found), np.concatenate(weights)
    aupro = float(np.average(_lengths(s, sound, limit), weights=w)) / limit
    return PixelFigures(float(_lengths(s, sound, 1.0).mean()), aupro)


def _lengths(s: NDArray[np.float32], sound: NDArray[np.float32], limit: float) -> NDArray[np.float64]:
    """What each defective pixel of score s adds to the area under the curve over rates [0, limit]; sound is sorted.

    Sound pixels of the very same score make the curve rise linearly from rate a to b (the trapezoidal rule).
    """
    N = len(sound)
    a = (N - np.searchsorted(sound, s, "right")) / N
    b = (N - np.searchsorted(sound, s, "left")) / N
    cut = np.clip(limit - a, 0, None)
    rising = cut**2 / (2 * np.maximum(b - a, 1 / N))
    lengths: NDArray[np.float64] = np.where(b <= limit, limit - (a + b) / 2, rising)
    return lengths


def _checked(scores: ArrayLike, is_anomaly: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(is_anomaly).astype(bool)
    if s.ndim != 1 or s.shape != y.shape:
        raise ValueError(f"scores have shape {list(s.shape)}, labels {list(y.shape)}; expected [N] each")
    if not np.isfinite(s).all():
        raise ValueError(f"{int((~np.isfinite(s)).sum())} of {len(s)} scores are NaN or infinite, expected finite ones")
    if y.all() or not y.any():
        raise ValueError(f"{int(y.sum())} of {len(y)} pictures are defective; expected good and defective ones")
    return y, s


def _check_pixels(maps: Sequence[NDArray[np.floating]], masks: Sequence[NDArray[np.bool_]]) -> None:
    if len(maps) != len(masks):
        raise ValueError(f"{len(maps)} maps came with {len(masks)} masks, expected one for each")
    for scores, mask in zip(maps, masks, strict=True):
        if scores.shape != mask.shape or scores.ndim != 2:
            raise ValueError(f"a map has shape {list(scores.shape)}, its mask {list(mask.shape)}; expected [H, W] each")
        if mask.dtype != np.bool_:
            raise ValueError(f"a mask is {mask.dtype}, expected bool, True where defective")
        if not np.isfinite(scores).all():
            raise ValueError("a map holds NaN or infinite values, expected finite ones")
    n, total = sum(int(mask.sum()) for mask in masks), sum(mask.size for mask in masks)
    if n in (0, total):
        raise ValueError(f"{n} of {total} pixels are defective in the masks; expected defective and sound ones")
