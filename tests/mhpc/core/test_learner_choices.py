import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mhpc.core.bank import Reservoir
from mhpc.core.choices import PatchCoreAggregation, PatchCoreDistance, PatchCoreFeatureReduction
from mhpc.core.learner import OnePassLearner
from mhpc.core.three_passes import fit_three_passes
from mhpc.core.whitening import ZSpace
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
