from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mhpc.core.calibration import (
    FLOOR,
    MAX_TRIMMED,
    TRACKED,
    Threshold,
    fit_threshold,
    outlier_limit,
    track_threshold,
    tracked_scores,
)

NORMAL_SCORES = {
    "gamma": stats.gamma(20),
    "lognormal": stats.lognorm(0.3),
    "normal": stats.norm(10, 1),
}
HEAVY_TAILED = {"student": stats.t(5, loc=30), "lognormal, wide": stats.lognorm(0.6)}
# as textures give them: one in a hundred good parts looks unusual and scores as defects do
TEXTURE = (stats.gumbel_r(9.3, 0.6), stats.norm(14, 1), 0.01)
REPEATS = 200


def drawn(distribution: Any, n: int, seed: int) -> NDArray[np.float64]:
    scores: NDArray[np.float64] = distribution.rvs(n, random_state=seed)
    return scores


def texture(n: int, seed: int) -> NDArray[np.float64]:
    body, unusual, share = TEXTURE
    return np.where(np.random.default_rng(seed).random(n) < share, drawn(unusual, n, seed), drawn(body, n, seed))


def texture_rate(value: float) -> float:
    body, unusual, share = TEXTURE
    return float((1 - share) * body.sf(value) + share * unusual.sf(value))


def defects(n: int, seed: int) -> NDArray[np.float64]:
    return drawn(stats.norm(13, 1.8), n, seed)


def fitted(distribution: Any, n: int, rate: float) -> tuple[NDArray[np.float64], list[Threshold]]:
    """False-positive rates on fresh images, of REPEATS calibrations, and these."""
    thresholds = [fit_threshold(drawn(distribution, n, seed), rate) for seed in range(REPEATS)]
    return np.array([distribution.sf(threshold.value) for threshold in thresholds]), thresholds


@pytest.mark.parametrize("name", NORMAL_SCORES)
@pytest.mark.parametrize(("n", "rate"), [(5000, 0.01), (2000, 0.01), (500, 0.05), (40, 0.3)])
def test_with_many_images_the_rate_is_the_wanted_on_average(name: str, n: int, rate: float) -> None:
    found, thresholds = fitted(NORMAL_SCORES[name], n, rate)
    assert {t.method for t in thresholds} <= {"quantile", "tail", "body"}
    assert rate * 0.9 < found.mean() < rate * 1.15


@pytest.mark.parametrize("name", NORMAL_SCORES)
@pytest.mark.parametrize(
    ("n", "rate", "within"),
    [(500, 0.01, 1.2), (200, 0.01, 1.3), (100, 0.01, 1.3), (40, 0.02, 1.5), (500, 0.001, 1.5)],
)
def test_with_few_images_the_rate_is_near_the_wanted_on_average(name: str, n: int, rate: float, within: float) -> None:
    found, thresholds = fitted(NORMAL_SCORES[name], n, rate)
    assert {t.method for t in thresholds} <= {"tail", "body"}
    assert rate / within < found.mean() < rate * within


@pytest.mark.parametrize("name", HEAVY_TAILED)
@pytest.mark.parametrize(("n", "rate"), [(2000, 0.01), (500, 0.01), (200, 0.05), (200, 0.02), (200, 0.01)])
def test_heavy_tails_keep_the_rate_within_one_and_a_half_times_on_average(name: str, n: int, rate: float) -> None:
    found, _ = fitted(HEAVY_TAILED[name], n, rate)
    assert rate / 1.5 < found.mean() < 1.5 * rate


@pytest.mark.parametrize("name", [*NORMAL_SCORES, *HEAVY_TAILED])
@pytest.mark.parametrize(("n", "rate"), [(200, 0.05), (200, 0.02), (200, 0.01), (500, 0.001)])
def test_the_stated_interval_holds_the_realised_rate(name: str, n: int, rate: float) -> None:
    found, thresholds = fitted((NORMAL_SCORES | HEAVY_TAILED)[name], n, rate)
    covered = [t.rate_low <= realised <= t.rate_high for t, realised in zip(thresholds, found, strict=True)]
    assert np.mean(covered) >= 0.93


