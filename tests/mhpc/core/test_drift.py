import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mhpc.core.drift import LOOKS, DriftMonitor, _one_sided

D = 12
MIXING = np.random.default_rng(99).normal(size=(D, D)) * np.geomspace(1, 0.05, D)


def images(
    n: int, seed: int, score_shift: float = 0.0, mean_shift: float = 0.0, df: float = 5.0
) -> tuple[Tensor, Tensor]:
    """Right-skewed scores [n] and heavy-tailed, correlated means [n, D]; shifts in standard deviations."""
    rng = np.random.default_rng(seed)
    scores = 10 * np.exp(0.1 * (rng.gumbel(size=n) + 1.28 * score_shift))
    means = rng.standard_t(df, size=(n, D)) @ MIXING.T
    return torch.from_numpy(scores), torch.from_numpy(means + mean_shift * means.std(0))


def monitor(n: int = 200, seed: int = 0, window: int = 128, false_alarm_rate: float = 1e-6) -> DriftMonitor:
    return DriftMonitor(window, false_alarm_rate).fit(*images(n, seed))


def test_a_stationary_stream_of_ten_thousand_batches_alarms_at_most_once() -> None:
    watching = DriftMonitor().fit(*images(300, seed=1))
    scores, means = images(80_000, seed=2)
    alarms = [watching.update(s, z).alarm_ for s, z in zip(scores.split(8), means.split(8), strict=True)]
    assert sum(now and not before for before, now in zip([False, *alarms], alarms, strict=False)) <= 1
    assert 0 < watching.drift_ < 1


@pytest.mark.parametrize(("n", "df"), [(25, 30.0), (100, 30.0), (100, 4.0)])
def test_the_level_is_exceeded_at_the_stated_rate(n: int, df: float) -> None:
    window, error = 64, 0.1
    exceeded = []
    for seed in range(400):
        watching = DriftMonitor(window, error / (window // LOOKS)).fit(*images(n, seed, df=df))
        watching.update(*images(window, 10_000 + seed, df=df))
        exceeded.append((watching.score_drift_ > 1, watching.mean_drift_ > 1))
    by_scores, by_means = np.mean(exceeded, axis=0)
    assert by_scores < 0.07  # each has half of the error
    assert 0.005 < by_means < 0.08


@pytest.mark.parametrize(("shift", "which"), [({"score_shift": 1.0}, "score"), ({"mean_shift": 1.0}, "mean")])
def test_a_change_of_all_images_alarms_within_a_window(shift: dict[str, float], which: str) -> None:
    watching = monitor().update(*images(128, seed=1))
    assert not watching.alarm_
    watching.update(*images(128, seed=2, **shift))
    assert watching.alarm_
    assert {"score": watching.score_drift_, "mean": watching.mean_drift_}[which] == watching.drift_


def test_scores_that_sink_alarm_too() -> None:
    assert monitor().update(*images(128, seed=1, score_shift=-1.0)).score_drift_ > 1


def test_more_change_is_more_drift() -> None:
    drifts = [monitor().update(*images(128, seed=1, mean_shift=shift)).drift_ for shift in (0.0, 0.5, 1.0, 2.0)]
    assert drifts == sorted(drifts)


def test_a_burst_of_defective_parts_is_no_drift() -> None:
    scores, means = images(128, seed=1)
    quiet = monitor().update(scores, means).drift_
    scores[40:52], means[40:52] = scores[40:52] * 5, means[40:52] + 20.0
    burst = monitor().update(scores, means)
    assert not burst.alarm_
    assert burst.drift_ < quiet + 0.3


def test_defective_parts_among_calibrations_images_do_not_hide_a_change() -> None:
    scores, means = images(200, seed=0)
    scores[:10], means[:10] = scores[:10] * 5, means[:10] + 50.0
    dirty = DriftMonitor(128).fit(scores, means)
    assert not dirty.update(*images(128, seed=1)).alarm_
    assert dirty.update(*images(128, seed=2, mean_shift=1.0)).alarm_


def test_how_images_are_batched_does_not_matter() -> None:
    scores, means = images(500, seed=1, mean_shift=0.3)
    whole, parts = monitor().update(scores, means), monitor()
    for s, z in zip(scores.split(7), means.split(7), strict=True):
        parts.update(s, z)
    assert whole.drift_ == parts.drift_ > 0


def test_nothing_is_said_before_the_window_has_been_full() -> None:
    watching = monitor().update(*images(127, seed=1, mean_shift=5.0))
    assert (watching.drift_, watching.alarm_) == (0.0, False)
    assert watching.update(*images(1, seed=2)).alarm_


def test_after_a_reset_calibration_is_still_known() -> None:
    watching = monitor().update(*images(200, seed=1, mean_shift=2.0)).reset()
    assert (watching.drift_, len(watching.recent_scores_)) == (0.0, 0)
    assert not watching.update(*images(128, seed=2)).alarm_
    assert watching.update(*images(128, seed=3, mean_shift=2.0)).alarm_


def test_a_loaded_monitor_goes_on_as_the_saved_one() -> None:
    saved = monitor().update(*images(300, seed=1))
    loaded = DriftMonitor(128).load_state_dict(saved.state_dict())
    assert loaded.drift_ == saved.drift_
    for watching in (saved, loaded):
        watching.update(*images(77, seed=2, mean_shift=0.5))
    assert loaded.drift_ == saved.drift_
    assert all(torch.equal(saved.state_dict()[name], value) for name, value in loaded.state_dict().items())


def test_a_saved_state_does_not_change_with_what_comes_after() -> None:
    watching = monitor().update(*images(100, seed=1))
    state = watching.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    watching.update(*images(100, seed=2))
    assert all(torch.equal(before[name], value) for name, value in state.items())


def test_memory_does_not_grow_with_the_stream() -> None:
    sizes = [sum(t.numel() for t in monitor().update(*images(n, seed=1)).state_dict().values()) for n in (128, 5000)]
    assert sizes[0] == sizes[1] < 200 + 128 + (128 + 2) * D + 10


def test_a_state_that_lacks_a_tensor_is_refused() -> None:
    state = monitor().state_dict()
    del state["mean"]
    with pytest.raises(ValueError, match="the state has no tensor 'mean'"):
        DriftMonitor(128).load_state_dict(state)


def test_without_means_scores_alone_are_compared() -> None:
    watching = DriftMonitor(128).fit(images(200, seed=0)[0])
    assert not watching.update(images(128, seed=1)[0]).alarm_
    assert watching.update(images(128, seed=1, score_shift=1.0)[0]).alarm_
    assert watching.mean_drift_ == 0.0


def test_fewer_images_than_components_still_see_a_great_change() -> None:
    rng = np.random.default_rng(0)
    calibration, same, other = (torch.from_numpy(rng.normal(size=(n, 300))) for n in (25, 64, 64))
    scores = torch.linspace(5, 9, 64, dtype=torch.float64)
    watching = DriftMonitor(64).fit(torch.linspace(5, 9, 25, dtype=torch.float64), calibration)
    assert not watching.update(scores, same).alarm_
    assert watching.update(scores, other + 1.0).alarm_


@pytest.mark.parametrize("score", [0.0, 3.25])
def test_equal_images_do_not_drift_by_rounding_and_another_image_alarms(score: float) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).uniform(0, 1e-6, (400, D + 1)))
    watching = DriftMonitor(128).fit(score + torch.zeros(100, dtype=torch.float64), torch.ones(100, D))
    watching.update(score + noise[:, 0], 1 + noise[:, 1:])
    assert np.isfinite(watching.drift_)
    assert not watching.alarm_
    assert watching.update(torch.full((128,), score + 1), torch.ones(128, D)).alarm_


