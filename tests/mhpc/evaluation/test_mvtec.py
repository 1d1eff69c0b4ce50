from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mhpc.core.mh_patch_core import LabelledPrediction, MHPatchCore
from mhpc.evaluation.mvtec import (
    MVTecDataset,
    Sample,
    denormalised,
    normalised,
    read_categories,
    read_mask,
    read_pixels,
)
from tests.mhpc.evaluation.parts import SIDE, SQUARE, plate, save, square_mask, write_category

SHAPE = (SIDE, SIDE)


def test_a_folder_with_train_good_is_one_category(plates: Path) -> None:
    (category,) = read_categories(plates)
    assert (category.name, len(category.train), len(category.test)) == ("plates", 42, 16)
    assert {sample.kind for sample in category.test} == {"good", "spot"}
    assert [sample.mask is not None for sample in category.test] == [sample.is_anomaly for sample in category.test]


def test_a_folder_of_categories_gives_all_or_those_named(tmp_path: Path) -> None:
    for name in ("nuts", "bolts"):
        write_category(tmp_path / name, train=1, good=1, defective=1)
    (tmp_path / "notes").mkdir()
    assert [category.name for category in read_categories(tmp_path)] == ["bolts", "nuts"]
    assert [category.name for category in read_categories(tmp_path, ["nuts", "nuts"])] == ["nuts"]
    with pytest.raises(ValueError, match="has no category screws; it has bolts, nuts"):
        read_categories(tmp_path, ["screws"])


def test_a_mask_may_be_named_like_its_picture(category: Path) -> None:
    masks = category / "ground_truth" / "spot"
    (masks / "003_mask.png").rename(masks / "003.png")
    (read,) = read_categories(category)
    assert [sample.mask.name for sample in read.test if sample.mask and sample.path.stem == "003"] == ["003.png"]


def test_items_go_through_a_loader_into_a_model(plates: Path) -> None:
    (category,) = read_categories(plates)
    model = MHPatchCore("tiny", weights="bundled", input_shape=SHAPE, bank_size=100)
    model.fit(DataLoader(MVTecDataset(category.train[:8], SHAPE), batch_size=4))
    batch = next(iter(DataLoader(MVTecDataset(category.test, SHAPE), batch_size=16)))
    assert list(batch["image"].shape) == [16, 3, SIDE, SIDE]
    assert list(batch["mask"].shape) == [16, 1, SIDE, SIDE]
    assert batch["path"][0] == str(category.test[0].path)
    prediction = model.predict([batch])
    assert isinstance(prediction, LabelledPrediction)
    assert prediction.labels_gt == [0] * 8 + [1] * 8
    assert prediction.scores.shape == (16,)
    assert list(prediction.masks.shape) == [16, SIDE, SIDE]
    assert list(prediction.masks_gt[0].shape) == [1, SIDE, SIDE]


def test_a_defective_picture_without_a_mask_has_nan_for_one(category: Path) -> None:
    (category / "ground_truth" / "spot" / "000_mask.png").unlink()
    (read,) = read_categories(category)
    dataset = MVTecDataset(read.test, SHAPE)
    masks = {sample.path: dataset[i]["mask"] for i, sample in enumerate(read.test)}
    assert masks[category / "test" / "spot" / "000.png"].isnan().all()
    assert masks[category / "test" / "spot" / "001.png"].sum() == 16 * 16
    assert masks[category / "test" / "good" / "000.png"].sum() == 0


def test_pictures_are_prepared_as_the_worker_prepares_them() -> None:
    from mhpc.core.patch_features import IMAGENET_DEVIATION, IMAGENET_MEAN
    from worker.engine import Engine

    class Settings:
        input_shape = (48, 40)

    engine = Engine.__new__(Engine)
    engine.settings = Settings()  # type: ignore[assignment]  # what `prepare` reads of it
    pixels = plate(0, defective=True)
    ours, theirs = normalised(pixels, (48, 40)), (engine.prepare(pixels) / 255 - IMAGENET_MEAN) / IMAGENET_DEVIATION
    assert ours.shape == (3, 48, 40)
    grey_level = 1 / 255 / IMAGENET_DEVIATION
    assert ((ours - theirs).abs() <= grey_level).all()
    assert IMAGENET_MEAN.shape == (3, 1, 1)


def test_squashing_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 254
    flat = denormalised(normalised(stripes, (16, 16)))
    assert np.abs(flat[:, 2:-2].astype(int) - 127).max() <= 2


