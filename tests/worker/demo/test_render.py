from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from worker.demo.parts import KINDS
from worker.demo.render import main


def test_the_folder_has_the_mvtec_layout_with_a_mask_for_each_defect(tmp_path: Path) -> None:
    main(tmp_path / "discs", learn=3, good=2, per_kind=1)
    found = {str(path.relative_to(tmp_path / "discs").parent) for path in (tmp_path / "discs").rglob("*.*")}
    assert found == {
        "train/good",
        "test/good",
        *(f"{part}/{kind}" for part in ("test", "ground_truth") for kind in KINDS),
    }
    for kind in KINDS:
        (picture,) = (tmp_path / "discs" / "test" / kind).iterdir()
        (mask,) = (tmp_path / "discs" / "ground_truth" / kind).iterdir()
        assert mask.name == f"{picture.stem}_mask.png"
        assert Image.open(mask).size == Image.open(picture).size
        assert 0 < np.asarray(Image.open(mask)).mean() < 128


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(typer.Exit):
        main(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
