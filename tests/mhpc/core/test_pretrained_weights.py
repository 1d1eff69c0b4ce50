"""weights = "pretrained": torchvision's, from torch hub's cache or the network."""

import urllib.request
from pathlib import Path

import pytest
import torch
import torchvision

from mhpc.core.backbones import BackboneError, BackboneName, hash_parameters, load_backbone

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


def cached_file(hub: Path, name: BackboneName) -> Path:
    return hub / str(torchvision.models.get_model_weights(name.value).IMAGENET1K_V1.url).rpartition("/")[2]


@pytest.mark.parametrize("name", [SMALL, BackboneName.resnet18])
@pytest.mark.parametrize("zipped", [True, False])
def test_pretrained_weights_are_those_in_torch_hubs_cache(hub: Path, name: BackboneName, zipped: bool) -> None:
    original = load_backbone(name, "random:1")  # their hash is not the one in the file's name
    torch.save(original.state_dict(), cached_file(hub, name), _use_new_zipfile_serialization=zipped)
    assert hash_parameters(load_backbone(name)) == hash_parameters(original)


def damage(path: Path, how: str) -> None:
    torch.save(load_backbone(SMALL, "random:1").state_dict(), path)
    content = path.read_bytes()
    damaged = {"truncated": content[: len(content) // 2], "text": b"<html>404 not found</html>\n", "empty": b""}
    if how in damaged:
        path.write_bytes(damaged[how])
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        torch.save(
            {"list": [torch.zeros(3)], "nested": {"state_dict": load_backbone(SMALL, "random:1").state_dict()}}[how],
            path,
        )


@pytest.mark.parametrize("how", ["truncated", "text", "empty", "folder", "list", "nested"])
def test_a_damaged_file_in_the_cache_is_one_clear_error(hub: Path, how: str) -> None:
    path = cached_file(hub, SMALL)
    damage(path, how)
    with pytest.raises(
        BackboneError, match=r"holds no weights that can be read .*; delete it, .* from https://"
    ) as caught:
        load_backbone(SMALL)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


class Intruder:
    """Unpickled, it would run what it names."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (Path("intruded"),)


def test_a_file_in_the_cache_runs_no_code(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hub)
    torch.save({"conv1.weight": Intruder()}, cached_file(hub, SMALL))
    with pytest.raises(BackboneError, match="holds no weights that can be read"):
        load_backbone(SMALL)
    assert not Path("intruded").exists()


def test_weights_in_the_cache_of_another_backbone_are_refused_by_the_files_name(hub: Path) -> None:
    path = cached_file(hub, SMALL)
    torch.save(load_backbone("resnet18", "random:1").state_dict(), path)
    with pytest.raises(BackboneError, match=rf"weights '{path}' do not fit MobileNetV3"):
        load_backbone(SMALL)


def test_pretrained_weights_that_cannot_be_downloaded_are_one_clear_error(
    hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone(SMALL)
    text = str(caught.value)
    assert "pretrained weights of mobilenet_v3_large cannot be had from https://" in text
    assert "Connection refused" in text
    assert f"download them elsewhere to {cached_file(hub, SMALL)}" in text
    assert "weights = PATH" in text
    assert 'backbone = "tiny"' in text
    printed = capsys.readouterr()
    assert printed.out == ""  # stdout is for what a command answers
    assert "Downloading" in printed.err
    assert list(hub.iterdir()) == []


def test_pretrained_weights_with_a_wrong_hash_are_refused(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forged = hub.parent / "mobilenet-00000000.pth"
    torch.save(load_backbone(SMALL, "random:1").state_dict(), forged)
    weights = torchvision.models.get_model_weights(SMALL.value).IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "url", forged.as_uri())
    with pytest.raises(BackboneError, match=r"cannot be had from .*invalid hash value"):
        load_backbone(SMALL)
