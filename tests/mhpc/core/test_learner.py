import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mhpc.core.calibration import outlier_limit
from mhpc.core.learner import REFRESH_GROWTH, STEP
from mhpc.core.memory_bank import OVERFULL, MemoryBank
from mhpc.core.recent import GUARD_AFTER, GUARD_SHARE, RECENT
from mhpc.core.whitening import ZSpace
from tests.mhpc.core.patches import D, K, P, assert_same, defective, learner, pictures


@pytest.mark.parametrize("sizes", [[8] * 12, [16, 80], [40, 24, 32], [88, 8]])
def test_calls_of_whole_steps_give_the_same_however_they_are_split(sizes: list[int]) -> None:
    x = pictures(96)
    x[50] = defective(1)[0] * 4
    whole, split = learner(), learner()
    steps = [split.partial_fit(part) for part in x.split(sizes)]
    expected = whole.partial_fit(x)
    assert_same(whole, split)
    assert torch.equal(torch.cat([step.scores for step in steps]), expected.scores)
    assert torch.equal(torch.cat([step.learned for step in steps]), expected.learned)


@pytest.mark.parametrize("seen", [3, 8, 40, 77])
def test_a_learner_taken_up_from_its_state_goes_on_bit_by_bit(seen: int) -> None:
    x = pictures(150)
    unbroken, broken = learner(), learner()
    unbroken.partial_fit(x[:seen])
    broken.partial_fit(x[:seen])
    resumed = learner().load_state_dict(broken.state_dict())
    assert_same(resumed, broken)
    a, b = unbroken.partial_fit(x[seen:]), resumed.partial_fit(x[seen:])
    assert torch.equal(a.scores, b.scores)
    assert_same(unbroken, resumed)
    for model in (unbroken, resumed):
        model.freeze()
    assert_same(unbroken, resumed)
    assert torch.equal(unbroken.score(x), resumed.score(x))


def test_of_many_features_the_basis_is_found_near_the_last_one_and_a_replay_finds_the_same() -> None:
    x = torch.randn(120, P, 400, generator=torch.Generator().manual_seed(0)) * 0.95 ** torch.arange(400)
    unbroken, broken = learner(), learner()
    for model in (unbroken, broken):
        model.partial_fit(x[:72])
    resumed = learner().load_state_dict(broken.state_dict())
    for model in (unbroken, resumed):
        model.partial_fit(x[72:])
    assert_same(unbroken, resumed)
    exact = ZSpace().of_moments(unbroken.pca_.moments_)
    assert 0 < exact.turned_from(unbroken._memory_bank().whitening) < 0.05
    unbroken.freeze()  # by all eigenvectors
    frozen = unbroken._memory_bank().whitening
    assert frozen.projection is not None
    assert exact.projection is not None
    assert torch.equal(frozen.projection, exact.projection)


def test_a_state_shares_nothing_with_the_learner_or_with_who_loads_it() -> None:
    x = pictures(60)
    first = learner()
    first.partial_fit(x[:40])
    state = first.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    second = learner().load_state_dict(state)
    first.partial_fit(x[40:])
    second.partial_fit(x[40:])
    assert [name for name in state if not torch.equal(state[name], before[name])] == []
    assert_same(first, second)
    for tensor in [*state.values(), *first.state_dict().values()]:
        tensor.zero_()
    assert_same(first, second)


def test_an_empty_learners_state_goes_round() -> None:
    resumed = learner().load_state_dict(learner().state_dict())
    assert resumed.images_seen_ == resumed.rows_seen_ == 0
    expected = learner()
    for model in (expected, resumed):
        model.partial_fit(pictures(20))
    assert_same(expected, resumed)


@pytest.mark.parametrize("name", ["counts", "scatter", "anchors", "radius", "recent_scores"])
def test_a_state_that_lacks_a_tensor_is_refused(name: str) -> None:
    trained = learner()
    trained.partial_fit(pictures(20))
    state = trained.state_dict()
    del state[name]
    going_on = learner()
    going_on.partial_fit(pictures(20))
    with pytest.raises(ValueError, match=f"the state has no tensor '{name}'; it holds .*moves"):
        going_on.load_state_dict(state)
    assert_same(going_on, trained)


