import pytest
import torch
from torch import Tensor

from mhpc.core.doubt import MAX_SHARE, MIN_PICTURES, find_doubt

D = 6


def bank(pictures: int, strange: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Anchors [K, D], their pictures, their distances to these, their support.

    The pictures are alike, five anchors each; the last `strange` hold one that is far from all others.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5 * pictures, D, generator=generator)
    picture = torch.arange(pictures).repeat_interleave(5)
    for number in range(pictures - strange, pictures):
        images[5 * number] = 8 * (1 + (pictures - 1 - number) // D) * torch.eye(D)[number % D]
    return images, picture, images.norm(dim=1), torch.ones(len(images), dtype=torch.float64)


def test_a_picture_with_a_part_like_no_other_is_in_full_doubt_and_its_anchor_is_lifted() -> None:
    lift, set_aside = find_doubt(*bank(60, strange=2), radius=1.0)
    assert set_aside.tolist() == [58, 59]
    assert bool((lift[[5 * 58, 5 * 59]] > 20).all())
    assert float(lift[: 5 * 50].max()) < float(lift[5 * 58]) / 10


@pytest.mark.parametrize(("own_distance", "doubted"), [(8.0, True), (0.5, False)])
def test_a_rare_part_whose_patches_resemble_one_another_is_not_doubted(own_distance: float, doubted: bool) -> None:
    images, picture, own, support = bank(60)
    images[5 * 59] = 8 * torch.eye(D)[0]
    own[5 * 59 :] = own_distance
    lift = find_doubt(images, picture, own, support, radius=1.0).lift[5 * 59]
    assert (float(lift) > 0) is doubted


def test_what_is_unlike_the_rest_of_each_picture_but_has_support_is_not_doubted() -> None:
    images, picture, own, support = bank(60, strange=2)
    support[[5 * 58, 5 * 59]] = 40
    lift, set_aside = find_doubt(images, picture, own, support, radius=1.0)
    assert float(lift[[5 * 58, 5 * 59]].max()) == 0
    assert set_aside.tolist() == []


def test_an_anchor_with_support_is_hardly_lifted_though_its_picture_is_in_doubt() -> None:
    images, picture, own, support = bank(60, strange=1)
    images[5 * 59 + 1] = -images[5 * 59]
    support[5 * 59 + 1] = 40
    lift, set_aside = find_doubt(images, picture, own, support, radius=1.0)
    assert set_aside.tolist() == [59]
    assert float(lift[5 * 59 + 1]) < float(lift[5 * 59]) / 30


def test_an_anchor_in_full_doubt_is_lifted_as_far_as_if_it_were_not_there() -> None:
    images, picture, own, support = bank(60, strange=1)
    lift = find_doubt(images, picture, own, support, radius=1.0).lift[5 * 59]
    others = (images[5 * 59] - images[picture != 59]).norm(dim=1).min()
    torch.testing.assert_close(lift, others**2 - 1)


def test_no_more_than_a_bounded_share_of_the_pictures_is_in_doubt() -> None:
    images, picture, own, support = bank(60, strange=20)
    doubted = picture[find_doubt(images, picture, own, support, radius=1.0).lift > 0].unique()
    assert 0 < len(doubted) <= MAX_SHARE * 60


def test_anchors_of_earlier_days_vouch_for_others_and_are_not_doubted() -> None:
    images, picture, own, support = bank(60, strange=2)
    picture[5 * 59 :] = -1
    images[5 * 58] = images[5 * 59]  # seen before
    lift, set_aside = find_doubt(images, picture, own, support, radius=1.0)
    assert float(lift[5 * 58 :].max()) == 0
    assert 58 not in set_aside.tolist()


@pytest.mark.parametrize("pictures", [1, MIN_PICTURES - 1])
def test_of_few_pictures_none_is_doubted(pictures: int) -> None:
    lift, set_aside = find_doubt(*bank(pictures, strange=1), radius=1.0)
    assert float(lift.abs().sum()) == 0
    assert set_aside.tolist() == []


def test_equal_pictures_are_not_doubted() -> None:
    images = torch.ones(100, D)
    lift, set_aside = find_doubt(images, torch.arange(100), torch.zeros(100), torch.ones(100), radius=0.0)
    assert float(lift.abs().sum()) == 0
    assert set_aside.tolist() == []
