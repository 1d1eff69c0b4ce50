"""What a person or a relearn does to a learner: pin, unlearn, forget, begin again."""

import pytest
import torch

from mhpc.core.choices import PatchCoreAggregation
from mhpc.core.learner import STEP, OnePassLearner
from mhpc.core.memory_bank import MAX_PINNED, MemoryBank
from mhpc.core.recent import CONVERGED_CHANGE
from tests.mhpc.core.patches import D, K, P, assert_same, defective, learner, pictures

STRANGE = defective(1) * 3


def trained(images: int = 100) -> OnePassLearner:
    model = learner()
    model.partial_fit(pictures(images))
    model.freeze()
    return model


def bank(model: OnePassLearner) -> MemoryBank:
    assert isinstance(model.bank_, MemoryBank)
    return model.bank_


def test_a_pinned_picture_stays_within_the_radius_whatever_is_learned_later() -> None:
    model = trained()
    radius = float(model.score(pictures(20, seed=9)).median()) / 2
    added = model.pin(STRANGE, radius)
    assert added > 0
    assert model.pin(STRANGE, radius) == 0
    pinned = bank(model).anchors[bank(model).pinned]
    for seed in range(1, 6):
        model.partial_fit(pictures(60, seed))
        assert torch.equal(bank(model).anchors[bank(model).pinned], pinned)
    model.freeze()
    assert len(bank(model)) == K
    assert float(model.score(STRANGE)) <= radius * 1.2  # the basis has moved on


def test_pinned_anchors_leave_at_least_half_of_the_bank() -> None:
    model = trained()
    most = int(MAX_PINNED * K)
    with pytest.raises(ValueError, match=rf"anchors would be pinned, at most {most} may be of a bank of {K}"):
        model.pin(torch.randn(4, P, D) * 100, 1e-6)
    assert not bool(bank(model).pinned.any())


@pytest.mark.parametrize("vouched", [False, True])
def test_a_picture_that_a_person_vouches_for_is_not_set_aside_when_learning_ends(vouched: bool) -> None:
    model = learner()
    model.partial_fit(pictures(40))
    model.partial_fit(STRANGE, guard=False, first=-1 if vouched else None)
    model.partial_fit(pictures(40, seed=1))
    assert (40 in model.freeze()) is not vouched
    assert (float(model.score(STRANGE)) < float(model.score(pictures(20, seed=2)).max())) is vouched


def test_a_picture_in_doubt_that_was_pinned_is_unlearned_whole() -> None:
    model = learner()
    model.partial_fit(pictures(40))
    model.partial_fit(STRANGE, guard=False)
    model.partial_fit(pictures(40, seed=1))
    assert 40 in model.freeze()  # its anchors are lifted, not gone
    before, pins = float(model.score(STRANGE)), model.pin(STRANGE, 0.1)
    assert pins > 0
    assert model.unlearn(STRANGE) > pins
    assert not bool(bank(model).pinned.any())
    assert float(model.score(STRANGE)) >= before


def test_what_one_picture_alone_has_brought_can_be_removed_and_mass_still_sums_to_the_rows() -> None:
    model = learner()
    model.partial_fit(pictures(24))
    model.partial_fit(STRANGE, guard=False)
    model.partial_fit(pictures(24, seed=1))
    model.freeze()
    before, rows = float(model.score(STRANGE)), model.rows_seen_
    removed = model.unlearn(STRANGE)
    assert removed > 0
    assert len(bank(model)) == K - removed
    assert float(model.score(STRANGE)) > before
    assert int(bank(model).mass.sum()) == rows


def test_a_bank_of_one_anchor_keeps_it() -> None:
    model = learner()
    model.partial_fit(torch.ones(1, P, D))
    assert len(bank(model)) == 1
    model.unlearn(torch.ones(1, P, D))
    assert len(bank(model)) == 1


def test_forgetting_keeps_mean_and_covariance_and_lets_new_images_count_for_more() -> None:
    kept, forgot = trained(), trained()
    mean, variance = forgot.pca_.mean_, forgot.pca_.explained_variance_
    forgot.forget(0.25)
    assert forgot.rows_seen_ == round(kept.rows_seen_ / 4)
    torch.testing.assert_close(forgot.pca_.mean_, mean)
    torch.testing.assert_close(forgot.pca_.explained_variance_, variance, rtol=1e-2, atol=0)
    assert float(bank(forgot).mass.sum()) == pytest.approx(float(bank(kept).mass.sum()) / 4)
    shifted = pictures(50, seed=7, shift=2.0)
    for model in (kept, forgot):
        model.partial_fit(shifted, guard=False)
    target = shifted.reshape(-1, D).mean(0)
    assert float((forgot.pca_.mean_ - target).norm()) < 0.7 * float((kept.pca_.mean_ - target).norm())


def test_anchors_that_nothing_renews_fade_and_are_dropped() -> None:
    model = trained()
    for _ in range(200):
        model.forget(0.9)
    assert 1 <= len(bank(model)) <= K
    model.partial_fit(pictures(40, seed=3))
    model.freeze()
    assert torch.isfinite(model.score(pictures(4, seed=4))).all()


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_to_keep_is_between_nothing_and_all(share: float) -> None:
    with pytest.raises(ValueError, match=r"share is .*, expected a value in \(0, 1\]"):
        trained().forget(share)


