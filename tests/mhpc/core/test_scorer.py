import pytest
import torch

from mhpc.core.patch_maps import PatchMaps
from mhpc.core.scorer import Scorer
from mhpc.core.whitening import Whitening
from tests.mhpc.core.patches import D, defective, learner, pictures


def scorer(lift: float = 0.0) -> Scorer:
    images = torch.eye(3)
    return Scorer.of_bank(Whitening(torch.zeros(3), torch.eye(3)), images, torch.tensor([lift, 0.0, 0.0]), top_k=1)


def test_an_anchor_in_doubt_is_farther_by_its_lift() -> None:
    x = torch.eye(3)[None, :2]  # two patches, each on an anchor
    assert scorer().score_patches(x).tolist() == [[0.0, 0.0]]
    patches = scorer(lift=0.25).score_patches(x)
    torch.testing.assert_close(patches, torch.tensor([[0.5, 0.0]]))
    assert scorer(lift=100.0).score_patches(x)[0, 0] == pytest.approx(2**0.5)  # then the next anchor is nearer


def test_a_pinned_picture_is_within_the_radius_from_then_on() -> None:
    model = learner()
    model.partial_fit(pictures(100))
    model.freeze()
    answering, strange = model.scorer(), defective(1) * 3
    before = answering.score(strange)
    radius = float(model.score(pictures(8, seed=5)).median())
    assert answering.pin(strange, radius) > 0
    assert float(answering.score_patches(strange).max()) <= radius * (1 + 1e-5) < float(before)
    assert answering.pin(strange, radius) == 0
    assert torch.equal(model.score(strange), before)  # the learner is another


def test_a_state_goes_round() -> None:
    model = learner()
    model.partial_fit(pictures(60))
    model.freeze()
    answering = model.scorer()
    again = Scorer.of_state(answering.state_dict(), answering.top_k)
    x = pictures(5, seed=3)
    assert torch.equal(again.score(x), answering.score(x))
    with pytest.raises(ValueError, match="the state has no tensor 'memory'"):
        Scorer.of_state({"whitening_mean": torch.zeros(D)}, 1)


def test_features_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features have shape \[1, 2, 4\], expected \[B, P, 3\]"):
        scorer().score(torch.zeros(1, 2, 4))


def test_maps_of_layers_are_whitened_as_joined_features_are() -> None:
    maps = PatchMaps((torch.rand(2, 1, 4, 6), torch.rand(2, 2, 2, 3)))
    for space in (Whitening(torch.rand(3), torch.rand(2, 3)), Whitening(torch.zeros(3), None)):
        d = 3 if space.projection is None else 2
        of = Scorer.of_bank(space, torch.zeros(1, d), torch.zeros(1), top_k=1)
        torch.testing.assert_close(of.whiten_maps(maps), of.whiten(maps.joined()))


def test_maps_that_are_not_finite_are_refused_unless_they_are_known_to_be() -> None:
    maps = PatchMaps((torch.full((1, 3, 1, 2), torch.nan),))
    with pytest.raises(ValueError, match="NaN"):
        scorer().whiten_maps(maps)
    assert bool(scorer().whiten_maps(maps, finite=True).isnan().any())