@pytest.mark.parametrize(
    ("scores", "means", "text"),
    [
        (torch.ones(3), torch.ones(4, D), r"scores \[3\] and means \[4, 12\], expected \[m\] and \[m, 12\]"),
        (torch.ones(3), torch.ones(3, D - 1), r"means \[3, 11\], expected \[m\] and \[m, 12\]"),
        (torch.ones(3), None, r"means \[3, 0\], expected \[m\] and \[m, 12\]"),
        (torch.ones(3, 1), torch.ones(3, D), r"scores \[3, 1\]"),
        (torch.tensor([1.0, torch.nan]), torch.ones(2, D), "hold NaN or infinite values"),
        (torch.ones(2), torch.full((2, D), torch.inf), "hold NaN or infinite values"),
        (torch.tensor([-1.0]), torch.ones(1, D), "scores down to -1, expected distances"),
    ],
)
def test_bad_images_are_refused_and_change_nothing(scores: Tensor, means: Tensor | None, text: str) -> None:
    watching = monitor()
    before = watching.state_dict()
    with pytest.raises(ValueError, match=text):
        watching.update(scores, means)
    assert all(torch.equal(before[name], value) for name, value in watching.state_dict().items())


@pytest.mark.parametrize(
    ("watching", "n", "text"),
    [
        (DriftMonitor(), 19, r"scores of shape \[19\], expected at least 20"),
        (DriftMonitor(window=3), 50, "window is 3, expected at least"),
        (DriftMonitor(false_alarm_rate=0.0), 50, "false_alarm_rate is 0.0 per image"),
        (DriftMonitor(false_alarm_rate=0.5), 50, "false_alarm_rate is 0.5 per image"),
    ],
)
def test_what_cannot_be_fitted_is_refused(watching: DriftMonitor, n: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        watching.fit(*images(n, seed=0))


@pytest.mark.parametrize("decimals", [1, 9])  # with many ties, and with none
def test_one_sided_distances_are_scipys(decimals: int) -> None:
    rng = np.random.default_rng(0)
    for shift in np.linspace(-0.5, 0.5, 21):
        a, b = rng.normal(3 + shift, 0.3, 64).round(decimals), rng.normal(3, 0.3, 200).round(decimals)
        assert _one_sided(a, b) == pytest.approx(stats.ks_2samp(a, b, alternative="greater", method="asymp").statistic)
        assert _one_sided(b, a) == pytest.approx(stats.ks_2samp(a, b, alternative="less", method="asymp").statistic)