def test_moments_are_those_of_all_rows_learned_and_mass_sums_to_them() -> None:
    x = pictures(100)
    model = learner()
    model.partial_fit(x)
    assert isinstance(model.bank_, MemoryBank)
    flat = x.reshape(-1, D).double().numpy()
    np.testing.assert_allclose(model.pca_.mean_, flat.mean(0), atol=1e-5)
    scatter = model.pca_.moments_.scatter / (len(flat) - 1)
    np.testing.assert_allclose(scatter, np.cov(flat.T), atol=1e-4)
    assert model.rows_seen_ == int(model.bank_.mass.sum()) == 100 * P


def test_support_counts_pictures_and_not_steps() -> None:
    model = learner(bank_size=P)
    model.partial_fit(pictures(3 * STEP))
    assert isinstance(model.bank_, MemoryBank)
    assert STEP < int(model.bank_.support.max()) <= 3 * STEP


def test_the_bank_stays_bounded_and_is_reduced_when_frozen() -> None:
    model = learner()
    for seed in range(10):
        model.partial_fit(pictures(24, seed))
        assert model.bank_ is not None
        assert len(model.bank_) <= OVERFULL * K
    model.freeze()
    assert model.bank_ is not None
    assert len(model.bank_) == K
    current = ZSpace().of_moments(model.pca_.moments_)
    assert model.bank_.whitening.projection is not None
    assert current.projection is not None
    assert torch.equal(model.bank_.whitening.projection, current.projection)
    torch.testing.assert_close(model.bank_.images, current(model.bank_.anchors))


def test_the_basis_is_refreshed_when_the_rows_have_grown_by_a_fixed_factor() -> None:
    model, at = learner(), []
    for part in pictures(120).split(STEP):
        model.partial_fit(part)
        at.append((model.rows_seen_, model.rows_at_refresh_))
    last = 0
    for seen, refreshed in at:
        last = seen if seen >= REFRESH_GROWTH * last else last
        assert refreshed == last
    assert len({refreshed for _, refreshed in at}) < len(at) / 2


def test_images_are_scored_before_they_are_learned_from() -> None:
    x = pictures(60)
    model = learner(bank_size=60 * P)  # room for every patch: what was learned is at distance 0
    first = model.partial_fit(x[:STEP])
    assert bool(first.scores.isinf().all())
    model.partial_fit(x[STEP:40])
    expected = model.score(x[40:48])
    assert torch.equal(model.partial_fit(x[40:48]).scores, expected)
    assert float(expected.min()) > 0.5
    assert float(model.score(x[:48]).max()) < 1e-4


def test_scores_tell_defective_parts_from_good_ones() -> None:
    model = learner()
    model.partial_fit(pictures(150))
    model.freeze()
    test = torch.cat([pictures(50, seed=1), defective(50, seed=2)])
    assert roc_auc_score([0] * 50 + [1] * 50, model.score(test)) > 0.98


