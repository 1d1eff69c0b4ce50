"""Four ranks against one process."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mhpc.core import distributed
from mhpc.core.choices import PatchCoreAggregation, PatchCoreDistance, PatchCoreFeatureReduction
from mhpc.core.distributed import MERGE, _union, gather_rows, merged, reduce_moments
from mhpc.core.learner import STEP, OnePassLearner
from mhpc.core.memory_bank import MemoryBank
from mhpc.core.recent import RECENT
from mhpc.core.scorer import Scorer
from mhpc.core.whitening import ZSpace
from mhpc.linalg import nearest
from mhpc.mahalanobis import OnlineCovariance
from tests.mhpc.core.patches import pictures
from tests.mhpc.core.ranks import RANKS, in_ranks, own_share, whole
from tests.mhpc.core.test_accuracy import BANK_SIZE, TOP_K, Tiles
from tests.mhpc.core.test_accuracy import tiles as tiles  # a fixture

N, D = 4000, 24
IMAGES, K = 160, 100


def rows() -> Tensor:
    """Rows [N, D] far from the origin, of very different spread."""
    return (
        torch.randn(N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        * torch.logspace(-3, 2, D, dtype=torch.float64)
        + 1000
    )


def textures(B: int) -> Tensor:
    """Patch features [B, 32, 12] with the heavy tails that real ones have."""
    generator = torch.Generator().manual_seed(5)
    spread = torch.distributions.StudentT(4.0)
    torch.manual_seed(int(torch.randint(1000, (1,), generator=generator)))
    return spread.sample((B, 32, 12)) * torch.linspace(0.3, 3, 12)


def learner(bank_size: int = K, **options: object) -> OnePassLearner:
    return OnePassLearner(bank_size, **options)  # type: ignore[arg-type]  # as the tests ask for


def test_the_covariance_of_four_ranks_is_that_of_one_process_to_ten_digits(tmp_path: Path) -> None:
    expected = OnlineCovariance(D, torch.float64).update(rows())
    for covariance, mean, n in in_ranks(tmp_path, covariance_of_shares):
        assert n == N
        torch.testing.assert_close(mean, expected.mean_, rtol=1e-12, atol=0)
        error = (covariance - expected.covariance()).norm() / expected.covariance().norm()
        assert error < 1e-10
        by_entry = (covariance - expected.covariance()).abs()
        sigma = expected.covariance().diagonal().sqrt()
        assert (by_entry / torch.outer(sigma, sigma)).max() < 1e-10  # in the features' own units


def covariance_of_shares() -> tuple[Tensor, Tensor, int]:
    """Uneven shares; one has no rows at all."""
    rank, covariance = dist.get_rank(), OnlineCovariance(D, torch.float64)
    share = rows().split([1, 2500, N - 2501])
    if rank < len(share):
        for batch in share[rank].split(700):
            covariance.update(batch)
    covariance.moments_ = reduce_moments(covariance.moments_)
    return covariance.covariance(), covariance.mean_, covariance.n_samples_seen_


def test_what_is_gathered_is_what_was_there(tmp_path: Path) -> None:
    parts, *elsewhere = in_ranks(tmp_path, gathered)
    assert [part.tolist() for part in parts] == [[], [[1.0, 1.0]], [[2.0, 2.0]] * 2, [[3.0, 3.0]] * 3]
    assert elsewhere == [[], [], []]


def gathered() -> list[Tensor]:
    rank = dist.get_rank()
    assert [part.tolist() for part in gather_rows(torch.tensor([rank > 1]))] in ([], [[False], [False], [True], [True]])
    return gather_rows(torch.full((rank, 2), float(rank)))


def covering(of: OnePassLearner, x: Tensor, by: Scorer) -> Tensor:
    """Distances that leave none, and one in a thousand, of the rows of x [B, P, D] uncovered by a bank's anchors.

    Both are as one scorer sees them. (A bank's own `radius` is another thing: of what its last reduction dropped.)
    """
    z, anchors = by.whiten(x).flatten(0, 1), by.whiten(of._memory_bank().anchors[None])[0]
    distances = nearest(z, anchors)[0].sort().values
    return distances[[-1, -len(distances) // 1000]]


def test_four_ranks_learn_what_one_process_does(tmp_path: Path) -> None:
    images = textures(IMAGES)
    alone = learner()
    for step in images.split(STEP):
        alone.partial_fit(step, guard=False)
    alone.freeze()
    together = learner().load_state_dict(in_ranks(tmp_path, learned_textures)[0])
    assert together.rows_seen_ == alone.rows_seen_
    assert together.images_learned_ == IMAGES
    torch.testing.assert_close(together.pca_.moments_.scatter, alone.pca_.moments_.scatter, rtol=1e-5, atol=1e-3)
    together.freeze()
    bank, of_one = together._memory_bank(), alone._memory_bank()
    assert len(bank) == len(of_one) == K
    assert bank.mass.sum() == alone.rows_seen_  # each row counted, and once
    assert bank.support.max() <= IMAGES
    radii, of_one_process = (covering(each, images, alone.scorer()) for each in (together, alone))
    print(f"covering radius, of all and of 0.999: four ranks {radii}, one process {of_one_process}")  # noqa: T201 - a figure, for -s
    assert bool((radii <= 1.05 * of_one_process).all())


def learned_textures() -> dict[str, Tensor]:
    own = own_share(learner(), textures(IMAGES))
    before = own.state_dict()
    found = whole(own)
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())  # it may go on
    return found


@pytest.mark.parametrize("aggregation", [PatchCoreAggregation.KMEANS, PatchCoreAggregation.GREEDY])
def test_anchors_that_are_kept_and_may_move_go_half_way_to_the_mean_of_what_falls_to_them(
    aggregation: PatchCoreAggregation, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = [learner(aggregation=aggregation) for _ in range(2)]
    for share, images in zip(shares, textures(IMAGES).split(IMAGES // 2), strict=True):
        share.partial_fit(images)
    banks = [share._memory_bank() for share in shares]
    banks[0].pinned[:5] = True
    rows = {name: [getattr(bank, name) for bank in banks] for name in MemoryBank.STATE if name != "images"}
    merged_by = []
    for share_of_the_way in (0.0, MERGE, 1.0):
        monkeypatch.setattr(distributed, "MERGE", share_of_the_way)
        merged_by.append(_union(shares[0], rows, shares[0].pca_.moments_, 1.0))
    stays, goes, settles = merged_by
    assert len(goes) == K
    torch.testing.assert_close(goes.anchors, (stays.anchors + settles.anchors) / 2)
    moved = (goes.anchors != stays.anchors).any(1)
    assert bool(moved.any()) == (aggregation is PatchCoreAggregation.KMEANS)
    assert int(goes.pinned.sum()) == 5
    assert not bool((moved & goes.pinned).any())
    assert goes.mass.sum() == sum(bank.mass.sum() for bank in banks)


def test_what_some_ranks_have_not_learned_is_no_matter(tmp_path: Path) -> None:
    states = in_ranks(tmp_path, only_the_last_learns)
    alone = learner()
    alone.partial_fit(pictures(40))
    found = learner().load_state_dict(states[0])
    assert (found.rows_seen_, found.images_seen_) == (alone.rows_seen_, 40)
    assert len(found.recent_.scores) == len(alone.recent_.scores) < RECENT
    assert torch.equal(found._memory_bank().anchors, alone._memory_bank().anchors)
    assert states[1:] == [{}] * (RANKS - 1)


def only_the_last_learns() -> dict[str, Tensor]:
    assert whole(learner()).get("counts", torch.zeros(4)).sum() == 0  # nobody has: no rank waits for another
    own = learner()
    if dist.get_rank() == RANKS - 1:
        own.partial_fit(pictures(40))
    return whole(own)


@pytest.mark.parametrize(
    ("space", "aggregation", "why"),
    [
        (ZSpace(), PatchCoreAggregation.NONE, "uniform sample"),
        (ZSpace(PatchCoreFeatureReduction.NONE, PatchCoreDistance.EUCLIDEAN), PatchCoreAggregation.GREEDY, "moments"),
    ],
)
def test_what_cannot_be_merged_is_refused(space: ZSpace, aggregation: PatchCoreAggregation, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        merged(OnePassLearner(K, space, aggregation=aggregation))


def test_more_pinned_anchors_than_a_bank_takes_are_refused_on_every_rank(tmp_path: Path) -> None:
    for refused in in_ranks(tmp_path, more_pinned_than_fit):
        assert refused == "80 anchors would be pinned, at most 50 may be of a bank of 100"


def more_pinned_than_fit() -> str:
    own = own_share(learner(), textures(IMAGES))
    own.pin(100 * torch.randn(1, 20, 12, generator=torch.Generator().manual_seed(dist.get_rank())), radius=0.1)
    try:
        return f"no refusal: {merged(own)}"
    except ValueError as error:
        return str(error).partition(":")[0]


def test_a_bank_that_became_smaller_than_its_pinned_anchors_is_merged(tmp_path: Path) -> None:
    first, *others = in_ranks(tmp_path, pinned_before_the_bank_became_smaller)
    assert (first, set(others)) == (40, {None})


def pinned_before_the_bank_became_smaller() -> int | None:
    own = own_share(learner(), textures(IMAGES))
    if dist.get_rank() == 0:
        own.pin(100 * torch.randn(1, 20, 12, generator=torch.Generator().manual_seed(0)), radius=0.1)
    smaller = OnePassLearner(30, own.space)
    smaller.load_state_dict(own.state_dict())
    whole = merged(smaller)
    return None if whole is None else len(whole.bank_ or ())


def test_on_real_tiles_four_ranks_rank_as_well_as_one_process_does(tiles: Tiles, tmp_path: Path) -> None:
    save_file({"train": tiles.train}, tmp_path / "tiles")
    found = list[tuple[float, float]]()
    for order, state in zip(
        orders(len(tiles.train)), in_ranks(tmp_path, learned_tiles, tmp_path / "tiles")[0], strict=True
    ):
        alone, together = of_tiles(), of_tiles().load_state_dict(state)
        alone.partial_fit(tiles.train[order])
        for each in (alone, together):
            each.freeze()
        radii = [covering(each, tiles.train, alone.scorer()) for each in (together, alone)]
        assert bool((radii[0] <= 1.05 * radii[1]).all())
        found.append(tuple(roc_auc_score(tiles.labels, each.score(tiles.test)) for each in (together, alone)))
    ranked, expected = np.mean(found, axis=0)
    print(f"AUROC of four ranks {ranked:.4f}, of one process {expected:.4f}")  # noqa: T201 - a figure, for -s
    assert ranked > expected - 0.005  # they rank better, by 0.005 of 16 orders


def orders(n: int) -> list[Tensor]:
    """Of n images: by a single order the two are 0.008 apart (standard deviation), either way."""
    return [torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]


def learned_tiles(path: Path) -> list[dict[str, Tensor]]:
    train = load_file(path)["train"]
    return [whole(own_share(of_tiles(), train[order])) for order in orders(len(train))]


def of_tiles() -> OnePassLearner:
    return OnePassLearner(BANK_SIZE, ZSpace(pca_variance_ratio=0.9), TOP_K)


@pytest.mark.parametrize("order", [[3, 0, 7, 1, 5, 2, 6, 4], [7, 6, 5, 4, 3, 2, 1, 0]])
def test_pictures_may_come_in_any_order_of_their_numbers(order: list[int]) -> None:
    in_turn, as_numbered = learner(60), learner(60)
    for step, number in enumerate(order):
        images = pictures(STEP, seed=step)
        if step == 5:
            images[3, 2:4] += 9 * torch.tensor([1.0, -1.0]).repeat(4)
        in_turn.partial_fit(images, guard=False)
        as_numbered.partial_fit(images, guard=False, first=STEP * number)
    assert as_numbered.images_learned_ == in_turn.images_learned_ == STEP * len(order)
    for each in (in_turn, as_numbered):
        each.freeze()
    assert bool((in_turn._memory_bank().lift > 0).any())
    assert torch.equal(as_numbered._memory_bank().lift, in_turn._memory_bank().lift)


def test_pictures_without_a_number_get_one_that_is_free() -> None:
    whole = learner(60)
    whole.partial_fit(pictures(STEP), first=20)
    whole.partial_fit(pictures(3 * STEP, seed=1))
    bank = whole._memory_bank()
    assert len(bank.numbers) == len(bank.numbers.unique()) > STEP
    assert bank.numbers.max() >= 28
    assert bank.numbers.min() >= 20
    whole.freeze()