def test_normalising_can_be_undone() -> None:
    pixels = plate(1)
    assert (denormalised(normalised(pixels, SHAPE)) == pixels).all()


def test_grey_palette_alpha_and_16_bits_read_as_rgb(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(grey)
    alpha = picture.convert("RGBA")
    alpha.putalpha(7)
    palette = picture.convert("P")
    palette.putpalette([v for i in range(256) for v in (i, 255 - i, 0)])
    for name, variant in {"grey": picture, "alpha": alpha, "palette": palette}.items():
        variant.save(tmp_path / f"{name}.png")
    save(tmp_path / "deep.png", (grey.astype(np.uint16) * 256 + 255))  # type: ignore[arg-type]  # 16 bits
    repeated = np.repeat(grey[:, :, None], 3, axis=2)
    (tmp_path / "deep.pgm").write_bytes(
        b"P5 16 16 65535\n" + (grey.astype(np.uint16) * 256 + 255).astype(">u2").tobytes()
    )
    for name in ("grey.png", "alpha.png", "deep.png", "deep.pgm"):
        assert (read_pixels(tmp_path / name) == repeated).all(), name
    looked_up = np.stack([grey, 255 - grey, np.zeros_like(grey)], axis=2)
    assert (read_pixels(tmp_path / "palette.png") == looked_up).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_a_picture_of_32_bits_is_refused_since_nobody_knows_its_range(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.ones((16, 16), dtype)).save(tmp_path / "deep.tiff")
    with pytest.raises(ValueError, match=r"deep\.tiff does not open: its values have 32 bits .*, expected 8 or 16"):
        read_pixels(tmp_path / "deep.tiff")


@pytest.mark.parametrize("high", [1, 255])
def test_masks_of_0_1_and_0_255_read_alike_by_the_nearest_pixel(tmp_path: Path, high: int) -> None:
    path = save(tmp_path / "mask.png", square_mask() // 255 * high)
    mask = read_mask(path, (SIDE // 2, SIDE // 2))
    expected = torch.zeros(1, SIDE // 2, SIDE // 2)
    expected[:, SQUARE.start // 2 : SQUARE.stop // 2, SQUARE.start // 2 : SQUARE.stop // 2] = 1
    assert torch.equal(mask, expected)
    assert read_mask(save(tmp_path / "none.png", np.zeros((4, 4), np.uint8)), (4, 4)).sum() == 0


def test_an_empty_folder_and_one_without_train_good_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        read_categories(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds nothing; expected train/good and test/"):
        read_categories(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"holds train; expected train/good"):
        read_categories(tmp_path)
    (tmp_path / "train" / "good").mkdir()
    with pytest.raises(ValueError, match=r"train/good: no pictures in it; expected files that end in \.bmp"):
        read_categories(tmp_path)


def test_a_mask_of_another_size_is_refused_and_both_sizes_are_quoted(category: Path) -> None:
    save(category / "ground_truth" / "spot" / "002_mask.png", np.zeros((30, 20), np.uint8))
    with pytest.raises(ValueError, match=r"002_mask\.png is 20 x 30 pixels, its picture .*002\.png 64 x 64"):
        read_categories(category)


def test_a_picture_that_does_not_open_is_named(category: Path) -> None:
    (category / "test" / "good" / "001.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"test/good/001\.png does not open: it is not a picture"):
        read_categories(category)


def test_a_truncated_picture_is_named_when_it_is_read(category: Path) -> None:
    path = category / "train" / "good" / "000.png"
    path.write_bytes(path.read_bytes()[:-2000])
    read_categories(category)  # its header is sound
    with pytest.raises(ValueError, match=r"train/good/000\.png does not open: "):
        MVTecDataset([Sample(path)], SHAPE)[0]


@pytest.mark.parametrize(("good", "defective", "lacking"), [(0, 3, "good"), (3, 0, "defective")])
def test_test_pictures_of_one_class_alone_are_refused(tmp_path: Path, good: int, defective: int, lacking: str) -> None:
    write_category(tmp_path / "plates", train=1, good=good, defective=defective)
    with pytest.raises(ValueError, match=f"none of its 3 test pictures is {lacking}"):
        read_categories(tmp_path)


def test_a_picture_beside_the_kinds_is_refused(category: Path) -> None:
    save(category / "test" / "stray.png", plate(0))
    with pytest.raises(ValueError, match=r"stray\.png lies beside the kinds; expected test/good/stray\.png"):
        read_categories(category)
