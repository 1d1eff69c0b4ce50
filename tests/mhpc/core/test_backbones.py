import re
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from mhpc.core.backbones import (
    BackboneError,
    BackboneName,
    backbone_label,
    default_layers,
    hash_parameters,
    load_backbone,
)
from mhpc.core.patch_features import PatchFeatures
from mhpc.core.tiny import TinyBackbone


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's own module of backbones, importable by name."""
    (tmp_path / "my_backbones.py").write_text(
        "from torch import nn\n"
        "def small():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))\n"
        "def no_module():\n    return 'a string'\n"
        "def fails():\n    raise OSError('no such weights')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_backbones", raising=False)
    return "my_backbones"


def test_every_known_name_is_torchvisions_or_the_one_in_the_box() -> None:
    known = set(torchvision.models.list_models())
    assert {name.value for name in BackboneName} - known == {"tiny"}
    assert BackboneName.wideresnet50.value == "wide_resnet50_2"


def test_each_family_is_there_whole() -> None:
    families = r"(wide_)?resnet\d+(_2)?|efficientnet_.*|mobilenet_.*|convnext_.*"
    known = {name for name in torchvision.models.list_models(torchvision.models) if re.fullmatch(families, name)}
    assert known == {name.value for name in BackboneName} - {"tiny"}
    assert all("IMAGENET1K_V1" in torchvision.models.get_model_weights(name).__members__ for name in known)


def without_values(name: BackboneName) -> nn.Module:
    """Shapes alone: the large ones take seconds to fill."""
    with torch.device("meta"):
        return TinyBackbone() if name is BackboneName.tiny else torchvision.models.get_model(name.value, weights=None)


def maps(module: nn.Module, layers: list[str], device: str) -> list[tuple[int, ...]]:
    """(h, w) of each layer by itself, for one image of 64 x 64 pixels."""
    image = torch.zeros(1, 3, 64, 64, device=device)
    return [PatchFeatures(module, [name], device=device)(image)[1] for name in layers]


@pytest.mark.parametrize("name", BackboneName)
def test_default_layers_lie_at_strides_8_and_16(name: BackboneName) -> None:
    layers = default_layers(name)
    assert layers == default_layers(name.value)
    assert maps(without_values(name).eval(), layers, "meta") == [(8, 8), (4, 4)]


@pytest.mark.parametrize("name", BackboneName)
def test_no_value_of_a_backbone_is_left_out_of_its_state_dict(name: BackboneName) -> None:
    module = without_values(name)  # as those are that a file is loaded into: what it cannot give would be zero
    held = [*module.named_parameters(), *module.named_buffers()]
    assert {key for key, _ in held} == module.state_dict().keys()


@pytest.mark.parametrize(
    "name", ["tiny", "resnet18", "efficientnet_b0", "mobilenet_v2", "mobilenet_v3_small", "convnext_tiny"]
)
def test_default_layers_of_the_smallest_give_features(name: str) -> None:
    features, grid = PatchFeatures(load_backbone(name, "random:0"), default_layers(name))(torch.rand(2, 3, 64, 64))
    assert grid == (8, 8)
    assert features.isfinite().all()
    assert (features.std(1) > 0).any(1).all()  # not one value everywhere


@pytest.mark.parametrize("own", [nn.ReLU(), "my.package:function"])
def test_default_layers_of_ones_own_backbone_are_not_guessed(own: nn.Module | str) -> None:
    with pytest.raises(BackboneError, match=r"the layers of .* are not known; name those to use"):
        default_layers(own)


def test_random_weights_repeat_with_their_seed_and_differ_between_seeds() -> None:
    hashes = [hash_parameters(load_backbone("resnet18", seed)) for seed in ("random:7", "random:7", "random:8")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_random_weights_leave_the_callers_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_backbone("resnet18", "random:0")
    assert torch.equal(torch.rand(2), expected)


def test_a_backbone_comes_frozen_and_in_eval_mode() -> None:
    module = load_backbone(BackboneName.resnet18, "random:0")
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_of_a_module_a_copy_is_taken_whatever_the_weights() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    taken = load_backbone(module)
    assert hash_parameters(taken) == hash_parameters(module)
    assert not taken.training
    assert module.training


def test_a_module_that_cannot_be_copied_is_refused_with_the_remedy() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3))
    module.last = module(torch.zeros(1, 3, 8, 8))  # with a graph behind it
    with pytest.raises(BackboneError, match=r"Sequential cannot be copied: .*package\.module:function"):
        load_backbone(module)


def test_the_bundled_weights_are_those_of_tiny() -> None:
    module = load_backbone("tiny", "bundled")
    assert isinstance(module, TinyBackbone)
    assert hash_parameters(module) != hash_parameters(load_backbone("tiny", "random:0"))


def test_a_state_dict_on_disk_gives_the_same_backbone(tmp_path: Path) -> None:
    original = load_backbone("tiny", "random:5")
    save_file(original.state_dict(), tmp_path / "w.safetensors")
    for path in (tmp_path / "w.safetensors", str(tmp_path / "w.safetensors")):
        assert hash_parameters(load_backbone("tiny", path)) == hash_parameters(original)


