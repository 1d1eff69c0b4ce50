"""`mhpc-worker weights`, and a worker on what it fetched."""

import hashlib
import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import save_file

from mhpc.core.backbones import hash_parameters, load_backbone
from tests.worker.calling import Call, Ended

SMALL = "mobilenet_v3_small"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub cache; downloads go to a port on which nobody listens."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of its first use
    checkpoints = tmp_path / "home" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights as torchvision publishes them, the beginning of their SHA-256 in their name; and the url leads there."""
    state, file = load_backbone(SMALL, "random:1").state_dict(), tmp_path / "published.pth"
    torch.save(state, file)
    named = file.with_name(f"{SMALL}-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth")
    file.rename(named)
    weights = torchvision.models.get_model_weights(SMALL).IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "url", named.as_uri())
    return named


@pytest.fixture
def written(hub: Path, published: Path, call: Call, tmp_path: Path) -> Path:
    """What was fetched."""
    output = tmp_path / "small.safetensors"
    assert call("weights", "fetch", SMALL, "--output", output).code == 0
    return output


def told(ended: Ended) -> dict[str, Any]:
    assert (ended.code, ended.err) == (0, "")
    found: dict[str, Any] = json.loads(ended.out)
    return found


def test_weights_are_downloaded_once_and_written_with_their_checksums(
    hub: Path, published: Path, call: Call, tmp_path: Path
) -> None:
    output = tmp_path / "small.safetensors"
    first = call("weights", "fetch", SMALL, "--output", output, "--json")
    attempt, _, rest = first.err.partition("\n")
    assert attempt.startswith("Downloading: ")
    found = told(first._replace(err=rest))
    sha256 = hashlib.sha256(output.read_bytes()).hexdigest()
    assert (found["file"], found["backbone"], found["sha256"]) == (str(output), SMALL, sha256)
    assert (found["source"], found["missing"]) == (published.as_uri(), [])
    assert "begins as its name says" in found["checked"][0]
    check = ["/usr/bin/sha256sum", "--check", "--status", f"{output.name}.sha256"]
    assert subprocess.run(check, cwd=tmp_path, check=False).returncode == 0
    with safe_open(output, framework="pt") as file:
        metadata = json.loads(file.metadata()["mhpc"])
    assert (metadata["backbone"], metadata["source"]) == (SMALL, published.as_uri())
    assert metadata["source_sha256"] == hashlib.sha256(published.read_bytes()).hexdigest()
    published.unlink()
    assert told(call("weights", "fetch", SMALL, "-o", output, "--json"))["sha256"] == sha256  # from the cache
    assert sorted(path.name for path in tmp_path.glob("*small*")) == [output.name, f"{output.name}.sha256"]
    assert hash_parameters(load_backbone(SMALL, output)) == hash_parameters(load_backbone(SMALL, "random:1"))


def test_what_lay_in_the_cache_under_another_hash_is_taken_and_never_vouched_for(
    hub: Path, call: Call, tmp_path: Path
) -> None:
    url = str(torchvision.models.get_model_weights(SMALL).IMAGENET1K_V1.url)
    torch.save(load_backbone(SMALL, "random:1").state_dict(), hub / url.rpartition("/")[2])
    ended = call("weights", "fetch", SMALL, "--output", tmp_path / "small.safetensors")
    assert (ended.code, ended.err) == (0, "")
    assert "does not begin as its name says: if it is not your own, delete it and fetch again" in ended.out
    verified = call("weights", "verify", tmp_path / "small.safetensors")
    assert "note  it was made of a file in torch hub's cache whose hash was not its name's" in verified.out
    assert url not in ended.out + verified.out


def test_weights_that_cannot_be_downloaded_are_one_clear_error(hub: Path, call: Call, tmp_path: Path) -> None:
    ended = call("weights", "fetch", SMALL, "--output", tmp_path / "small.safetensors")
    assert ended.code == 4
    attempt, _, rest = ended.err.partition("\n")
    assert attempt.startswith("Downloading: ")
    error = Ended(ended.code, ended.out, rest).error
    for part in (f"pretrained weights of {SMALL}", "Connection refused", f"download them elsewhere to {hub}"):
        assert part in error
    assert list(tmp_path.glob("small*")) == []


@pytest.mark.parametrize(
    ("backbone", "part"),
    [
        ("tiny", 'weights = "bundled"'),
        ("package.module:function", "brings its own weights"),
        ("resnet99", "'resnet99' is unknown; known: tiny"),
    ],
)
def test_there_is_nothing_to_fetch_for_what_torchvision_has_not(
    hub: Path, call: Call, tmp_path: Path, backbone: str, part: str
) -> None:
    ended = call("weights", "fetch", backbone, "--output", tmp_path / "w.safetensors")
    assert (ended.code, part in ended.error) == (4, True)
    assert list(tmp_path.glob("w*")) == []


def test_a_file_that_cannot_be_written_is_told(hub: Path, published: Path, call: Call, tmp_path: Path) -> None:
    (tmp_path / "occupied").mkdir()
    for output in (tmp_path / "absent" / "w.safetensors", tmp_path / "occupied"):
        ended = call("weights", "fetch", SMALL, "--output", output)
        last = ended.err.splitlines()[-1]
        assert (ended.code, last.startswith(f"error: --output {output} is not written: ")) == (2, True)
    assert list(tmp_path.glob(".*tmp")) == []


# -- verify ------------------------------------------------------------------------------------------------------------


def test_a_fetched_file_is_verified_with_all_that_it_says(written: Path, call: Call) -> None:
    found = told(call("weights", "verify", written, "--json"))
    assert (found["backbone"], found["missing"], len(found["checked"])) == (SMALL, [], 3)
    text = call("weights", "verify", written, "--backbone", SMALL).out
    assert [line.split()[0] for line in text.splitlines()] == [f"{SMALL}:", "ok", "ok", "ok"]


def test_a_flipped_bit_is_found_with_and_without_the_file_beside_it(written: Path, call: Call) -> None:
    content = bytearray(written.read_bytes())
    content[-100] ^= 1
    written.write_bytes(content)
    beside = written.with_name(f"{written.name}.sha256")
    ended = call("weights", "verify", written)
    assert ended.code == 4
    assert f"are damaged: {beside} says SHA-256 {beside.read_text().split()[0]}, found " in ended.error
    beside.unlink()
    ended = call("weights", "verify", written)
    assert ended.code == 4
    assert "are damaged: its metadata say SHA-256 " in ended.error


@pytest.mark.parametrize("how", ["cut off", "text", "absent", "folder", "empty sum"])
def test_what_is_no_such_file_is_one_clear_error(written: Path, call: Call, how: str) -> None:
    beside = written.with_name(f"{written.name}.sha256")
    content = written.read_bytes()
    if how == "empty sum":
        beside.write_text("")
    else:
        beside.unlink()
        written.unlink()
    if how == "folder":
        written.mkdir()
    elif how in ("cut off", "text"):
        written.write_bytes(content[: len(content) // 2] if how == "cut off" else b"<html>404</html>")
    ended = call("weights", "verify", written)
    assert ended.code == 4
    assert str(written) in ended.error


def test_weights_of_another_backbone_do_not_fit(written: Path, call: Call) -> None:
    ended = call("weights", "verify", written, "--backbone", "resnet18")
    assert ended.code == 4
    assert "do not fit ResNet" in ended.error


def test_a_file_of_ones_own_is_compared_by_names_and_shapes_and_so_much_is_said(call: Call, tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    save_file(load_backbone(SMALL, "random:3").state_dict(), own)
    ended = call("weights", "verify", own)
    assert ended.code == 2
    assert "expected --backbone" in ended.error
    found = told(call("weights", "verify", own, "--backbone", SMALL, "--json"))
    assert len(found["checked"]) == 1
    assert len(found["missing"]) == 2


def test_a_worker_takes_what_was_fetched(written: Path, call: Call, config: Any) -> None:
    model = f"backbone = '{SMALL}'\nweights = '{written}'\nlayers = ['features.3', 'features.8']"
    ended = call("check", "--config", config(model=model))
    assert (ended.code, ended.err) == (0, "")
    assert f"{SMALL} ({written}" in ended.out
