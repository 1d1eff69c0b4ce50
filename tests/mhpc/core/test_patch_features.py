from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
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


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"patchsize": 2}, "patchsize is 2, expected an odd number"),
        ({"patchsize": 0}, "patchsize is 0, expected an odd number"),
        ({"patchsize": -1}, "patchsize is -1, expected an odd number"),
        ({"patchsize": 3.5}, "patchsize is 3.5, expected an odd number"),
        ({"patchstride": 0}, "patchstride is 0, expected a whole number of at least 1"),
        ({"pretrain_embed_dimension": 0}, "pretrain_embed_dimension is 0, expected a whole number of at least 1"),
        ({"target_embed_dimension": -3}, "target_embed_dimension is -3, expected a whole number of at least 1"),
        ({"target_embed_dimension": 2.5}, "target_embed_dimension is 2.5, expected a whole number of at least 1"),
    ],
)
def test_sizes_without_meaning_are_refused(resnet: nn.Module, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PatchFeatures(resnet, ["layer2"], **options)


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


def hidden(resnet: nn.Module, name: str, images: Tensor) -> Tensor:
    """What a layer gives at its first call, as fx traces it."""
    with torch.inference_mode():
        layer: Tensor = create_feature_extractor(resnet, [name])(images)[name]
        return layer.flatten(2).transpose(1, 2)


def test_a_module_that_runs_twice_counts_with_its_first_output(resnet: nn.Module) -> None:
    images = pictures(2)
    name = "layer2.0.relu"  # after the first convolution, and after the sum
    alone, _ = PatchFeatures(resnet, [name], patchsize=1)(images)
    beside, _ = PatchFeatures(resnet, [name, "layer2"], patchsize=1)(images)
    torch.testing.assert_close(alone, hidden(resnet, name, images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(beside[..., :128], alone)


def test_what_later_layers_write_in_place_does_not_reach_a_map(resnet: nn.Module) -> None:
    images = pictures(2)
    alone, _ = PatchFeatures(resnet, ["layer2.0.bn2"], patchsize=1)(images)
    beside, _ = PatchFeatures(resnet, ["layer2.0.bn2", "layer2.1"], patchsize=1)(images)
    assert alone.min() < 0  # before the residual sum and the ReLU, which are both in place
    torch.testing.assert_close(beside[..., :128], alone)


def test_a_layer_within_another_one_is_taken_beside_it(resnet: nn.Module) -> None:
    images = pictures(2)
    names = ["layer2", "layer2.0", "layer2.1", "layer2.0.conv1"]
    together, _ = PatchFeatures(resnet, names)(images)
    parts = [PatchFeatures(resnet, [name])(images)[0] for name in names]
    torch.testing.assert_close(together, torch.cat(parts, -1))
    torch.testing.assert_close(parts[0], parts[2])


def test_a_module_with_two_names_goes_by_either() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 3, 3, padding=1)
            self.second = self.first

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x))
            return y

    features, _ = PatchFeatures(Twice().eval(), ["first", "second"])(pictures(1))
    torch.testing.assert_close(features[..., :3], features[..., 3:])


def test_a_backbone_that_catches_every_exception_gives_the_same(resnet: nn.Module) -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = resnet

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.inner(x)  # type: ignore[no-any-return]  # Module's call is untyped
            except Exception:
                return self.inner(x + 1)  # type: ignore[no-any-return]  # and it runs the layers again

    images = pictures(1)
    expected, _ = PatchFeatures(resnet, ["layer2", "layer3"])(images)
    torch.testing.assert_close(PatchFeatures(Careful().eval(), ["inner.layer2", "inner.layer3"])(images)[0], expected)


def test_a_backbone_in_half_precision_gives_float32_features(resnet: nn.Module) -> None:
    half = load_backbone("resnet18", "random:0").to(torch.bfloat16)
    images = pictures(2)
    features, _ = PatchFeatures(half, ["layer2"])(images)
    expected, _ = PatchFeatures(resnet, ["layer2"])(images)
    assert features.dtype == torch.float32
    assert (features - expected).norm() / expected.norm() < 0.03  # bfloat16 has eight bits


