from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mhpc.core.calibration import MAX_TRIMMED, Threshold, fit_threshold, outlier_limit

NORMAL_SCORES = {"gamma": stats.gamma(20), "lognormal": stats.lognorm(0.3), "normal": stats.norm(10, 1)}
REPEATS = 200


def drawn(distribution: Any, n: int, seed: int) -> NDArray[np.float64]:
    scores: NDArray[np.float64] = distribution.rvs(n, random_state=seed)
    return scores


def realised(distribution: Any, n: int, rate: float) -> tuple[float, set[str]]:
    """False-positive rate on fresh images, averaged over calibrations; and the methods that were used."""
    fitted = [fit_threshold(drawn(distribution, n, seed), rate) for seed in range(REPEATS)]
    return float(np.mean([distribution.sf(threshold.value) for threshold in fitted])), {t.method for t in fitted}


@pytest.mark.parametrize("name", NORMAL_SCORES)
@pytest.mark.parametrize(("n", "rate"), [(2000, 0.01), (500, 0.05), (40, 0.3)])
def test_a_quantile_keeps_the_wanted_rate_on_average(name: str, n: int, rate: float) -> None:
    found, methods = realised(NORMAL_SCORES[name], n, rate)
    assert methods == {"quantile"}
    assert rate * 0.9 < found < rate * 1.15


@pytest.mark.parametrize("name", NORMAL_SCORES)
@pytest.mark.parametrize(
    ("n", "rate", "within"), [(500, 0.01, 1.2), (100, 0.01, 1.3), (40, 0.02, 1.5), (500, 0.001, 1.5)]
)
def test_a_tail_keeps_the_wanted_rate_on_average(name: str, n: int, rate: float, within: float) -> None:
    found, methods = realised(NORMAL_SCORES[name], n, rate)
    assert methods == {"tail"}
    assert rate / within < found < rate * within


def test_a_smaller_rate_gives_a_higher_threshold() -> None:
    scores = drawn(NORMAL_SCORES["gamma"], 500, seed=0)
    values = [fit_threshold(scores, rate).value for rate in (0.2, 0.05, 0.015, 0.005, 0.001, 1e-5)]
    assert values == sorted(values)
    assert len(set(values)) == 6


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("rate", [0.05, 0.001])
def test_the_threshold_scales_with_the_scores(rate: float, scale: float) -> None:
    scores = drawn(NORMAL_SCORES["gamma"], 500, seed=0)
    np.testing.assert_allclose(
        fit_threshold(scores * scale, rate).value, fit_threshold(scores, rate).value * scale, rtol=1e-9
    )


@pytest.mark.parametrize("rate", [0.05, 0.01, 0.001])
def test_five_percent_of_gross_outliers_do_not_move_it(rate: float) -> None:
    scores = drawn(NORMAL_SCORES["gamma"], 950, seed=0)
    outliers = np.random.default_rng(1).uniform(100, 1000, 50)
    clean, dirty = fit_threshold(scores, rate), fit_threshold(np.concatenate([outliers, scores]), rate)
    assert clean.n_trimmed == 0
    assert dirty == clean._replace(n_trimmed=50)


def test_no_more_than_a_tenth_is_trimmed() -> None:
    scores = np.concatenate([drawn(NORMAL_SCORES["gamma"], 700, seed=0), np.full(300, 1e3)])
    threshold = fit_threshold(scores, 0.05)
    assert threshold.n_trimmed == MAX_TRIMMED * 1000
    assert threshold.value >= 1e3


def test_the_outlier_limit_is_a_robust_deviation_above_the_median() -> None:
    scores = np.append(drawn(NORMAL_SCORES["normal"], 20_000, seed=0), np.full(100, 1e9))
    np.testing.assert_allclose(outlier_limit(scores, deviations=3), 13, atol=0.1)


def test_the_order_of_scores_does_not_matter_and_they_stay_as_they_were() -> None:
    scores = drawn(NORMAL_SCORES["gamma"], 100, seed=0).astype(np.float32)
    before = scores.copy()
    assert fit_threshold(scores, 0.01) == fit_threshold(scores[::-1], 0.01)
    assert np.array_equal(scores, before)


@pytest.mark.parametrize("rate", [0.5, 0.01])
def test_scores_that_are_all_equal_are_not_above_their_threshold(rate: float) -> None:
    threshold = fit_threshold(np.full(50, 3.25), rate)
    assert threshold.value > 3.25
    np.testing.assert_allclose(threshold.value, 3.25)


@pytest.mark.parametrize("rate", [0.4, 0.01])
def test_scores_of_two_values_give_a_finite_threshold(rate: float) -> None:
    assert np.isfinite(fit_threshold(np.repeat([1.0, 2.0], [60, 40]), rate).value)


@pytest.mark.parametrize(
    ("scores", "rate", "text"),
    [
        (np.ones(19), 0.1, r"scores of shape \[19\], expected at least 20 finite ones"),
        (np.ones((20, 2)), 0.1, r"scores of shape \[20, 2\]"),
        (np.append(np.ones(20), np.nan), 0.1, "expected at least 20 finite"),
        (np.append(np.ones(20), np.inf), 0.1, "expected at least 20 finite"),
        (np.arange(20.0), 0.0, r"false_positive_rate is 0.0, expected a value in \(0, 1\)"),
        (np.arange(20.0), 1.0, r"false_positive_rate is 1.0"),
        (np.arange(20.0), float("nan"), "false_positive_rate is nan"),
    ],
)
def test_what_gives_no_threshold_is_refused(scores: NDArray[np.float64], rate: float, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        fit_threshold(scores, rate)


def test_a_threshold_says_how_it_was_found() -> None:
    threshold = fit_threshold(np.linspace(0, 1, 101), 0.1)
    assert threshold == Threshold(threshold.value, "quantile", 101, 0)
    np.testing.assert_allclose(threshold.value, 0.9)