def test_beginning_again_counts_from_zero_and_keeps_what_was_learned() -> None:
    model = trained()
    rows, scores = model.rows_seen_, model.score(pictures(8, seed=5))
    model.begin_again()
    assert (model.images_seen_, model.convergence_.outside) == (0, 1.0)
    assert model.rows_seen_ == rows
    assert torch.equal(model.score(pictures(8, seed=5)), scores)
    model.partial_fit(pictures(16, seed=6))
    assert model.images_seen_ == 16


def test_however_often_it_began_again_it_is_known_by_the_same_images_whether_the_basis_still_turns() -> None:
    model = trained()
    for seed in range(1, 6):
        model.begin_again()
        model.partial_fit(pictures(60, seed))
        assert model.convergence_.change < CONVERGED_CHANGE
        model.freeze()


@pytest.mark.parametrize("share", [1.0, 0.9])
def test_who_began_again_and_is_taken_up_from_its_state_goes_on_bit_by_bit(share: float) -> None:
    model = trained()
    model.begin_again()
    model.partial_fit(pictures(20, seed=1))
    resumed = learner().load_state_dict(model.state_dict())
    for part in pictures(60, seed=2).split(STEP):
        for each in (model, resumed):
            each.forget(share)
            each.partial_fit(part)
        assert_same(model, resumed)
    assert model.rows_before_ == pytest.approx(100 * P * share**8, abs=8)


def test_a_state_of_an_earlier_release_that_began_again_refreshes_by_the_growth_of_all_rows() -> None:
    model = trained()
    model.begin_again()
    state = model.state_dict()
    del state["rows_before"]
    resumed = model.load_state_dict(state)
    resumed.partial_fit(pictures(8, seed=1))
    assert (resumed.rows_before_, resumed.rows_at_refresh_, resumed.rows_seen_) == (0, 100 * P, 108 * P)


def test_a_bank_that_became_smaller_than_its_pinned_anchors_is_learned_again() -> None:
    model = trained()
    pins = model.pin(STRANGE, 0.5)
    smaller = learner(bank_size=pins // 2).load_state_dict(model.state_dict())
    smaller.begin_again()
    smaller.partial_fit(pictures(60, seed=1))
    smaller.freeze()
    assert (len(bank(smaller)), int(bank(smaller).pinned.sum())) == (2 * pins, pins)
    with pytest.raises(ValueError, match="raise bank_size"):
        smaller.pin(-STRANGE, 0.5)


def test_feedback_goes_round_with_the_state() -> None:
    model = trained()
    model.pin(STRANGE, 0.5)
    model.begin_again()
    again = learner().load_state_dict(model.state_dict())
    assert_same(model, again)
    assert torch.equal(again.score(STRANGE), model.score(STRANGE))


def test_a_uniform_sample_takes_no_feedback() -> None:
    model = OnePassLearner(K, aggregation=PatchCoreAggregation.NONE)
    model.partial_fit(pictures(3))
    with pytest.raises(ValueError, match="aggregation is NONE, a uniform sample: single images can be pinned"):
        model.pin(STRANGE, 1.0)
    with pytest.raises(ValueError, match="aggregation is NONE, a uniform sample: single images can be pinned"):
        model.unlearn(STRANGE)


def test_a_stream_that_begins_with_bad_parts_ends_with_them_in_doubt() -> None:
    first = pictures(3, seed=50)
    first[torch.arange(3), torch.arange(3)] += 40  # one patch of each, each another
    model = learner(top_k=1)
    model.partial_fit(first)
    model.partial_fit(pictures(200))
    set_aside = model.freeze().tolist()
    assert set(set_aside) <= {0, 1, 2}
    again = pictures(3, seed=51)
    again[torch.arange(3), torch.arange(3)] += 40
    assert float(model.score(again).min()) > float(model.score(pictures(100, seed=52)).max())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_identical_or_black_pictures_give_finite_scores_of_zero(value: float) -> None:
    model = learner()
    model.partial_fit(torch.full((64, P, D), value))
    model.freeze()
    assert model.score(torch.full((2, P, D), value)).tolist() == [0.0, 0.0]
    assert torch.isfinite(model.score(pictures(2))).all()


def test_two_alternating_products_are_both_normal() -> None:
    model = OnePassLearner(4 * K)
    both = torch.stack([pictures(100), pictures(100, seed=1, shift=6.0)], 1).flatten(0, 1)
    model.partial_fit(both)
    model.freeze()
    limit = float(model.score(pictures(10, seed=3, shift=-6.0)).min())  # as far from the one as the other is
    assert float(model.score(pictures(20, seed=4)).max()) < limit
    assert float(model.score(pictures(20, seed=5, shift=6.0)).max()) < limit


def test_a_first_batch_of_one_image_and_fewer_images_than_components_give_finite_scores() -> None:
    model = learner()
    model.partial_fit(pictures(1))
    model.freeze()
    assert torch.isfinite(model.score(pictures(3, seed=2))).all()