def test_no_hook_is_left_behind_even_after_an_error(resnet: nn.Module) -> None:
    PatchFeatures(resnet, ["layer2"])(pictures(1))
    with pytest.raises(ValueError, match="expected a map"):
        PatchFeatures(resnet, ["fc"])(pictures(1))
    assert not any(module._forward_hooks for module in resnet.modules())


def test_a_replica_shares_the_weights_and_runs_beside_the_extractor(resnet: nn.Module) -> None:
    extractor = PatchFeatures(resnet, ["layer2", "layer3"], patchsize=5)
    replica = extractor.replica()
    for mine, its in zip(resnet.state_dict().values(), replica.backbone.state_dict().values(), strict=True):
        assert mine.data_ptr() == its.data_ptr()
    expected = extractor(pictures(2))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda extract: [extract(pictures(2)) for _ in range(5)], (extractor, replica)))
    for features, grid in chain(*found):
        assert grid == expected[1]
        torch.testing.assert_close(features, expected[0])


@pytest.mark.parametrize("layers", [[], ["layer9"], ["layer2", "layer2"], [""], ["layer2", "layer9"]])
def test_layers_that_are_not_there_are_refused_with_the_names_that_are(resnet: nn.Module, layers: list[str]) -> None:
    with pytest.raises(BackboneError, match=r"expected distinct names of ResNet: conv1, .*layer2, .*fc") as caught:
        PatchFeatures(resnet, layers)
    assert str(layers) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("layer22", "did you mean layer2 for layer22?"),
        ("Layer3", "did you mean layer3 for Layer3?"),
        ("layer2.0.bn", "did you mean layer2.0.bn2 for layer2.0.bn?"),
    ],
)
def test_the_closest_layer_is_suggested(resnet: nn.Module, name: str, hint: str) -> None:
    with pytest.raises(BackboneError) as caught:
        PatchFeatures(resnet, ["layer2", name])
    assert str(caught.value).endswith(hint)


def test_a_name_close_to_none_gets_no_suggestion(resnet: nn.Module) -> None:
    with pytest.raises(BackboneError) as caught:
        PatchFeatures(resnet, ["encoder"])
    assert "did you mean" not in str(caught.value)


def test_the_known_layers_are_told_two_levels_deep_and_numbered_ones_in_short() -> None:
    with pytest.raises(BackboneError, match=r"features, features.0 ... features.18, classifier, classifier.0, "):
        PatchFeatures(load_backbone("mobilenet_v2", "random:0"), ["layer2"])
    with pytest.raises(BackboneError, match=r"of Sequential: 0 ... 3$"):
        PatchFeatures(nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(4))), ["layer2"])


def test_one_name_that_is_no_list_is_refused(resnet: nn.Module) -> None:
    with pytest.raises(BackboneError, match=r"layers is 'layer2', expected a list of names: \['layer2'\]"):
        PatchFeatures(resnet, "layer2")


def test_a_transformers_tokens_are_no_map() -> None:
    with torch.device("meta"):
        transformer = torchvision.models.vit_b_32(weights=None).eval()
    extract = PatchFeatures(transformer, ["encoder.layers.encoder_layer_3"], device="meta")
    with pytest.raises(ValueError, match=r"gives \[2, 50, 768\], expected a map \[B, C, h, w\]"):
        extract(torch.zeros(2, 3, 224, 224))


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


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 64, 64, dtype=torch.uint8), np.zeros((1, 3, 64, 64))])
def test_images_that_are_no_floating_tensor_are_refused(resnet: nn.Module, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"images are (torch.uint8|ndarray), expected a floating tensor, normalised"):
        PatchFeatures(resnet, ["layer2"])(images)