@pytest.mark.parametrize("rate", [0.05, 0.02, 0.01])
def test_on_textures_with_unusual_good_parts_rate_and_interval_hold(rate: float) -> None:
    thresholds = [fit_threshold(texture(200, seed), rate) for seed in range(REPEATS)]
    found = np.array([texture_rate(t.value) for t in thresholds])
    assert rate / 1.5 < found.mean() < 1.5 * rate
    assert np.mean([t.rate_low <= q <= t.rate_high for t, q in zip(thresholds, found, strict=True)]) >= 0.9


class Recall(NamedTuple):
    """Mean share of unseen defects found at 0.01: by a clean calibration, by one with 5 % defects, by its quantile."""

    clean: float
    dirty: float
    quantile: float


@pytest.fixture(scope="module")
def calibrations() -> list[tuple[Threshold, Threshold, float]]:
    """From 200 textures, from 190 of them and ten defects, and the plain quantile of the latter."""
    found = []
    for seed in range(100):
        good = texture(200, seed)
        mixed = np.concatenate([good[10:], defects(10, 1000 + seed)])
        found.append((fit_threshold(good, 0.01), fit_threshold(mixed, 0.01), float(np.quantile(mixed, 0.99))))
    return found


@pytest.fixture(scope="module")
def recall(calibrations: list[tuple[Threshold, Threshold, float]]) -> Recall:
    unseen = defects(2000, seed=5000)
    values = [(clean.value, dirty.value, quantile) for clean, dirty, quantile in calibrations]
    return Recall(*(float(np.mean([(unseen > v).mean() for v in column])) for column in zip(*values, strict=True)))


def test_defective_parts_among_the_images_neither_raise_the_threshold_above_the_defects_nor_void_it(
    recall: Recall, calibrations: list[tuple[Threshold, Threshold, float]]
) -> None:
    assert recall.clean > 0.5
    assert recall.dirty > 0.9 * recall.clean
    assert recall.dirty > 2 * recall.quantile
    found = [texture_rate(dirty.value) for _, dirty, _ in calibrations]
    held = [t.rate_low <= q <= t.rate_high for (_, t, _), q in zip(calibrations, found, strict=True)]
    assert max(found) < 0.05
    assert np.mean(held) >= 0.9


@pytest.mark.parametrize("rate", [0.05, 0.01, 0.001])
def test_five_percent_of_gross_outliers_do_not_move_it(rate: float) -> None:
    scores = drawn(NORMAL_SCORES["gamma"], 950, seed=0)
    outliers = np.random.default_rng(1).uniform(100, 1000, 50)
    clean, dirty = fit_threshold(scores, rate), fit_threshold(np.concatenate([outliers, scores]), rate)
    assert (clean.n_scores, clean.n_trimmed, dirty.n_scores, dirty.n_trimmed) == (950, 0, 950, 50)
    np.testing.assert_allclose(dirty.value, clean.value, rtol=1e-3)
    assert not dirty.provisional or clean.provisional


@pytest.mark.parametrize("share", [0.15, 0.3])
def test_what_is_more_than_a_tenth_is_no_defect(share: float) -> None:
    others = int(1000 * share)
    scores = np.concatenate([drawn(NORMAL_SCORES["gamma"], 1000 - others, seed=0), np.full(others, 1e3)])
    threshold = fit_threshold(scores, 0.05)
    assert threshold.n_trimmed <= MAX_TRIMMED * 1000
    assert threshold.value >= 1e3


@pytest.mark.parametrize(("share", "higher"), [(0.15, (5, 0.4)), (0.2, (5, 0.4)), (0.25, (5, 0.4)), (0.2, (3, 0.3))])
def test_a_rarer_product_that_scores_higher_is_not_taken_for_defects(share: float, higher: tuple[float, float]) -> None:
    one, other, n = stats.norm(2, 0.2), stats.norm(*higher), int(500 * share)
    scores = [np.concatenate([drawn(one, 500 - n, seed), drawn(other, n, 1000 + seed)]) for seed in range(50)]
    values = np.array([fit_threshold(x, 0.01).value for x in scores])
    assert np.mean((1 - share) * one.sf(values) + share * other.sf(values)) < 1.5 * 0.01


