import copy

import pytest
import torch
from torch import Tensor

from mhpc import IncrementalPCA
from mhpc.core.bank import Nearest, Reservoir
from mhpc.core.memory_bank import OVERFULL, MemoryBank
from mhpc.core.whitening import Whitening, ZSpace

D, K, P = 6, 40, 25


def rows(N: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.3])
    return torch.randn(N, D, generator=generator) * spread + 5


def basis(x: Tensor, n_components: int | float | None = 4) -> Whitening:
    pca = IncrementalPCA(n_components).partial_fit(x)
    return ZSpace().of_components(pca.mean_, pca.components_, pca.deviations_)


def learn(bank: MemoryBank, x: Tensor) -> None:
    """Rows of pictures with P patches each, the way the learner gives them."""
    z = bank.whiten(x)
    if len(bank):
        distances, labels = bank.nearest(z)
    else:
        distances, labels = torch.full((len(x),), torch.inf), torch.zeros(len(x), dtype=torch.int64)
    bank.learn(x, Nearest(z, distances, labels), torch.arange(len(x)) // P)


def learned(steps: int, bank_size: int = K) -> MemoryBank:
    bank = MemoryBank(bank_size, D, torch.device("cpu"))
    bank.refresh(basis(rows(500)))
    for seed in range(steps):
        learn(bank, rows(8 * P, seed))
    return bank


def with_anchors(x: Tensor, radius: float) -> MemoryBank:
    """A bank whose anchors are just these rows."""
    bank = MemoryBank(len(x), D, torch.device("cpu"))
    bank.refresh(basis(rows(500), None))
    learn(bank, x)
    bank.radius = radius
    return bank


def test_mass_sums_to_the_rows_seen_and_the_bank_stays_bounded() -> None:
    bank = learned(0)
    for step in range(12):
        learn(bank, rows(8 * P, seed=step))
        assert int(bank.mass.sum()) == (step + 1) * 8 * P
        assert len(bank) <= OVERFULL * K
        assert int(bank.mass.min()) >= 1
        assert bool((bank.moves <= bank.mass).all())
        assert int(bank.support.max()) <= (step + 1) * 8
        assert int(bank.support.min()) >= 1
    bank.reduce()
    assert len(bank) == K
    assert int(bank.mass.sum()) == 12 * 8 * P


def test_all_tensors_keep_one_row_per_anchor() -> None:
    bank = learned(5)
    lengths = {len(t) for t in (bank.anchors, bank.images, bank.mass, bank.moves, bank.support)}
    assert lengths == {len(bank)}


def test_after_growth_every_row_is_within_the_radius_of_an_anchor(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = learned(4)
    monkeypatch.setattr(bank, "_move", lambda *_: None)  # growth alone: moving comes after it
    radius, before = bank.radius, len(bank)
    bank.bank_size = 10_000
    x = torch.cat([rows(8 * P, seed=9), rows(P, seed=10) * 3])
    learn(bank, x)
    distances = torch.cdist(bank.whiten(x), bank.images, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert float(distances.max()) <= radius * (1 + 1e-5)
    assert before < len(bank) < before + len(x)
    assert float(torch.pdist(bank.images[before:]).min()) > radius  # and no more anchors than that takes


def test_each_row_counts_for_the_nearest_anchor_though_it_be_new() -> None:
    bank = MemoryBank(1000, D, torch.device("cpu"), moving=False)
    bank.refresh(basis(rows(500)))
    learn(bank, rows(100))
    bank.radius = 1.0
    before, x = bank.mass.clone(), rows(8 * P, seed=1)
    learn(bank, x)
    assert len(before) < len(bank) < len(before) + len(x) / 2
    _, nearest = bank.nearest(bank.whiten(x))
    taken = torch.bincount(nearest, minlength=len(bank)).double()
    taken[: len(before)] += before
    assert torch.equal(bank.mass, taken)


def test_an_anchor_is_the_mean_of_the_rows_that_moved_it() -> None:
    centers = torch.eye(D)[:4] * 100
    near = [center + rows(7, seed) - 5 for seed, center in enumerate(centers)]
    bank = with_anchors(centers, radius=1e9)
    learn(bank, torch.cat(near)[torch.randperm(28, generator=torch.Generator().manual_seed(0))])
    for center, taken in zip(centers, near, strict=True):
        mean = torch.cat([center[None], taken]).mean(0)
        i = int(torch.cdist(mean[None], bank.anchors).argmin())
        torch.testing.assert_close(bank.anchors[i], mean)
        assert (int(bank.mass[i]), int(bank.moves[i])) == (8, 8)
    torch.testing.assert_close(bank.images, bank.whiten(bank.anchors), rtol=1e-4, atol=1e-4)


def test_the_image_of_a_moved_anchor_is_its_whitening() -> None:
    bank = learned(10)
    torch.testing.assert_close(bank.images, bank.whiten(bank.anchors), rtol=1e-3, atol=1e-4)


def test_support_counts_distinct_pictures_not_patches() -> None:
    bank = with_anchors(torch.eye(D)[:3] * 100, radius=1e9)
    order = [int((bank.anchors[:, i] == 100).nonzero()) for i in range(3)]
    before = bank.support[order].tolist()
    #          picture 0, all near anchor 0; picture 1, half and half
    x = torch.cat([torch.eye(D)[[0] * P], torch.eye(D)[[0] * 10 + [1] * (P - 10)]]) * 99
    learn(bank, x)
    assert before == [1, 1, 1]
    assert bank.support[order].tolist() == [3, 2, 1]


def test_a_row_that_becomes_an_anchor_is_supported_by_its_own_picture() -> None:
    bank = with_anchors(rows(K), radius=3.0)
    learn(bank, torch.cat([rows(P), rows(P) + 1000]))
    fresh = bank.anchors[:, 0] > 500
    assert 0 < int(fresh.sum()) < P  # the other rows of that picture are nearest to those that became anchors
    assert bank.support[fresh].tolist() == [1] * int(fresh.sum())
    assert int(bank.mass[fresh].sum()) == P


def test_reduction_keeps_mass_the_largest_support_and_what_it_covers() -> None:
    bank = learned(3, bank_size=100)
    anchors, images, mass, moves, support = bank.anchors, bank.images, bank.mass, bank.moves, bank.support
    bank.bank_size = 30
    bank.reduce()
    distances = torch.cdist(images, bank.images, compute_mode="donot_use_mm_for_euclid_dist")
    heirs = distances.argmin(1)
    kept = distances.amin(1) == 0
    assert int(kept.sum()) == len(bank) == 30
    torch.testing.assert_close(bank.radius, float(distances.amin(1).max()), rtol=1e-4, atol=0)
    assert torch.equal(bank.anchors, anchors[kept][heirs[kept].argsort()])
    assert torch.equal(bank.moves, moves[kept][heirs[kept].argsort()])
    for i in range(30):
        assert int(bank.mass[i]) == int(mass[heirs == i].sum())
        assert int(bank.support[i]) == int(support[heirs == i].max())


@pytest.mark.parametrize(("bank_size", "held"), [(999, 999), (1000, 2000), (1500, 2000), (2000, 2000), (6000, 6000)])
def test_a_small_bank_holds_more_while_it_learns(bank_size: int, held: int) -> None:
    assert MemoryBank(bank_size, D, torch.device("cpu")).held == held


@pytest.mark.parametrize("moving", [True, False])
def test_a_small_bank_settles_at_the_mean_of_what_falls_to_each_anchor_unless_it_is_pinned(
    moving: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = learned(3, bank_size=100)
    bank.moving = moving
    bank.pinned[0] = True
    anchors, images, mass = bank.anchors, bank.images, bank.mass
    bank.bank_size = 30
    monkeypatch.setattr(MemoryBank, "held", 100)
    chosen = copy.deepcopy(bank)
    chosen.reduce()
    bank.settle()
    heirs = torch.cdist(images, chosen.images, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert len(bank) == 30
    for i in range(30):
        fall = heirs == i
        mean = (anchors[fall] * mass[fall, None]).sum(0) / mass[fall].sum()
        expected = mean.float() if moving and not bank.pinned[i] else chosen.anchors[i]
        torch.testing.assert_close(bank.anchors[i], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bank.images, bank.whiten(bank.anchors), rtol=1e-3, atol=1e-3)


def test_a_bank_that_is_reduced_moves_as_far_towards_the_mean_as_it_is_told() -> None:
    stays, goes, settles = (learned(3, bank_size=100) for _ in range(3))
    stays.reduce(30)
    goes.reduce(30, merge=0.5)
    settles.reduce(30, merge=1.0)
    assert not torch.equal(goes.anchors, stays.anchors)
    torch.testing.assert_close(goes.anchors, (stays.anchors + settles.anchors) / 2)
    torch.testing.assert_close(goes.images, (stays.images + settles.images) / 2)
    assert torch.equal(goes.mass, stays.mass)


def test_a_bank_that_became_smaller_than_its_pinned_anchors_keeps_as_many_others() -> None:
    bank = learned(3, bank_size=100)
    bank.pinned[:40] = True
    pinned, bank.bank_size = bank.anchors[:40].clone(), 30
    bank.reduce()
    assert (len(bank), int(bank.pinned.sum())) == (80, 40)
    learn(bank, rows(40 * P, seed=7))
    assert 80 <= len(bank) <= OVERFULL * 80
    assert torch.equal(bank.anchors[bank.pinned], pinned)


def test_a_bank_that_is_not_overfull_is_not_reduced() -> None:
    bank = with_anchors(rows(K), radius=0.25)
    anchors = bank.anchors.clone()
    bank.reduce()
    assert torch.equal(bank.anchors, anchors)
    assert bank.radius == 0.25


def test_a_new_basis_scales_the_radius_as_it_scales_distances() -> None:
    bank = learned(6)
    radius, images = bank.radius, bank.images.clone()
    assert bank.whitening.projection is not None
    bank.refresh(Whitening(bank.whitening.mean, 3 * bank.whitening.projection))
    torch.testing.assert_close(bank.images, 3 * images, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(bank.radius, 3 * radius, rtol=1e-2, atol=0)


def test_a_basis_of_another_size_is_taken_over() -> None:
    bank = learned(6)
    bank.refresh(basis(rows(500), 2))
    assert bank.images.shape == (len(bank), 2)
    assert 0 < bank.radius < float("inf")
    learn(bank, rows(8 * P))


@pytest.mark.parametrize("anchors", [torch.ones(1, D), torch.ones(3, D)])
def test_a_lone_anchor_or_equal_ones_keep_the_radius_at_a_refresh(anchors: Tensor) -> None:
    bank = with_anchors(anchors, radius=2.0)
    bank.refresh(basis(rows(500, seed=1)))
    assert bank.radius == 2.0


def test_the_rows_given_stay_as_they_were() -> None:
    bank = learned(3)
    x = rows(8 * P, seed=7)
    z, pictures = bank.whiten(x), torch.arange(len(x)) // P
    distances, labels = bank.nearest(z)
    given = [x, z, distances, labels, pictures]
    before = [tensor.clone() for tensor in given]
    bank.learn(x, Nearest(z, distances, labels), pictures)
    assert all(torch.equal(now, then) for now, then in zip(given, before, strict=True))


def sampled(steps: int, seed: int = 0) -> Reservoir:
    bank = Reservoir(K, D, torch.device("cpu"), seed)
    bank.refresh(basis(rows(500)))
    for step in range(steps):
        x = rows(8 * P, step)
        x[:, 0] = torch.arange(8 * P) + step * 8 * P  # which row it is
        none = torch.zeros(len(x), dtype=torch.int64)
        bank.learn(x, Nearest(bank.whiten(x), none.float(), none), none)
    return bank


def test_anchors_that_do_not_move_are_rows_that_were_seen() -> None:
    bank = MemoryBank(K, D, torch.device("cpu"), moving=False)
    bank.refresh(basis(rows(500)))
    for seed in range(4):
        learn(bank, rows(8 * P, seed))
    seen = torch.cat([rows(8 * P, seed) for seed in range(4)])
    assert bool((bank.anchors[:, None] == seen).all(2).any(1).all())
    assert int(bank.mass.sum()) == len(seen)
    assert int(bank.moves.max()) == 0


@pytest.mark.filterwarnings("ignore:the reservoir")
def test_a_reservoir_is_a_uniform_sample_of_the_rows() -> None:
    kept = torch.cat([sampled(5, seed).anchors[:, 0] for seed in range(100)])
    assert len(kept) == 100 * K
    assert len(sampled(5).anchors[:, 0].unique()) == K
    share = torch.histc(kept, 5, 0, 5 * 8 * P) / len(kept)  # by the step in which a row came
    torch.testing.assert_close(share, torch.full((5,), 0.2), atol=0.03, rtol=0)  # 4 deviations of a fair draw are 0.025


@pytest.mark.filterwarnings("ignore:the reservoir")
def test_a_reservoir_draws_the_same_from_its_state() -> None:
    unbroken, broken = sampled(3), sampled(2)
    again = Reservoir(K, D, torch.device("cpu"), 0)
    again.load_state_dict(broken.state_dict())
    x = rows(8 * P, 2)
    x[:, 0] = torch.arange(8 * P) + 2 * 8 * P
    none = torch.zeros(len(x), dtype=torch.int64)
    again.learn(x, Nearest(again.whiten(x), none.float(), none), none)
    assert torch.equal(again.anchors, unbroken.anchors)
    assert torch.equal(again.images, unbroken.images)


def test_a_full_reservoir_warns_once_of_what_it_misses() -> None:
    with pytest.warns(UserWarning, match=f"bank_size = {K} rows is full.*GREEDY or KMEANS") as caught:
        sampled(3)
    assert len(caught) == 1
