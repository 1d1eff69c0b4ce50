"""The library's examples run, each page's blocks one after the other, on random pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.docs.pages import PAGES, blocks

PROGRAMS = {"integrate.md"}  # whole programs: test_integrate.py runs them against a worker
# What no test can have: downloads, a GPU, and the time for pictures of 224 pixels.
CHANGED = {
    "BackboneName.wideresnet50,": 'BackboneName.resnet18, weights="random:0",',
    'device="cuda"': 'device="cpu"',
    "input_shape=(224, 224)": "input_shape=(64, 64)",
}
GIVEN = "coreset_percentage=0.1,"


def snippets(page: Path) -> list[str]:
    return [block.text for block in blocks(page) if block.language == "python"]


def changed(text: str) -> str:
    for shown, tried in CHANGED.items():
        text = text.replace(shown, tried)
    return text.replace(GIVEN, f"{GIVEN} input_shape=(64, 64),")


def pictures() -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return iter([torch.randn(4, 3, 64, 64, generator=generator) for _ in range(3)])


class Loader:
    """As torch's: it may be gone through again."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return pictures()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if snippets(page) and page.name not in PROGRAMS], ids=lambda page: page.name
)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    features = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    names: dict[str, Any] = {"loader": Loader(), "test_loader": Loader(), "features": features}
    for text in snippets(page):
        exec(compile(changed(text), page.name, "exec"), names)  # noqa: S102 - what the project's own docs show
    assert names["prediction"].scores.shape == (4,)
    assert (tmp_path / "part.safetensors").is_file()
    if "coreset" in names:
        assert names["coreset"].shape == (50, 64)