@pytest.mark.parametrize(("n", "share"), [(30, 0.06), (50, 0.08), (100, 0.08), (100, 0.1), (200, 0.1)])
def test_up_to_a_tenth_of_defects_do_not_hide_themselves_in_few_images_either(n: int, share: float) -> None:
    bad = round(n * share)
    good, defects = stats.gamma(9), stats.norm(40)
    scores = [np.concatenate([drawn(good, n - bad, seed), drawn(defects, bad, 999 + seed)]) for seed in range(60)]
    assert np.mean([fit_threshold(x, 0.01).value > 43 for x in scores]) <= 0.05  # above all of them


def test_two_products_of_which_one_scores_higher_are_both_normal() -> None:
    scores = np.concatenate([drawn(stats.norm(5, 0.3), 100, 0), drawn(stats.norm(9, 0.3), 100, 1)])
    threshold = fit_threshold(scores, 0.01)
    assert threshold.n_trimmed == 0
    assert 9.4 < threshold.value < 11


@pytest.mark.parametrize(("n", "rate", "provisional"), [(500, 0.01, False), (2000, 0.01, False), (500, 0.001, True)])
def test_a_threshold_is_provisional_where_too_few_images_tell_its_rate(n: int, rate: float, provisional: bool) -> None:
    _, thresholds = fitted(NORMAL_SCORES["lognormal"], n, rate)
    assert np.mean([t.provisional is provisional for t in thresholds]) > 0.98


def test_more_images_narrow_the_interval() -> None:
    widths = [t.rate_high - t.rate_low for n in (50, 200, 1000, 5000) for t in [fit_threshold(texture(n, 0), 0.05)]]
    assert widths == sorted(widths, reverse=True)


def test_a_smaller_rate_gives_a_higher_threshold() -> None:
    scores = drawn(NORMAL_SCORES["gamma"], 500, seed=0)
    values = [fit_threshold(scores, rate).value for rate in (0.3, 0.1, 0.05, 0.015, 0.005, 0.001, 1e-5)]
    assert values == sorted(values)
    assert len(set(values)) == 7


@pytest.mark.parametrize("scale", [1e-2, 1e6])  # smaller ones meet FLOOR, a test below
@pytest.mark.parametrize("rate", [0.05, 0.001])
def test_the_threshold_scales_with_the_scores(rate: float, scale: float) -> None:
    scores = drawn(NORMAL_SCORES["gamma"], 500, seed=0)
    np.testing.assert_allclose(
        fit_threshold(scores * scale, rate).value, fit_threshold(scores, rate).value * scale, rtol=1e-9
    )


def test_the_outlier_limit_is_a_robust_deviation_above_the_median() -> None:
    scores = np.append(drawn(NORMAL_SCORES["normal"], 20_000, seed=0), np.full(100, 1e9))
    np.testing.assert_allclose(outlier_limit(scores, deviations=3), 13, atol=0.1)


def test_the_order_of_scores_does_not_matter_and_they_stay_as_they_were() -> None:
    scores = drawn(NORMAL_SCORES["gamma"], 100, seed=0).astype(np.float32)
    before = scores.copy()
    assert fit_threshold(scores, 0.01) == fit_threshold(scores[::-1], 0.01)
    assert np.array_equal(scores, before)


@pytest.mark.parametrize("rate", [0.5, 0.01])
def test_scores_that_are_all_equal_are_below_their_threshold_by_more_than_rounding(rate: float) -> None:
    threshold = fit_threshold(np.full(50, 3.25), rate)
    assert 3.25 * (1 + 5e-6) < threshold.value < 3.25 * (1 + 1e-4)
    noisy = np.float32(3.25) * (1 + np.random.default_rng(0).uniform(-2e-6, 2e-6, 50))
    assert noisy.max() < fit_threshold(noisy, rate).value < 3.25 * (1 + 1e-4)


@pytest.mark.parametrize("scores", [np.zeros(50), np.random.default_rng(0).uniform(0, 1e-4, 50)])
def test_black_images_do_not_give_a_threshold_that_alarms_at_rounding(scores: NDArray[np.float64]) -> None:
    assert fit_threshold(scores, 0.01).value == FLOOR


