from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

import mhpc.core.learner as learner_module
from mhpc.core.bank import Reservoir
from mhpc.core.choices import PatchCoreAggregation, PatchCoreDistance, PatchCoreFeatureReduction
from mhpc.core.learner import OnePassLearner
from mhpc.core.three_passes import fit_three_passes
from mhpc.core.whitening import ZSpace
from mhpc.linalg import batch_moments
from tests.mhpc.core.patches import D, K, P, assert_same, defective, learner, pictures

SPACES = [ZSpace(reduction, distance) for reduction in PatchCoreFeatureReduction for distance in PatchCoreDistance]


@pytest.mark.filterwarnings("ignore:the reservoir")
@pytest.mark.parametrize("aggregation", list(PatchCoreAggregation))
@pytest.mark.parametrize("space", SPACES, ids=lambda space: f"{space.feature_reduction.name}-{space.distance.name}")
def test_every_space_and_aggregation_learns_tells_defects_and_goes_on_from_its_state(
    space: ZSpace, aggregation: PatchCoreAggregation
) -> None:
    unbroken, broken = (OnePassLearner(K, space, aggregation=aggregation) for _ in range(2))
    unbroken.partial_fit(pictures(80))
    broken.partial_fit(pictures(80)[:40])
    resumed = OnePassLearner(K, space, aggregation=aggregation).load_state_dict(broken.state_dict())
    resumed.partial_fit(pictures(80)[40:])
    assert_same(unbroken, resumed)
    unbroken.freeze()
    assert unbroken.rows_seen_ == 80 * P
    assert len(unbroken.memory_) == K
    scores = torch.cat([unbroken.score(pictures(20, seed=1)), unbroken.score(defective(20, seed=2))])
    assert roc_auc_score([0] * 20 + [1] * 20, scores) > 0.95


@pytest.mark.filterwarnings("ignore:the reservoir")
@pytest.mark.parametrize("aggregation", list(PatchCoreAggregation))
@pytest.mark.parametrize("space", SPACES, ids=lambda space: f"{space.feature_reduction.name}-{space.distance.name}")
def test_three_passes_end_in_the_basis_of_all_rows(space: ZSpace, aggregation: PatchCoreAggregation) -> None:
    x, passes = pictures(80), []

    def batches() -> list[Tensor]:
        passes.append(1)
        return list(x.split(24))

    model = OnePassLearner(K, space, aggregation=aggregation)
    fit_three_passes(model, batches)
    assert len(passes) == 1 + space.needs_moments + (space.reduces and space.whitens)
    assert len(model.memory_) == K
    assert model.rows_seen_ == 80 * P
    if space.needs_moments:
        z = model.whiten(x).reshape(-1, model.memory_.shape[1])[:100].double()
        expected = space.of_moments(model.pca_.moments_)(x.reshape(-1, D))[:100].double()
        torch.testing.assert_close(torch.cdist(z, z), torch.cdist(expected, expected), rtol=1e-3, atol=1e-3)
    scores = torch.cat([model.score(pictures(20, seed=1)), model.score(defective(20, seed=2))])
    assert roc_auc_score([0] * 20 + [1] * 20, scores) > 0.95


def test_a_learner_of_three_passes_goes_on_in_one() -> None:
    model = learner()
    fit_three_passes(model, lambda: [pictures(40)])
    model.partial_fit(pictures(40, seed=1))
    assert model.rows_seen_ == model.pca_.n_samples_seen_ == 80 * P


def test_the_sample_is_another_with_another_seed() -> None:
    a, b = (OnePassLearner(K, aggregation=PatchCoreAggregation.NONE, seed=seed) for seed in (0, 1))
    with pytest.warns(UserWarning, match="the reservoir"):
        a.partial_fit(pictures(20))
    with pytest.warns(UserWarning, match="the reservoir"):
        b.partial_fit(pictures(20))
    assert isinstance(a.bank_, Reservoir)
    assert not torch.equal(a.memory_, b.memory_)


def test_a_first_step_that_is_refused_leaves_an_empty_learner_that_can_go_on() -> None:
    space = ZSpace(PatchCoreFeatureReduction.NONE, jitter=0.0)
    model = OnePassLearner(K, space)
    with pytest.raises(ValueError, match="not positive definite"):
        model.partial_fit(torch.ones(1, P, D))
    assert_same(model, OnePassLearner(K, space))
    model.partial_fit(pictures(20))
    assert torch.isfinite(model.score(pictures(2, seed=1))).all()


def test_a_later_step_that_is_refused_leaves_what_was_learned_before() -> None:
    model, expected = learner(), learner()
    for each in (model, expected):
        each.partial_fit(pictures(20))
    broken = model.bank_
    assert broken is not None
    learn, calls = type(broken).learn, []

    def fails_at_the_second(self: object, *args: Tensor) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError("no room")
        learn(self, *args)  # type: ignore[arg-type]  # the bank's own class

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(broken), "learn", fails_at_the_second)
        with pytest.raises(MemoryError):
            model.partial_fit(pictures(24, seed=1))
    assert_same(model, expected)


