from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from mhpc.core.batch import BatchLearner, collect
from mhpc.core.choices import PatchCoreAggregation, PatchCoreDistance, PatchCoreFeatureReduction
from mhpc.core.scoring import patch_scores
from mhpc.core.whitening import ZSpace
from mhpc.linalg import batch_moments
from mhpc.sampler import GreedyCoresetSampler

B, P, D = 12, 25, 10
RAW = ZSpace(PatchCoreFeatureReduction.NONE, PatchCoreDistance.EUCLIDEAN)
WHITE = ZSpace(PatchCoreFeatureReduction.NONE, PatchCoreDistance.MAHALANOBIS)


def features(images: int = B, seed: int = 0) -> Tensor:
    """Patch features [images, 25, 10]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, P, D, generator=generator) * torch.logspace(0, -1, D) + 3


def fitted(space: ZSpace, aggregation: PatchCoreAggregation, percentage: float = 0.1) -> BatchLearner:
    return BatchLearner(percentage, space=space, aggregation=aggregation).fit(features().split(5))


def test_the_coreset_is_of_the_features_themselves_in_the_order_of_selection() -> None:
    expected = GreedyCoresetSampler(0.1).run(features().reshape(B * P, D))
    assert torch.equal(fitted(RAW, PatchCoreAggregation.GREEDY).memory_, expected)


def test_scores_agree_with_distances_to_the_selected_rows_in_float64() -> None:
    """PatchCore's own score: the distance to the nearest of the selected rows (Roth et al., 2022, eq. 6)."""
    learner = fitted(RAW, PatchCoreAggregation.GREEDY)
    bank = GreedyCoresetSampler(0.1).run(features().reshape(B * P, D)).double()
    x = features(7, seed=1)
    expected = torch.cdist(x.reshape(7 * P, D).double(), bank).amin(1).reshape(7, P)
    torch.testing.assert_close(patch_scores(learner.whiten(x), learner.memory_).double(), expected, rtol=1e-4, atol=0)


def test_k_means_is_scikit_learns_on_all_rows_at_once() -> None:
    expected = MiniBatchKMeans(30, random_state=0).fit(features().reshape(B * P, D).numpy())
    np.testing.assert_array_equal(fitted(RAW, PatchCoreAggregation.KMEANS).memory_, expected.cluster_centers_)


def test_without_aggregation_all_rows_are_kept() -> None:
    assert torch.equal(fitted(RAW, PatchCoreAggregation.NONE).memory_, features().reshape(B * P, D))


@pytest.mark.parametrize("aggregation", list(PatchCoreAggregation))
def test_the_bank_lies_in_z_space(aggregation: PatchCoreAggregation) -> None:
    learner = fitted(ZSpace(pca_variance_ratio=0.9), aggregation)
    z = learner.whiten(features())
    assert learner.memory_.shape[1] == z.shape[2] < D
    torch.testing.assert_close(torch.cov(z.reshape(B * P, -1).T), torch.eye(z.shape[2]), atol=1e-3, rtol=0)


def test_the_space_is_found_from_all_rows() -> None:
    rows = features().reshape(B * P, D)
    learner = fitted(WHITE, PatchCoreAggregation.NONE)
    torch.testing.assert_close(learner.memory_, WHITE.of_moments(batch_moments(rows))(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", ["random", "approx_greedy_coreset"])
def test_a_sampler_is_repeatable_by_its_seed(sampler: str) -> None:
    first, again, other = (BatchLearner(0.1, sampler, space=RAW, seed=seed).fit([features()]) for seed in (1, 1, 2))
    assert torch.equal(first.memory_, again.memory_)
    assert not torch.equal(first.memory_, other.memory_)


@pytest.mark.parametrize("space", [WHITE, ZSpace(), ZSpace(pca_variance_ratio=0.9)])
def test_rows_are_whitened_as_features_are_later(space: ZSpace) -> None:
    learner = fitted(space, PatchCoreAggregation.NONE)
    torch.testing.assert_close(learner.memory_, learner.whiten(features()).flatten(0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("space", [RAW, WHITE, ZSpace()])
def test_what_is_learned_from_stays_as_it_was(space: ZSpace) -> None:
    x = features()
    fitting = BatchLearner(space=space, aggregation=PatchCoreAggregation.NONE).fit([x])
    fitting.whiten(x)
    assert torch.equal(x, features())


def test_fitting_again_forgets() -> None:
    learner = fitted(RAW, PatchCoreAggregation.NONE).fit([features(3, seed=5)])
    assert learner.images_learned_ == 3
    assert torch.equal(learner.memory_, features(3, seed=5).reshape(3 * P, D))


@pytest.mark.parametrize("space", [RAW, ZSpace()])
def test_state_goes_round(space: ZSpace) -> None:
    learner = fitted(space, PatchCoreAggregation.GREEDY)
    again = BatchLearner(space=space).load_state_dict(learner.state_dict())
    assert torch.equal(again.memory_, learner.memory_)
    assert torch.equal(again.whiten(features(2, 3)), learner.whiten(features(2, 3)))
    with pytest.raises(ValueError, match="the state has no tensor 'bank'"):
        again.load_state_dict({"images_learned": torch.tensor(3)})
    assert torch.equal(again.memory_, learner.memory_)


@pytest.mark.parametrize("space", [RAW, ZSpace()])
def test_a_state_shares_nothing_with_the_learner_or_with_who_loads_it(space: ZSpace) -> None:
    learner = fitted(space, PatchCoreAggregation.GREEDY)
    expected = learner.memory_.clone(), learner.whiten(features(2, 3))
    state = learner.state_dict()
    again = BatchLearner(space=space).load_state_dict(state)
    for tensor in state.values():
        tensor.zero_()
    for each in (learner, again):
        assert torch.equal(each.memory_, expected[0])
        assert torch.equal(each.whiten(features(2, 3)), expected[1])


@pytest.mark.parametrize("ask", [lambda learner: learner.memory_, lambda learner: learner.whiten(features())])
def test_asking_before_fitting_is_refused(ask: Callable[[BatchLearner], Tensor]) -> None:
    with pytest.raises(ValueError, match="nothing was learned yet"):
        ask(BatchLearner())


def test_collected_rows_are_all_rows_in_order() -> None:
    rows, images = collect(features().split(5))
    assert images == B
    np.testing.assert_array_equal(rows, features().reshape(B * P, D))


@pytest.mark.parametrize("as_given", [Tensor.bfloat16, Tensor.half, Tensor.double, Tensor.requires_grad_])
def test_features_of_any_float_and_with_a_graph_are_collected_as_float32(as_given: Callable[[Tensor], Tensor]) -> None:
    given = as_given(features())
    rows, _ = collect([given])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, given.detach().float().reshape(B * P, D))


def test_collecting_nothing_or_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="0 patches in 0 images, expected at least 2: is the loader empty"):
        collect([])
    with pytest.raises(ValueError, match=r"features have shape \[1, 4, 11\], expected \[B, P, 10\]"):
        collect([features(1), torch.zeros(1, 4, 11)])
    with pytest.raises(ValueError, match="NaN or infinite"):
        collect([features(1), torch.full((1, P, D), torch.nan)])