def test_a_file_from_before_batches_were_counted_gives_the_same_backbone_each_time(tmp_path: Path) -> None:
    original = load_backbone("resnet18", "random:5")
    known = {name: value for name, value in original.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file(known, tmp_path / "w.safetensors")
    try:
        torch.use_deterministic_algorithms(True)  # fills fresh memory, which may be zero by chance
        loaded = load_backbone("resnet18", tmp_path / "w.safetensors")
    finally:
        torch.use_deterministic_algorithms(False)
    assert hash_parameters(loaded) == hash_parameters(original)


def test_a_function_of_ones_own_is_called(own_module: str) -> None:
    module = load_backbone(f"{own_module}:small")
    assert [type(part).__name__ for part in module.children()] == ["Conv2d", "BatchNorm2d"]
    assert not module.training


def test_the_hash_follows_each_value_name_and_buffer() -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    base, same, weight, buffer = (made() for _ in range(4))
    renamed = nn.Sequential(nn.Identity(), *made().children())
    with torch.no_grad():
        next(weight.parameters())[0, 0, 0, 0] += 1e-6
        next(buffer.buffers())[0] += 1e-6
    assert hash_parameters(base) == hash_parameters(same)
    assert len({hash_parameters(module) for module in (base, weight, buffer, renamed)}) == 4


def test_the_hash_does_not_depend_on_the_memory_layout() -> None:
    module = load_backbone("tiny", "random:0")
    before = hash_parameters(module)
    assert hash_parameters(module.to(memory_format=torch.channels_last)) == before


def test_labels_name_the_backbone_however_it_was_given() -> None:
    labels = [backbone_label(given) for given in (BackboneName.wideresnet50, "my.package:function", nn.ReLU())]
    assert labels == ["wide_resnet50_2", "my.package:function", "torch.nn.modules.activation.ReLU"]


@pytest.mark.parametrize("layout", ["half", "channels_last"])
def test_the_hash_is_repeatable_in_each_precision_and_layout(layout: str) -> None:
    def made() -> nn.Module:
        module = load_backbone("tiny", "random:0")
        return module.half() if layout == "half" else module.to(memory_format=torch.channels_last)

    plain = hash_parameters(load_backbone("tiny", "random:0"))
    assert hash_parameters(made()) == hash_parameters(made())
    assert (hash_parameters(made()) == plain) == (layout == "channels_last")


def test_an_empty_tensor_has_a_hash() -> None:
    module = nn.Module()
    before = hash_parameters(module)
    module.register_buffer("nothing", torch.empty(0, 3))
    assert hash_parameters(module) != before


@pytest.mark.parametrize(
    ("backbone", "weights", "text"),
    [
        ("resnet19", "random:0", "backbone 'resnet19' is unknown; known: tiny, resnet18, .*package.module:function"),
        ("resnet18", None, 'weights of resnet18 are missing; give "pretrained"'),
        ("resnet18", "bundled", 'weights "bundled" are for backbone "tiny" alone, not \'resnet18\''),
        ("tiny", "pretrained", 'backbone "tiny" comes with weights "bundled"'),
        ("resnet18", "random:", "weights 'random:': expected \"random:SEED\" with a whole number"),
        ("resnet18", "random:x", "weights 'random:x': expected \"random:SEED\""),
        ("resnet18", "random:-1", "weights 'random:-1': expected \"random:SEED\""),
        ("resnet18", "random:²", "weights 'random:²': expected \"random:SEED\""),
        ("resnet18", "random:" + "9" * 20, 'expected "random:SEED" with a whole number of at most 19 digits'),
        ("resnet18", "no/such.safetensors", "weights 'no/such.safetensors' cannot be read .*No such file"),
        ("no.such.package:make", None, "backbone 'no.such.package:make' gives ModuleNotFoundError.*PYTHONPATH"),
        ("math:no_such_function", None, "backbone 'math:no_such_function' gives AttributeError"),
        ("math:sqrt", None, "backbone 'math:sqrt' gives TypeError.*without arguments"),
        ("my_backbones:no_module", None, "'my_backbones:no_module' returned str, expected a torch.nn.Module"),
        ("my_backbones:fails", None, "'my_backbones:fails' gives OSError: no such weights"),
    ],
)
@pytest.mark.usefixtures("own_module")
def test_what_cannot_be_used_is_refused_with_the_remedy(backbone: str, weights: str | None, text: str) -> None:
    with pytest.raises(BackboneError, match=text):
        load_backbone(backbone, weights)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(BackboneError, match=r'cannot be read .*expected a safetensors state dict of tiny.*"bundled"'):
        load_backbone("tiny", tmp_path / "w.safetensors")


def test_a_folder_is_refused_as_weights(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="cannot be read"):
        load_backbone("tiny", tmp_path)


def test_a_state_dict_of_another_network_is_refused_in_one_line(tmp_path: Path) -> None:
    save_file(load_backbone("tiny", "random:0").state_dict(), tmp_path / "w.safetensors")
    text = r"w.safetensors' do not fit ResNet: of its 122 tensors 122 missing \(bn1.bias, ...\), \d+ unknown \(layer1"
    with pytest.raises(BackboneError, match=text) as caught:
        load_backbone("resnet18", tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)


def test_a_state_dict_of_other_shapes_is_refused(tmp_path: Path) -> None:
    state = load_backbone("tiny", "random:0").state_dict()
    name = next(iter(state))
    save_file({**state, name: state[name][:1].clone()}, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match=rf"do not fit TinyBackbone: .* 1 of another shape \({name}"):
        load_backbone("tiny", tmp_path / "w.safetensors")
