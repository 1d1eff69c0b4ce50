from dataclasses import replace
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
    assert all(row.images_per_second for row in figures)
    assert figures[0].auroc is not None
    assert figures[0].auroc > 0.8


def test_without_weights_at_hand_nothing_is_downloaded_and_speed_alone_is_given() -> None:
    resnet18 = compare_backbones(ModelSettings(), PARTS)[1]
    assert (resnet18.weights, resnet18.auroc, resnet18.missing) == ("random:0", None, "no weights at hand")


def test_a_peer_whose_weights_are_damaged_costs_one_cell() -> None:
    file = pretrained_file(BackboneName.resnet18)
    file.parent.mkdir()
    file.write_bytes(b"half a download")
    tiny, resnet18 = compare_backbones(ModelSettings(), PARTS)
    assert tiny.auroc is not None
    assert (resnet18.images_per_second, resnet18.auroc) == (None, None)
    assert "holds no weights that can be read" in resnet18.missing


def test_parts_that_nobody_sorted_give_speed_alone() -> None:
    unknown = [replace(part, kind=None) for part in PARTS]
    tiny = compare_backbones(ModelSettings(), unknown)[0]
    assert tiny.images_per_second
    assert (tiny.auroc, tiny.missing) == (None, "truth not known")


def test_weights_that_the_hub_has_are_used(tmp_path: Path) -> None:
    file = pretrained_file(BackboneName.resnet18)
    assert file.parent == tmp_path / "checkpoints"
    file.parent.mkdir()
    torch.save(load_backbone("resnet18", "random:3").state_dict(), file)
    resnet18 = compare_backbones(ModelSettings(), PARTS)[1]
    assert resnet18.weights == "pretrained"
    assert resnet18.auroc is not None


def test_the_table_fits_eighty_columns_and_says_what_is_missing() -> None:
    console = Console(width=80, record=True)
    damaged = "model: /somewhere/far/away/checkpoints/resnet18-f37072fd.pth holds no weights that can be read"
    rows = [
        BackboneFigures("tiny", "bundled", 100.0, 0.99),
        BackboneFigures("resnet18", "pretrained", None, None, damaged),
        BackboneFigures("wide_resnet50_2", "random:0", 20.0, None, "no weights at hand"),
    ]
    console.print(backbones_table(rows))
    lines = console.export_text().splitlines()
    assert max(len(line) for line in lines) <= 80
    text = " ".join(" ".join(lines).split())
    for part in ("tiny 100.0 0.9900", "wide_resnet50_2 20.0 no weights at hand", "holds no"):
        assert part in text
