from pathlib import Path

import pytest
import torch
from rich.console import Console

from mhpc.core.backbones import BackboneName, load_backbone, pretrained_file
from worker.demo import backbones
from worker.demo.backbones import BackboneFigures, backbones_table, compare_backbones
from worker.demo.parts import rendered_parts
from worker.settings import ModelSettings

PARTS = rendered_parts(learn=12, calibrate=0, good=6, per_kind=2)


@pytest.fixture(autouse=True)
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(backbones, "PEERS", (BackboneName.tiny, BackboneName.resnet18))
    monkeypatch.setattr(backbones, "TIMED", 1)


def test_the_own_backbone_comes_first_and_no_backbone_twice() -> None:
    figures = compare_backbones(ModelSettings(), PARTS)
    assert [row.backbone for row in figures] == ["tiny", "resnet18"]
    assert all(row.images_per_second > 0 for row in figures)
    assert figures[0].auroc is not None
    assert figures[0].auroc > 0.8


def test_without_weights_at_hand_nothing_is_downloaded_and_speed_alone_is_given() -> None:
    resnet18 = compare_backbones(ModelSettings(), PARTS)[1]
    assert (resnet18.weights, resnet18.auroc) == ("random:0", None)


def test_weights_that_the_hub_has_are_used(tmp_path: Path) -> None:
    file = pretrained_file(BackboneName.resnet18)
    assert file.parent == tmp_path / "checkpoints"
    file.parent.mkdir()
    torch.save(load_backbone("resnet18", "random:3").state_dict(), file)
    resnet18 = compare_backbones(ModelSettings(), PARTS)[1]
    assert resnet18.weights == "pretrained"
    assert resnet18.auroc is not None


def test_where_the_truth_is_not_known_the_table_says_so() -> None:
    console = Console(width=80, record=True)
    rows = [BackboneFigures("tiny", "bundled", 100.0, 0.99), BackboneFigures("resnet18", "random:0", 20.0, None)]
    console.print(backbones_table([*rows, BackboneFigures("m:f", None, 20.0, None)]))
    lines = console.export_text().splitlines()
    assert max(len(line) for line in lines) <= 80
    text = " ".join(" ".join(lines).split())
    for part in ("tiny 100.0 0.9900", "resnet18 20.0 no weights at hand", "m:f 20.0 not known"):
        assert part in text
