import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from mhpc.core.backbones import BackboneError, load_backbone
from mhpc.core.patch_features import PatchFeatures


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return load_backbone("resnet18", "random:0")


def pictures(B: int, H: int = 64, W: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def naive(backbone: nn.Module, layers: list[str], patchsize: int, images: Tensor) -> Tensor:
    """Every neighbourhood cut out and averaged, zeros beyond the border; [B, P, D]."""
    maps = create_feature_extractor(backbone, layers)(images)
    size = maps[layers[0]].shape[2:]
    aligned = []
    for name in layers:
        B, C, h, w = maps[name].shape
        cut = F.unfold(maps[name], patchsize, padding=patchsize // 2)  # [B, C * patchsize^2, h * w]
        pooled = cut.reshape(B, C, patchsize**2, h, w).mean(2)
        aligned.append(F.interpolate(pooled, size=size, mode="bilinear", align_corners=False))
    return torch.cat(aligned, 1).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("patchsize", [1, 3, 5])
@pytest.mark.parametrize("layers", [["layer2"], ["layer2", "layer3"], ["layer1.0.conv1", "layer4"]])
def test_features_equal_the_naive_computation(resnet: nn.Module, layers: list[str], patchsize: int) -> None:
    images = pictures(3, 64, 96)
    features, grid = PatchFeatures(resnet, layers, patchsize)(images)
    assert len(features) == 3
    assert features.shape[1] == grid[0] * grid[1]
    torch.testing.assert_close(features, naive(resnet, layers, patchsize, images), rtol=1e-4, atol=1e-4)


def test_patches_are_row_major_on_the_largest_grid(resnet: nn.Module) -> None:
    features, grid = PatchFeatures(resnet, ["layer2", "layer3"])(pictures(2, 64, 96))
    assert grid == (8, 12)
    assert features.shape == (2, 96, 128 + 256)
    assert features.dtype == torch.float32


def test_layers_are_concatenated_in_the_order_given(resnet: nn.Module) -> None:
    images = pictures(2)
    forward, _ = PatchFeatures(resnet, ["layer2", "layer3"])(images)
    backward, _ = PatchFeatures(resnet, ["layer3", "layer2"])(images)
    torch.testing.assert_close(backward, torch.cat([forward[..., 128:], forward[..., :128]], -1))


def test_features_do_not_depend_on_the_batch(resnet: nn.Module) -> None:
    extract, images = PatchFeatures(resnet, ["layer2", "layer3"]), pictures(5)
    torch.testing.assert_close(extract(images)[0][3:4], extract(images[3:4])[0], rtol=1e-4, atol=1e-4)


def test_the_images_stay_as_they_were(resnet: nn.Module) -> None:
    images = pictures(2)
    PatchFeatures(resnet, ["layer2"])(images)
    assert torch.equal(images, pictures(2))


def test_the_pass_ends_after_the_last_layer(resnet: nn.Module) -> None:
    called: list[str] = []
    hooks = [
        getattr(resnet, name).register_forward_hook(lambda *_, name=name: called.append(name))
        for name in ("layer2", "layer3", "layer4", "fc")
    ]
    PatchFeatures(resnet, ["layer3", "layer2"])(pictures(1))
    for hook in hooks:
        hook.remove()
    assert called in (["layer2"], ["layer2", "layer3"])  # the hook that ends the pass may come before this one


def test_no_hook_is_left_behind_even_after_an_error(resnet: nn.Module) -> None:
    PatchFeatures(resnet, ["layer2"])(pictures(1))
    with pytest.raises(ValueError, match="expected a map"):
        PatchFeatures(resnet, ["fc"])(pictures(1))
    assert not any(module._forward_hooks for module in resnet.modules())


@pytest.mark.parametrize("layers", [[], ["layer9"], ["layer2", "layer2"], [""], ["layer2", "layer9"]])
def test_layers_that_are_not_there_are_refused_with_the_names_that_are(resnet: nn.Module, layers: list[str]) -> None:
    with pytest.raises(BackboneError, match=r"expected distinct names of ResNet: conv1, .*layer2, .*fc") as caught:
        PatchFeatures(resnet, layers)
    assert str(layers) in str(caught.value)


def test_a_layer_that_gives_no_map_is_refused(resnet: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"layer 'fc' gives \[2, 1000\], expected a map \[B, C, h, w\]"):
        PatchFeatures(resnet, ["layer2", "fc"])(pictures(2))


def test_a_layer_that_takes_no_part_in_the_pass_is_refused() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            used: Tensor = self.used(x)
            return used

    with pytest.raises(ValueError, match=r"layers \['idle'\] took no part in the forward pass"):
        PatchFeatures(Idle().eval(), ["used", "idle"])(pictures(1))


@pytest.mark.parametrize("shape", [(3, 64, 64), (0, 3, 64, 64), (2, 1, 64, 64), (2, 3, 31, 64), (2, 64, 64, 3)])
def test_images_of_another_shape_are_refused(resnet: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images have shape \[.*\], expected \[B, 3, H, W\] .*H, W >= 32") as caught:
        PatchFeatures(resnet, ["layer2"])(torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)
