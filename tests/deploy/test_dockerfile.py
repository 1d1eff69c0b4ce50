"""deploy/Dockerfile: as far as it can be tried where no engine builds it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mhpc.core.backbones import BackboneName, load_backbone, pretrained_file
from tests.deploy.composing import ROOT, beside_python
from worker.weights import fetch

SMALL = "mobilenet_v3_small"


def instructions(name: str) -> list[str]:
    text = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.removeprefix(f"{name} ").strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def test_a_linter_has_nothing_to_say_about_the_dockerfile() -> None:
    hadolint = beside_python("hadolint")
    ended = subprocess.run([hadolint, ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_the_dockerfile_copies_what_exists_and_what_the_build_is_given() -> None:
    given = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for words in instructions("COPY") if "--from" not in words for source in words.split()[:-1]}
    assert copied == given
    for source in copied:
        assert (ROOT / source).exists(), source


def test_the_image_runs_as_nobody_else_and_has_a_health_check() -> None:
    assert instructions("USER") == ["10001:10001"]
    (check,) = instructions("HEALTHCHECK")
    assert "/readyz" in check
    assert instructions("ENTRYPOINT") == ['["mhpc-worker"]']


Bake = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def bake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bake:
    """The step of the build that bakes weights in, run here with its argument."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    (tmp_path / "sources").mkdir()
    (step,) = (text for text in instructions("RUN") if "weights fetch" in text)
    step = re.sub(r"(?<!opt)/weights/", f"{tmp_path}/sources/", step).replace("/opt/weights", str(tmp_path / "baked"))

    def bake(weights: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setenv("WEIGHTS", weights)
        return subprocess.run(["/bin/sh", "-c", step], capture_output=True, text=True, check=False, timeout=120)

    return bake


def test_without_the_argument_nothing_is_baked_in(bake: Bake, tmp_path: Path) -> None:
    assert bake("").returncode == 0
    assert list((tmp_path / "baked").iterdir()) == []


def test_a_backbones_name_has_its_weights_fetched_and_they_load(bake: Bake, tmp_path: Path) -> None:
    published = pretrained_file(BackboneName(SMALL))  # in torch hub's cache, as torchvision has it
    published.parent.mkdir(parents=True)
    torch.save(load_backbone(SMALL, "random:0").state_dict(), published)
    ended = bake(SMALL)
    assert ended.returncode == 0, ended.stderr
    assert load_backbone(SMALL, tmp_path / "baked" / f"{SMALL}.safetensors")


def test_a_file_is_baked_in_if_it_is_whole_and_ends_the_build_if_not(bake: Bake, tmp_path: Path) -> None:
    published = pretrained_file(BackboneName(SMALL))
    published.parent.mkdir(parents=True)
    torch.save(load_backbone(SMALL, "random:0").state_dict(), published)
    file = tmp_path / "sources" / "own.safetensors"
    fetch(SMALL, file)
    assert bake("own.safetensors").returncode == 0
    assert {path.name for path in (tmp_path / "baked").iterdir()} == {"own.safetensors", "own.safetensors.sha256"}
    shutil.rmtree(tmp_path / "baked")
    file.write_bytes(file.read_bytes()[:-1])
    ended = bake("own.safetensors")
    assert (ended.returncode, "cut off" in ended.stderr) == (4, True)


def test_a_file_that_is_not_there_ends_the_build(bake: Bake) -> None:
    ended = bake("absent.safetensors")
    assert ended.returncode
    assert "absent.safetensors" in ended.stderr
