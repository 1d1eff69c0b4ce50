from copy import deepcopy

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from mhpc.core.patch_features import PatchFeatures
from mhpc.core.tiny import CHUNK_BYTES, TinyBackbone, folded
from mhpc.weights import TINY, load_tiny_state


@pytest.fixture(scope="module")
def bundled() -> TinyBackbone:
    backbone = TinyBackbone().eval()
    backbone.load_state_dict(load_tiny_state())
    return backbone


def test_layer2_has_stride_8_and_layer3_stride_16(bundled: TinyBackbone) -> None:
    maps = create_feature_extractor(bundled, ["layer2", "layer3"])(torch.zeros(2, 3, 224, 160))
    assert maps["layer2"].shape == (2, 256, 28, 20)
    assert maps["layer3"].shape == (2, 256, 14, 10)


@torch.inference_mode()
def test_extractor_hooks_and_children_give_the_same_maps(bundled: TinyBackbone) -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    extracted = create_feature_extractor(bundled, ["layer2", "layer3"])(images)
    hooked: list[torch.Tensor] = []
    handle = bundled.layer2.register_forward_hook(lambda module, args, output: hooked.append(output))
    output = bundled(images)
    handle.remove()
    by_children = nn.Sequential(*list(bundled.children())[:3])(images)
    torch.testing.assert_close(extracted["layer2"], hooked[0])
    torch.testing.assert_close(extracted["layer2"], by_children)
    torch.testing.assert_close(extracted["layer3"], output)


@torch.inference_mode()
def test_a_batch_that_runs_in_chunks_gives_what_it_gives_as_one(bundled: TinyBackbone) -> None:
    images = torch.randn(5, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    assert 5 * images[0].nbytes > CHUNK_BYTES
    torch.testing.assert_close(bundled(images), nn.Sequential(*bundled.children())(images))
    assert bundled(images[:0]).shape == (0, 256, 28, 28)


@torch.inference_mode()
def test_a_hook_on_an_early_layer_sees_the_batch_as_one(bundled: TinyBackbone) -> None:
    images = torch.randn(5, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    features, grid = PatchFeatures(bundled, ["layer1.0"])(images)
    assert (len(features), grid) == (5, (224, 224))


def test_batch_norm_learns_from_the_whole_batch() -> None:
    torch.manual_seed(0)
    images, backbone = torch.randn(5, 3, 448, 448), TinyBackbone(batch_norm=True)
    whole = nn.Sequential(*deepcopy(backbone).children())(images)
    torch.testing.assert_close(backbone(images), whole)


def test_it_stays_within_its_size() -> None:
    assert sum(parameter.numel() for parameter in TinyBackbone().parameters()) <= 1_500_000
    assert TINY.stat().st_size <= 3_000_000


@torch.inference_mode()
def test_cells_lie_over_the_pixels_they_stand_for() -> None:
    # With constant positive weights the response to one dot falls off evenly around the dot's own cell.
    backbone = TinyBackbone().eval()
    for name, parameter in backbone.named_parameters():
        parameter.fill_(1 / parameter[0].numel() if name.endswith("weight") else 0)
    dots = torch.zeros(1, 3, 128, 128)
    dots[..., 63:65, 63:65] = 1  # the very centre
    for maps in (backbone.layer1(backbone.stem(dots)), backbone(dots)):
        torch.testing.assert_close(maps, maps.flip(2, 3))


@torch.inference_mode()
def test_folding_batch_norm_changes_no_map() -> None:
    torch.manual_seed(0)
    trained = TinyBackbone(batch_norm=True)
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]  # None only without statistics
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]  # the same
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.1)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(folded(trained)(images), trained.eval()(images), rtol=1e-4, atol=1e-5)


def test_folding_twice_is_refused() -> None:
    with pytest.raises(TypeError, match="batch_norm=True"):
        folded(TinyBackbone())


@torch.inference_mode()
def test_features_do_not_depend_on_the_batch(bundled: TinyBackbone) -> None:
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(bundled(images)[2:3], bundled(images[2:3]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (3, 64, 64), (1, 3, 15, 64), (1, 4, 64, 64)])
def test_what_it_cannot_see_is_refused_with_what_is_needed(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images have shape \[.*\], expected \[B, 3, H, W\] with H, W >= 16"):
        TinyBackbone()(torch.zeros(shape))