@pytest.mark.parametrize("top_k", [1, 5])
def test_scores_do_not_depend_on_the_batch(top_k: int) -> None:
    model = learner(top_k=top_k)
    model.partial_fit(pictures(80))
    x = pictures(20, seed=3)
    alone = torch.cat([model.score(part) for part in x.split(1)])
    torch.testing.assert_close(alone, model.score(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.score(x), model.score_patches(x).topk(top_k).values.mean(1))


def test_a_bad_image_after_many_good_ones_is_set_aside() -> None:
    model, reference = learner(), learner()
    for m in (model, reference):
        m.partial_fit(pictures(80))
    good = pictures(7, seed=5)
    mixed = torch.cat([good[:3], defective(1, seed=6) * 3, good[3:]])
    step = model.partial_fit(mixed)
    assert step.learned.tolist() == [True] * 3 + [False] + [True] * 4
    assert model.recent_.scores[-8:].tolist() == step.scores.tolist()  # the guard compares with all, learned or not
    assert float(step.scores[3]) > 2 * float(step.scores[step.learned].max())
    assert (model.images_learned_, model.images_quarantined_, model.images_seen_) == (87, 1, 88)
    reference.partial_fit(good)
    for name in ("mean", "scatter", "anchors", "mass", "support"):
        torch.testing.assert_close(model.state_dict()[name], reference.state_dict()[name])


def test_the_guard_does_not_judge_by_few_images() -> None:
    model = learner()
    model.partial_fit(pictures(STEP + GUARD_AFTER - 1))  # the first step's scores are infinite and do not count
    assert bool(model.partial_fit(defective(1) * 3).learned.all())


def test_a_lasting_change_is_learned_in_the_end() -> None:
    model = learner()
    model.partial_fit(pictures(200))
    changed = pictures(120, seed=7, shift=8.0)
    step = model.partial_fit(changed)
    assert not bool(step.learned[:5].any())
    assert int((~step.learned).sum()) <= int(GUARD_SHARE * RECENT)
    assert bool(step.learned[-60:].all())
    normal = outlier_limit(model.partial_fit(pictures(40, seed=8)).scores.numpy())
    assert float(model.score(pictures(20, seed=9, shift=8.0)).max()) < normal


@pytest.mark.parametrize(
    "features",
    [torch.zeros(64, P, D), torch.full((64, P, D), 0.1), pictures(1).repeat(64, 1, 1), torch.zeros(64, 1, D)],
    ids=["black", "one colour", "one picture", "one patch"],
)
def test_images_that_are_all_equal_give_finite_scores(features: Tensor) -> None:
    model = learner()
    step = model.partial_fit(features)
    model.freeze()
    assert bool(step.scores[STEP:].isfinite().all())
    assert float(model.score(features).max()) < 1e-3
    assert bool(model.score(features + 1).isfinite().all())
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def test_a_stream_that_begins_with_black_images_learns_what_follows() -> None:
    model = learner()
    model.partial_fit(torch.zeros(16, P, D))
    step = model.partial_fit(pictures(200))
    model.freeze()
    assert bool(step.scores.isfinite().all())
    assert bool(step.learned[-100:].all())
    test = torch.cat([pictures(30, seed=1), defective(30, seed=2)])
    assert roc_auc_score([0] * 30 + [1] * 30, model.score(test)) > 0.98


def test_a_bank_of_one_anchor_works() -> None:
    model = learner(bank_size=1)
    step = model.partial_fit(pictures(80))
    assert model.bank_ is not None
    assert len(model.bank_) == 1
    assert bool(step.scores[STEP:].isfinite().all())
    assert np.isfinite(model.bank_.radius)


@pytest.mark.parametrize("shape", [(4, D), (2, P, D + 1), (0, P, D), (2, 0, D), (2, P, D, 1)])
def test_features_of_another_shape_are_refused_and_change_nothing(shape: tuple[int, ...]) -> None:
    model, expected = learner(), learner()
    for m in (model, expected):
        m.partial_fit(pictures(16))
    for call in (model.partial_fit, model.score, model.score_patches):
        with pytest.raises(ValueError, match=rf"expected \[B, P, {D}\] with B, P >= 1") as caught:
            call(torch.zeros(shape))
        assert str(list(shape)) in str(caught.value)
    assert_same(model, expected)


def test_single_patches_are_learned_from_the_first_one_on() -> None:
    x = pictures(80)[:, :1]
    model = learner(bank_size=20)
    for i, part in enumerate(x.split(1)):
        step = model.partial_fit(part)
        assert bool(step.learned.all())
        assert bool(step.scores.isfinite().all()) is (i > 0)
        model = learner(bank_size=20).load_state_dict(model.state_dict())
    np.testing.assert_allclose(model.pca_.mean_, x[:, 0].mean(0), atol=1e-5)
    assert model.freeze().tolist() == []
    assert len(model._memory_bank()) == 20
    far = x[:8] + 10
    assert float(model.score(far).min()) > float(model.score(x).max())


def test_of_a_single_row_the_model_is_that_row() -> None:
    model = learner()
    model.partial_fit(torch.ones(1, 1, D))
    assert model.freeze().tolist() == []
    near, far = model.score(torch.stack([torch.ones(1, D), torch.full((1, D), 3.0)])).tolist()
    assert near == 0
    assert far > 1


def test_nothing_can_be_scored_before_something_was_learned() -> None:
    with pytest.raises(ValueError, match="nothing was learned yet: call partial_fit"):
        learner().score(pictures(2))
    with pytest.raises(ValueError, match="nothing was learned yet: call partial_fit"):
        learner().freeze()
