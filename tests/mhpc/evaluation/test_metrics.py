"""Cases worked by hand, and a slow literal version of the papers' definitions."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import label
from sklearn.metrics import roc_auc_score

from mhpc.evaluation.metrics import decisions, image_auroc, image_average_precision, pixel_figures


def mask_of(*rows: str) -> NDArray[np.bool_]:
    return np.array([[c == "#" for c in row] for row in rows])


def literal_aupro(maps: list[NDArray[np.float32]], masks: list[NDArray[np.bool_]], limit: float) -> float:
    """Every threshold in turn, each region's overlap, and the trapezoidal rule, cut off at the limit."""
    regions = []
    for i, mask in enumerate(masks):
        numbered, n = label(mask, np.ones((3, 3)))
        regions += [(i, numbered == k) for k in range(1, n + 1)]
    sound = sum(int((~mask).sum()) for mask in masks)
    x, y = [0.0], [0.0]
    for t in sorted({float(v) for scores in maps for v in scores.ravel()}, reverse=True):
        called = [scores >= t for scores in maps]
        x.append(sum(int((c & ~mask).sum()) for c, mask in zip(called, masks, strict=True)) / sound)
        y.append(float(np.mean([called[i][region].mean() for i, region in regions])))
    inside = [i for i, rate in enumerate(x) if rate < limit]
    xs, ys = [x[i] for i in inside], [y[i] for i in inside]
    last = inside[-1]
    share = (limit - x[last]) / (x[last + 1] - x[last])
    xs.append(limit)
    ys.append(y[last] + share * (y[last + 1] - y[last]))
    return float(np.trapezoid(ys, xs)) / limit


def test_image_figures_by_hand() -> None:
    scores, labels = [0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]
    assert image_auroc(scores, labels) == pytest.approx(0.75)  # 3 of 4 pairs in order
    assert image_average_precision(scores, labels) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_decisions_by_hand() -> None:
    scores, labels = [1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 1, 0, 1]
    found = decisions(scores, labels, threshold=2.5)  # 2 right, 1 false alarm, none missed
    assert found.f1 == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert found.false_positive_rate == pytest.approx(1 / 3)
    assert decisions(scores, labels, threshold=5.0) == (0.0, 0.0)  # a score at the threshold is not above it


def test_a_perfect_map_has_an_aupro_of_one() -> None:
    mask = mask_of("##..", "....", "...#")
    assert pixel_figures([mask.astype(np.float32)], [mask]) == (1.0, 1.0)


def test_a_map_that_is_flat_has_half_of_the_limit_for_aupro() -> None:
    mask = mask_of("##..", "....")
    auroc, aupro = pixel_figures([np.zeros((2, 4), np.float32)], [mask])
    assert auroc == pytest.approx(0.5)
    assert aupro == pytest.approx(0.15)  # the curve is the diagonal: 0.3 * 0.3 / 2 / 0.3


def test_each_region_counts_the_same_whatever_its_size() -> None:
    mask = mask_of("####....", "####....", "........", ".......#")
    found = np.zeros((4, 8), np.float32)
    found[:2, :4] = 2  # the large region at once, the small one only after all sound pixels
    found[3, 7] = -1
    auroc, aupro = pixel_figures([found], [mask])
    assert aupro == pytest.approx(0.5)
    assert auroc == pytest.approx(8 / 9)


def test_pixels_that_touch_by_a_corner_are_one_region() -> None:
    mask = mask_of("#....", ".#...", "....#")
    found = np.zeros((3, 5), np.float32)
    found[0, 0] = found[1, 1] = 1
    found[2, 4] = -1
    assert pixel_figures([found], [mask]).aupro == pytest.approx(0.5)  # 2 / 3, were the corners two regions


def test_aupro_by_hand_where_the_curve_is_cut_in_a_step() -> None:
    mask = mask_of("##", "..", "..", "..", "..", "..")  # ten sound pixels
    found = np.array([[9, 3], [5, 5], [5, 5], [1, 1], [1, 1], [1, 1]], np.float32)
    # 9: half of the region at rate 0; 5: four sound pixels, rate 0.4, so up to 0.3 the overlap stays at one half
    assert pixel_figures([found], [mask]).aupro == pytest.approx(0.5)
    # up to 0.6: one half to rate 0.4; at 0.4 it rises to 1 and stays there
    assert pixel_figures([found], [mask], limit=0.6).aupro == pytest.approx((0.4 * 0.5 + 0.2 * 1) / 0.6)


@pytest.mark.parametrize("levels", [3, 20, 10_000])
@pytest.mark.parametrize("limit", [0.05, 0.3, 0.999])
def test_figures_agree_with_the_literal_version_with_ties_or_without(levels: int, limit: float) -> None:
    rng = np.random.default_rng(levels)
    masks = [rng.random((12, 15)) < 0.15, np.zeros((12, 15), bool), rng.random((12, 15)) < 0.05]
    maps = [(rng.integers(0, levels, m.shape) + m * levels // 4).astype(np.float32) for m in masks]
    auroc, aupro = pixel_figures(maps, masks, limit)
    assert aupro == pytest.approx(literal_aupro(maps, masks, limit), abs=1e-12)
    truth, scores = (np.concatenate([a.ravel() for a in arrays]) for arrays in (masks, maps))
    assert auroc == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)


def test_maps_may_differ_in_shape_among_each_other() -> None:
    masks = [mask_of("#..", "..."), mask_of("....", "..##", "....")]
    maps = [m + np.linspace(0, 0.9, m.size, dtype=np.float32).reshape(m.shape) for m in masks]
    assert pixel_figures(maps, masks) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("scores", "labels", "complaint"),
    [
        ([1.0, 2.0], [0, 0], "0 of 2 pictures are defective"),
        ([1.0, 2.0], [1, 1], "2 of 2 pictures are defective"),
        ([1.0, np.nan], [0, 1], "1 of 2 scores are NaN or infinite"),
        ([1.0, 2.0], [0, 1, 1], r"scores have shape \[2\], labels \[3\]"),
    ],
)
def test_image_figures_refuse_what_has_no_answer(scores: list[float], labels: list[int], complaint: str) -> None:
    for figure in (image_auroc, image_average_precision):
        with pytest.raises(ValueError, match=complaint):
            figure(scores, labels)
    with pytest.raises(ValueError, match=complaint):
        decisions(scores, labels, 1.5)


def test_pixel_figures_refuse_what_has_no_answer() -> None:
    mask, scores = mask_of("#."), np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match="1 maps came with 2 masks"):
        pixel_figures([scores], [mask, mask])
    with pytest.raises(ValueError, match=r"a map has shape \[2, 1\], its mask \[1, 2\]"):
        pixel_figures([scores.T], [mask])
    with pytest.raises(ValueError, match="a mask is uint8, expected bool"):
        pixel_figures([scores], [mask.astype(np.uint8)])
    with pytest.raises(ValueError, match="0 of 2 pixels are defective"):
        pixel_figures([scores], [~mask & mask])
    with pytest.raises(ValueError, match="NaN or infinite"):
        pixel_figures([scores + np.nan], [mask])