@pytest.mark.parametrize("rate", [0.4, 0.01])
@pytest.mark.parametrize("counts", [(60, 40), (95, 5), (170, 30)])
def test_scores_of_two_values_give_a_threshold_above_both_or_between(counts: tuple[int, int], rate: float) -> None:
    threshold = fit_threshold(np.repeat([1.0, 2.0], counts), rate)
    assert 1.0 < threshold.value < 4.0


@pytest.mark.parametrize(
    ("scores", "rate", "text"),
    [
        (np.ones(19), 0.1, r"scores of shape \[19\], expected at least 20 finite ones"),
        (np.ones((20, 2)), 0.1, r"scores of shape \[20, 2\]"),
        (np.append(np.ones(20), np.nan), 0.1, "expected at least 20 finite"),
        (np.append(np.ones(20), np.inf), 0.1, "expected at least 20 finite"),
        (np.append(np.ones(20), -0.5), 0.1, "scores down to -0.5, expected distances"),
        (np.arange(20.0), 0.0, r"false_positive_rate is 0.0, expected a value in \(0, 1\)"),
        (np.arange(20.0), 1.0, r"false_positive_rate is 1.0"),
        (np.arange(20.0), float("nan"), "false_positive_rate is nan"),
    ],
)
def test_what_gives_no_threshold_is_refused(scores: NDArray[np.float64], rate: float, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        fit_threshold(scores, rate)


def test_a_threshold_is_made_of_plain_numbers() -> None:
    threshold = fit_threshold(drawn(NORMAL_SCORES["gamma"], 100, seed=0), 0.01)
    assert [type(value) for value in threshold] == [float, str, int, int, float, float, bool]


def test_a_tracked_threshold_follows_a_slow_change_of_the_normal_scores() -> None:
    calibrated = fit_threshold(texture(2000, seed=0), 0.01)
    tracked = track_threshold(calibrated, 1.1 * texture(2000, seed=1), 0.01)
    assert tracked == fit_threshold(1.1 * texture(2000, seed=1), 0.01)
    assert 1.0 < tracked.value / calibrated.value < 1.2  # two draws of 2,000 differ by some per cent by themselves


@pytest.mark.parametrize(("factor", "limit"), [(1.5, 1.2), (0.5, 0.8)])
def test_a_tracked_threshold_stays_within_its_bound_however_often_it_is_refitted(factor: float, limit: float) -> None:
    calibrated = fit_threshold(texture(500, seed=0), 0.01)
    for creep in np.linspace(1, factor, 10):
        tracked = track_threshold(calibrated, creep * texture(500, seed=1), 0.01, bound=0.2)
    np.testing.assert_allclose(tracked.value, limit * calibrated.value)
    assert tracked.method == "bounded"


def test_where_the_bound_holds_the_interval_is_of_the_value_that_is_used() -> None:
    calibrated = fit_threshold(texture(500, seed=0), 0.01)
    changed = 1.5 * texture(500, seed=1)
    tracked = track_threshold(calibrated, changed, 0.01)
    assert tracked.rate_low < texture_rate(tracked.value / 1.5) < tracked.rate_high
    assert tracked.provisional


@pytest.mark.parametrize("share", [0.05, 0.4])
def test_an_epidemic_of_defects_does_not_take_the_threshold_along(share: float) -> None:
    calibrated = fit_threshold(texture(500, seed=0), 0.01)
    recent = np.concatenate([texture(500 - int(500 * share), seed=1), 1.5 * defects(int(500 * share), seed=2)])
    tracked = track_threshold(calibrated, recent, 0.01, bound=0.1)
    assert tracked.value <= 1.1 * calibrated.value
    assert (1.5 * defects(1000, seed=3) > tracked.value).mean() > 0.85


@pytest.mark.parametrize("bound", [0.0, 1.0, float("nan")])
def test_a_bound_that_is_no_share_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="bound is "):
        track_threshold(fit_threshold(texture(50, 0), 0.01), texture(50, 1), 0.01, bound)


@pytest.mark.parametrize(("rate", "n"), [(0.5, TRACKED[0]), (0.005, 2000), (1e-6, TRACKED[1])])
def test_as_many_scores_are_kept_as_the_rate_needs_within_limits(rate: float, n: int) -> None:
    assert tracked_scores(rate) == n
