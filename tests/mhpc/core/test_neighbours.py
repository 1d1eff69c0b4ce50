from typing import Any

import pytest
import torch
from torch import Tensor

from mhpc.core import neighbours as module
from mhpc.core.learner import OnePassLearner
from mhpc.core.neighbours import Neighbours, groups_pay
from mhpc.core.scorer import Scorer
from mhpc.core.scoring import image_scores
from mhpc.core.whitening import Whitening
from tests.mhpc.core.patches import assert_same, pictures

B, P, d, K = 4, 60, 12, 3000


def clustered(N: int, seed: int) -> Tensor:
    """Rows [N, d] about 40 centres, some of them far out."""
    centers = torch.randn(40, d, generator=torch.Generator().manual_seed(99)) * 4
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(40, (N,), generator=generator)
    far = torch.rand(N, 1, generator=generator) ** -0.3
    return centers[which] + torch.randn(N, d, generator=generator) * far


def patches(seed: int = 0, images: int = B) -> Tensor:
    return clustered(images * P, seed).reshape(images, P, d)


def exact_distances(z: Tensor, rows: Tensor) -> Tensor:
    """By brute force in float64."""
    return torch.cdist(z.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist").amin(2)


@pytest.fixture(scope="module")
def bank() -> Tensor:
    return clustered(K, seed=1)


@pytest.fixture(scope="module")
def index(bank: Tensor) -> Neighbours:
    return Neighbours(bank)


@pytest.mark.parametrize("probes", [1, 2, 4])
def test_bounds_are_distances_to_rows_of_the_bank_and_none_is_below_the_nearest(
    bank: Tensor, index: Neighbours, probes: int
) -> None:
    z = patches()
    found = index.bounds(z, probes)
    torch.testing.assert_close(found.distances, (z - bank[found.labels]).norm(dim=2))
    assert bool((found.distances >= exact_distances(z, bank) * (1 - 1e-6)).all())
    assert not bool(found.exact.any())


def test_more_groups_give_tighter_bounds(index: Neighbours) -> None:
    one, two = (index.bounds(patches(), probes).distances for probes in (1, 2))
    assert bool((two <= one).all())
    assert float(two.sum()) < float(one.sum())


def test_the_nearest_of_all_is_that_of_brute_force_in_float64(bank: Tensor, index: Neighbours) -> None:
    x = patches().flatten(0, 1)
    distances, labels = index.nearest(x)
    expected = torch.cdist(x.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist").min(1)
    torch.testing.assert_close(distances.double(), expected.values, rtol=1e-6, atol=0)
    assert torch.equal(labels, expected.indices)


@pytest.mark.parametrize("top_k", [1, 5, P, 2 * P])
def test_the_top_k_distances_are_exact(bank: Tensor, index: Neighbours, top_k: int) -> None:
    z = patches()
    found = index.refine(z, index.bounds(z), top_k)
    expected = exact_distances(z, bank)
    torch.testing.assert_close(
        image_scores(found.distances, top_k).double(), image_scores(expected, top_k), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(found.distances[found.exact].double(), expected[found.exact], rtol=1e-6, atol=0)
    assert bool(found.exact.all()) == (top_k >= P)


def test_every_patch_above_the_threshold_is_exact_and_no_other_is_taken_for_one(
    bank: Tensor, index: Neighbours
) -> None:
    z = patches()
    expected = exact_distances(z, bank)
    threshold = float(expected.quantile(0.7))
    found = index.refine(z, index.bounds(z), 1, threshold)
    above = found.distances > threshold
    assert torch.equal(above, expected.float() > threshold)
    torch.testing.assert_close(found.distances[above].double(), expected[above], rtol=1e-6, atol=0)
    assert not bool(found.exact.all())


def test_an_image_finds_bit_for_bit_the_same_in_every_batch(index: Neighbours) -> None:
    z = patches(images=6)
    together = index.refine(z, index.bounds(z), 3, 2.0)
    for order in ([5], [2, 0], [4, 3, 2, 1, 0]):
        some = index.refine(z[order], index.bounds(z[order]), 3, 2.0)
        assert all(torch.equal(one, all_[order]) for one, all_ in zip(some, together, strict=True))


def test_what_was_found_stays_as_it_was(index: Neighbours) -> None:
    z = patches()
    found = index.bounds(z)
    before = [t.clone() for t in (z, *found)]
    index.refine(z, found, 5, 1.0)
    assert all(torch.equal(now, then) for now, then in zip((z, *found), before, strict=True))


def test_the_index_is_a_function_of_the_rows_alone(bank: Tensor, index: Neighbours) -> None:
    z = patches()
    again = Neighbours(bank.clone())
    assert all(torch.equal(a, b) for a, b in zip(again.bounds(z), index.bounds(z), strict=True))


@pytest.mark.parametrize("rows", [torch.zeros(500, d), torch.ones(1, d), clustered(3, 5).repeat(300, 1)])
def test_equal_rows_and_few_ones_are_searched_as_any(rows: Tensor) -> None:
    z = torch.cat([patches(images=1), rows[:1].expand(1, P, d)])
    searched = Neighbours(rows)
    found = searched.refine(z, searched.bounds(z, min(2, len(searched.sizes))), 2)
    expected = exact_distances(z, rows)
    torch.testing.assert_close(image_scores(found.distances, 2).double(), image_scores(expected, 2), rtol=1e-6, atol=0)
    assert float(found.distances[1].max()) == 0


def test_more_probes_than_groups_search_all_of_them() -> None:
    rows = clustered(3, seed=5)
    z = patches()
    found = Neighbours(rows).bounds(z, probes=9)
    torch.testing.assert_close(found.distances.double(), exact_distances(z, rows), rtol=1e-6, atol=0)


# -- where it is used --------------------------------------------------------------------------------------------------


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small banks of small images are searched by groups, too."""
    monkeypatch.setattr(module, "LEAST_ROWS", 10)
    monkeypatch.setattr(module, "LEAST_PATCHES", 1)


def test_groups_do_not_pay_for_small_banks_or_images() -> None:
    assert groups_pay(torch.zeros(6000, 2), 784)
    assert not groups_pay(torch.zeros(500, 2), 784)
    assert not groups_pay(torch.zeros(6000, 2), 64)
    assert not groups_pay(torch.zeros(6000, 2, device="meta"), 784)


@pytest.mark.usefixtures("grouped")
@pytest.mark.parametrize("top_k", [1, 4])
def test_a_scorer_scores_as_by_brute_force_and_maps_are_exact_above_the_threshold(bank: Tensor, top_k: int) -> None:
    lift = torch.rand(K, generator=torch.Generator().manual_seed(0))
    scorer = Scorer.of_bank(Whitening(torch.zeros(d), torch.eye(d)), bank, lift, top_k)
    x = patches()
    plain = scorer.score_patches(x)
    threshold = float(plain.quantile(0.8))
    scores, maps = scorer.score_maps(scorer.whiten(x), threshold)
    torch.testing.assert_close(scores, image_scores(plain, top_k), rtol=1e-5, atol=0)
    torch.testing.assert_close(maps[plain > threshold], plain[plain > threshold], rtol=1e-5, atol=0)
    assert bool((maps >= plain * (1 - 1e-5)).all())
    assert torch.equal(scorer.score(x), scores)


@pytest.mark.usefixtures("grouped")
def test_a_scorer_that_has_pinned_searches_what_it_has_pinned() -> None:
    scorer = Scorer.of_bank(Whitening(torch.zeros(d), torch.eye(d)), clustered(50, 1), torch.zeros(50), 1)
    strange = patches(7, images=1) + 30
    assert float(scorer.score(strange)) > 1
    scorer.pin(strange, 1.0)
    assert float(scorer.score(strange)) <= 1


def streamed(learner: OnePassLearner, images: Tensor) -> OnePassLearner:
    for part in images.split(8):
        learner.partial_fit(part)
    return learner


@pytest.mark.usefixtures("grouped")
def test_a_learner_that_was_restored_goes_on_in_the_same_steps() -> None:
    images = pictures(160)
    unbroken = streamed(OnePassLearner(60, top_k=2), images)
    begun = streamed(OnePassLearner(60, top_k=2), images[:80])
    again = OnePassLearner(60, top_k=2).load_state_dict(begun.state_dict())
    assert_same(streamed(again, images[80:]), unbroken)


def test_a_step_by_groups_scores_and_grows_as_one_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = streamed(OnePassLearner(60, top_k=2), pictures(80)).state_dict()
    assert len(begun["anchors"]) >= 60
    stepped: list[Any] = []
    for least in (10, 10**9):
        monkeypatch.setattr(module, "LEAST_ROWS", least)
        monkeypatch.setattr(module, "LEAST_PATCHES", 1)
        learner = OnePassLearner(60, top_k=2).load_state_dict(begun)
        scores = learner.partial_fit(pictures(4, seed=5)).scores
        stepped.append((scores, learner.state_dict()))
    (scores, state), (plain_scores, plain) = stepped
    torch.testing.assert_close(scores, plain_scores, rtol=1e-5, atol=0)
    for name in ("recent_outside", "picture", "mean", "scatter"):
        assert torch.equal(state[name], plain[name]), name
    assert float(state["mass"].sum()) == float(plain["mass"].sum())
