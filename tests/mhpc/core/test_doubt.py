import pytest
import torch
from torch import Tensor

from mhpc.core.doubt import MAX_SHARE, MIN_PICTURES, find_doubt

D = 6


def bank(pictures: int, strange: int = 0, mutual: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors [K, D] of pictures that are alike, five each, of which the last `strange` hold one far from all others.

    `mutual`: whether the far anchor is far from its own picture, too.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5 * pictures, D, generator=generator)
    picture = torch.arange(pictures).repeat_interleave(5)
    own = images.norm(dim=1)
    for number in range(pictures - strange, pictures):
        images[5 * number] = 12 * torch.eye(D)[number % D] + number
        own[5 * number] = images[5 * number].norm() if mutual else 1.0
    return images, picture, own


def test_a_picture_with_a_part_like_no_other_is_in_full_doubt_and_its_anchor_is_lifted() -> None:
    images, picture, own = bank(60, strange=2)
    lift, set_aside = find_doubt(images, picture, own, radius=1.0)
    assert set_aside.tolist() == [58, 59]
    assert bool((lift[[5 * 58, 5 * 59]] > 50).all())
    assert float(lift[: 5 * 50].max()) < float(lift[5 * 58]) / 10


def test_a_rare_part_whose_patches_resemble_one_another_is_in_less_doubt() -> None:
    alone = find_doubt(*bank(60, strange=1), radius=1.0).lift[5 * 59]
    rare = find_doubt(*bank(60, strange=1, mutual=False), radius=1.0).lift[5 * 59]
    assert float(rare) < float(alone) / 5


def test_no_more_than_a_bounded_share_of_the_pictures_is_in_doubt() -> None:
    images, picture, own = bank(60, strange=20)
    doubted = picture[find_doubt(images, picture, own, radius=1.0).lift > 0].unique()
    assert len(doubted) <= MAX_SHARE * 60


def test_anchors_of_earlier_days_vouch_for_others_and_are_not_doubted() -> None:
    images, picture, own = bank(60, strange=2)
    picture[5 * 59 :] = -1
    images[5 * 58] = images[5 * 59]  # seen before
    lift, set_aside = find_doubt(images, picture, own, radius=1.0)
    assert float(lift[5 * 58 :].max()) == 0
    assert 58 not in set_aside.tolist()


@pytest.mark.parametrize("pictures", [1, MIN_PICTURES - 1])
def test_of_few_pictures_none_is_doubted(pictures: int) -> None:
    lift, set_aside = find_doubt(*bank(pictures, strange=1), radius=1.0)
    assert float(lift.abs().sum()) == 0
    assert set_aside.tolist() == []


def test_equal_pictures_are_not_doubted() -> None:
    images = torch.ones(100, D)
    lift, set_aside = find_doubt(images, torch.arange(100), torch.zeros(100), radius=0.0)
    assert float(lift.abs().sum()) == 0
    assert set_aside.tolist() == []
