import pytest
import torch
from torch import Tensor

from mhpc.core.backbones import load_backbone
from mhpc.core.patch_features import PatchFeatures
from mhpc.core.patch_maps import PatchMaps

SIZES = ((6, 7, 5), (10, 4, 3), (3, 1, 1))  # channels, height and width of the layers
D, GRID = 19, (7, 5)
NUMBERS = torch.Generator().manual_seed(0)


def maps(B: int = 3) -> PatchMaps:
    drawn = (torch.randn(B, *size, generator=NUMBERS) + 4 for size in SIZES)
    return PatchMaps(tuple(m.contiguous(memory_format=torch.channels_last) for m in drawn))


def projection(d: int = 8) -> tuple[Tensor, Tensor]:
    return torch.full((D,), 4.0), 3 * torch.randn(d, D, generator=NUMBERS)


def close(a: Tensor, b: Tensor) -> bool:
    return float((a.double() - b.double()).norm() / b.double().norm()) < 1e-6


@pytest.mark.parametrize("d", [1, 8, D])
def test_layers_are_projected_apart_as_they_are_joined(d: int) -> None:
    x, (mean, W) = maps(), projection(d)
    z = x.projected(mean, W)
    assert z.shape == (3, 35, d)
    assert close(z, (x.joined().double() - mean.double()) @ W.double().T)


def test_an_image_is_projected_the_same_in_every_batch() -> None:
    x, of = maps(5), projection()
    alone = torch.cat([x.images(i, i + 1).projected(*of) for i in range(5)])
    assert torch.equal(x.projected(*of), alone)


def test_parts_are_put_together_again() -> None:
    x = maps(5)
    again = PatchMaps.cat([x.images(0, 2), x.images(2, 5)])
    assert (len(again), again.grid) == (5, GRID)
    assert torch.equal(again.joined(), x.joined())


def test_joined_features_are_one_map() -> None:
    x = maps()
    one = PatchMaps.of_features(x.joined(), GRID)
    assert torch.equal(one.joined(), x.joined())
    of = projection()
    assert close(one.projected(*of), x.projected(*of))


def test_a_projection_of_other_features_is_refused() -> None:
    with pytest.raises(ValueError, match="maps have 19 channels in all, expected 4"):
        maps().projected(torch.zeros(4), torch.eye(4))


def test_a_backbones_maps_are_those_that_it_joins() -> None:
    extractor = PatchFeatures(load_backbone("resnet18", "random:0"), ["layer1", "layer2", "layer3"])
    images = torch.randn(2, 3, 64, 96, generator=NUMBERS)
    features, grid = extractor(images)
    found = extractor.maps(images)
    assert [m.shape[1] for m in found.maps] == [64, 128, 256]
    assert found.grid == grid
    assert torch.equal(found.joined(), features)


def test_features_that_are_pooled_after_they_are_joined_have_no_maps() -> None:
    extractor = PatchFeatures(load_backbone("resnet18", "random:0"), ["layer1"], target_embed_dimension=8)
    with pytest.raises(ValueError, match="target_embed_dimension is 8"):
        extractor.maps(torch.zeros(1, 3, 64, 64))
