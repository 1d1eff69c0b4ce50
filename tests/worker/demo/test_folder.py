from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worker.demo.folder import read_folder
from worker.errors import ConfigurationError


def picture(path: Path, value: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), (value, value, value)).save(path)


def mvtec(folder: Path, train: int = 60) -> Path:
    for i in range(train):
        picture(folder / f"train/good/{i:03d}.png", i)
    for i in range(4):
        picture(folder / f"test/good/{i:03d}.png")
        picture(folder / f"test/crack/{i:03d}.jpg")
    mask = np.zeros((12, 16), np.uint8)
    mask[2:5, 3:9] = 255
    (folder / "ground_truth/crack").mkdir(parents=True)
    Image.fromarray(mask).save(folder / "ground_truth/crack/001_mask.png")
    return folder


def test_the_mvtec_layout_gives_splits_kinds_and_masks(tmp_path: Path) -> None:
    parts = read_folder(mvtec(tmp_path, train=240)).parts
    assert [sum(part.split == split for part in parts) for split in ("learn", "calibrate", "test")] == [200, 40, 8]
    assert {part.kind for part in parts if part.split != "test"} == {"good"}
    test = {part.id: part for part in parts if part.split == "test"}
    assert {part.kind for part in test.values()} == {"good", "crack"}
    mask = test["test/crack/001.jpg"].read_mask()
    assert mask is not None
    assert mask.sum() == 18
    assert test["test/crack/002.jpg"].read_mask() is None  # no mask file
    assert test["test/good/001.png"].read_mask() is None
    assert test["test/good/001.png"].read() == (tmp_path / "test/good/001.png").read_bytes()
    assert len({part.id for part in parts}) == len(parts)


def test_the_order_is_shuffled_by_the_seed(tmp_path: Path) -> None:
    mvtec(tmp_path)
    first, again, other = (read_folder(tmp_path, seed=seed).parts for seed in (0, 0, 1))
    assert [part.id for part in first] == [part.id for part in again]
    assert [part.id for part in first] != [part.id for part in other]
    assert [part.id for part in first if part.split == "learn"] != sorted(p.id for p in first if p.split == "learn")


def test_a_flat_folder_has_no_truth_and_half_of_it_trains(tmp_path: Path) -> None:
    for i in range(120):
        picture(tmp_path / f"shift-{i % 3}/{i:03d}.bmp", i)
    read = read_folder(tmp_path)
    assert [sum(p.split == split for p in read.parts) for split in ("learn", "calibrate", "test")] == [40, 20, 60]
    assert {part.kind for part in read.parts} == {None}
    assert {part.defective for part in read.parts} == {None}
    assert "nobody knows which parts are defective" in read.notes[0]


def test_what_is_no_picture_is_named_once_and_left_out(tmp_path: Path) -> None:
    mvtec(tmp_path)
    (tmp_path / "train/good/text.png").write_text("not a picture")
    whole = (tmp_path / "test/crack/000.jpg").read_bytes()
    (tmp_path / "test/crack/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train/good/notes.txt").write_text("no suffix of a picture")
    picture(tmp_path / "train/good/.hidden.png")
    read = read_folder(tmp_path)
    left_out = [note for note in read.notes if note.startswith("left out")]
    assert [note.split(": ")[1] for note in left_out] == ["train/good/text.png", "test/crack/cut.jpg"]
    assert len(read.parts) == 68


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere: no such folder; name a folder of pictures") as caught:
        read_folder(tmp_path / "nowhere")
    assert caught.value.exit_code == 2


def test_an_empty_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no pictures in it; expected files that end in .*\.jpg"):
        read_folder(tmp_path)


@pytest.mark.parametrize("layout", ["mvtec", "flat"])
def test_too_few_pictures_are_refused_with_the_number_that_is_needed(tmp_path: Path, layout: str) -> None:
    if layout == "mvtec":
        mvtec(tmp_path, train=39)
        expected = "39 pictures of good parts that can be read; at least 40"
    else:
        for i in range(40):
            picture(tmp_path / f"{i}.png")
        expected = "40 pictures that can be read; at least 41"
    with pytest.raises(ConfigurationError, match=expected):
        read_folder(tmp_path)


def test_mvtec_without_test_pictures_is_refused(tmp_path: Path) -> None:
    for i in range(40):
        picture(tmp_path / f"train/good/{i}.png")
    with pytest.raises(ConfigurationError, match="test: no such folder"):
        read_folder(tmp_path)


def test_the_parent_of_several_sets_names_them(tmp_path: Path) -> None:
    mvtec(tmp_path / "bottle")
    mvtec(tmp_path / "cable")
    with pytest.raises(ConfigurationError, match="holds several sets of pictures; name one of them: bottle, cable"):
        read_folder(tmp_path)
