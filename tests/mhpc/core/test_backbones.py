import sys
import urllib.request
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from mhpc.core.backbones import BackboneError, BackboneName, backbone_label, hash_parameters, load_backbone
from mhpc.core.tiny import TinyBackbone

SMALL = BackboneName.mobilenet_v3_large


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub cache; downloads go to a port on which nobody listens."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of its first use
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints


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


def test_a_module_passes_through_whatever_the_weights() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    assert load_backbone(module) is module
    assert not module.training


def test_the_bundled_weights_are_those_of_tiny() -> None:
    module = load_backbone("tiny", "bundled")
    assert isinstance(module, TinyBackbone)
    assert hash_parameters(module) != hash_parameters(load_backbone("tiny", "random:0"))


def test_a_state_dict_on_disk_gives_the_same_backbone(tmp_path: Path) -> None:
    original = load_backbone("tiny", "random:5")
    save_file(original.state_dict(), tmp_path / "w.safetensors")
    for path in (tmp_path / "w.safetensors", str(tmp_path / "w.safetensors")):
        assert hash_parameters(load_backbone("tiny", path)) == hash_parameters(original)


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


def test_pretrained_weights_are_torch_hubs(hub: Path) -> None:
    weights = torchvision.models.get_model_weights(SMALL.value).IMAGENET1K_V1
    original = load_backbone(SMALL, "random:1")
    torch.save(original.state_dict(), hub / weights.url.rpartition("/")[2])
    assert hash_parameters(load_backbone(SMALL)) == hash_parameters(original)


def test_pretrained_weights_that_cannot_be_downloaded_are_one_clear_error(hub: Path) -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone(SMALL)
    text = str(caught.value)
    assert "pretrained weights of mobilenet_v3_large cannot be had from https://" in text
    assert "Connection refused" in text
    assert "weights = PATH" in text
    assert 'backbone = "tiny"' in text
    assert list(hub.iterdir()) == []


def test_pretrained_weights_with_a_wrong_hash_are_refused(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forged = hub.parent / "mobilenet-00000000.pth"
    torch.save(load_backbone(SMALL, "random:1").state_dict(), forged)
    weights = torchvision.models.get_model_weights(SMALL.value).IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "url", forged.as_uri())
    with pytest.raises(BackboneError, match=r"cannot be had from .*invalid hash value"):
        load_backbone(SMALL)


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