@pytest.mark.filterwarnings("ignore:the reservoir")
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("aggregation", list(PatchCoreAggregation))
def test_features_whose_squares_overflow_are_refused_and_change_nothing(
    aggregation: PatchCoreAggregation, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_module, "FIRST_ROWS", 0)
    model, expected = (OnePassLearner(K, aggregation=aggregation, moments_share=share) for _ in range(2))
    for each in (model, expected):
        each.partial_fit(pictures(16))
    with pytest.raises(
        ValueError, match=r"rows \[\d+, 8\] of up to .*e\+19 have squares whose sum overflows .* backbone"
    ):
        model.partial_fit(pictures(8, seed=1) * 3e18)
    assert_same(model, expected)


# -- moments of a share of the rows ------------------------------------------------------------------------------------


def shared(share: float, x: Tensor, monkeypatch: pytest.MonkeyPatch, in_full: int = 0) -> OnePassLearner:
    monkeypatch.setattr(learner_module, "FIRST_ROWS", in_full)
    model = OnePassLearner(K, moments_share=share)
    model.partial_fit(x)
    return model


def test_moments_of_a_share_of_the_rows_are_those_of_all_but_for_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    x = pictures(400)
    rows = x.flatten(0, 1)
    model = shared(0.25, x, monkeypatch)
    n, mean, scatter = model.pca_.moments_
    expected = batch_moments(rows)
    assert n == model.rows_seen_ == len(rows)
    deviation = (expected.scatter.diagonal() / n).sqrt()
    assert float(((mean - expected.mean) / deviation).abs().max()) < 5 / (n / 4) ** 0.5
    torch.testing.assert_close(scatter.diagonal(), expected.scatter.diagonal(), rtol=0.2, atol=0)
    assert not torch.equal(scatter, expected.scatter)


def test_the_first_rows_are_taken_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    x = pictures(40)
    assert_same(shared(0.25, x, monkeypatch, in_full=40 * P), shared(1.0, x, monkeypatch))


def test_a_replay_draws_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x = pictures(120)
    unbroken = shared(0.25, x, monkeypatch)
    begun = shared(0.25, x[:56], monkeypatch)
    again = OnePassLearner(K, moments_share=0.25).load_state_dict(begun.state_dict())
    again.partial_fit(x[56:])
    assert_same(again, unbroken)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_of_the_moments_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"moments_share is {share}, expected a value in \(0, 1\]"):
        OnePassLearner(moments_share=share)


def test_a_bank_of_three_passes_is_judged_like_any_other() -> None:
    model = learner()
    fit_three_passes(model, lambda: list(pictures(40).split(10)))
    assert model.bank_ is not None
    model.partial_fit(pictures(40, seed=3))
    model.freeze()
    assert len(model.memory_) == K


@pytest.mark.parametrize("space", SPACES, ids=lambda space: f"{space.feature_reduction.name}-{space.distance.name}")
def test_a_batch_of_three_passes_may_be_a_single_patch_but_not_all_that_there_is(space: ZSpace) -> None:
    patches = pictures(3).reshape(-1, 1, D)  # images of one patch each
    model = OnePassLearner(K, space)
    fit_three_passes(model, lambda: [patches[:1], patches[1:47], patches[47:]])
    assert model.rows_seen_ == 48
    with pytest.raises(ValueError, match="the loader gave a single patch, expected at least 2"):
        fit_three_passes(OnePassLearner(K, space), lambda: [patches[:1]])


@pytest.mark.parametrize("space", SPACES, ids=lambda space: f"{space.feature_reduction.name}-{space.distance.name}")
def test_three_passes_over_nothing_are_refused(space: ZSpace) -> None:
    with pytest.raises(ValueError, match="the loader gave no batch"):
        fit_three_passes(OnePassLearner(K, space), list)


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ({"bank_size": 0}, "bank_size is 0, expected a whole number >= 1"),
        ({"top_k": 0}, "top_k is 0, expected a whole number >= 1"),
        ({"aggregation": "kmeans"}, "aggregation is 'kmeans', expected one of PatchCoreAggregation.GREEDY"),
        ({"seed": -1}, "seed is -1, expected a whole number >= 0"),
        ({"seed": 2**32}, r"seed is 4294967296, expected a whole number below 4294967296 \(2\*\*32\)"),
    ],
)
def test_an_argument_out_of_range_is_refused(arguments: dict[str, Any], refusal: str) -> None:
    with pytest.raises(ValueError, match=refusal):
        OnePassLearner(**arguments)


@pytest.mark.filterwarnings("ignore:the reservoir")
def test_a_sample_forgets_by_the_weight_of_its_rows() -> None:
    shares = []
    for seed in range(20):
        model = OnePassLearner(20, ZSpace(), aggregation=PatchCoreAggregation.NONE, seed=seed)
        model.partial_fit(pictures(60, seed=1))
        model.forget(0.1)
        model.partial_fit(pictures(6, seed=2, shift=100), guard=False)
        assert model.bank_ is not None
        shares.append(float((model.bank_.anchors.mean(1) > 50).float().mean()))
    assert sum(shares) / 20 == pytest.approx(0.5, abs=0.05)  # 60 images that weigh a tenth, and 6
