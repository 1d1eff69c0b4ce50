"""The layout of MVTec AD (Bergmann et al., 2019): what a folder holds, and its pictures as a torch Dataset.

    FOLDER/train/good/*                     good parts to learn from
    FOLDER/test/good/*  FOLDER/test/KIND/*  parts to score; KIND names the defect
    FOLDER/ground_truth/KIND/STEM_mask.png  the defect's pixels; STEM.png is taken, too

A folder of such folders holds categories.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from mhpc.core.patch_features import IMAGENET_DEVIATION, IMAGENET_MEAN

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
GOOD = "good"
UNREADABLE = (UnidentifiedImageError, Pillow.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError)


@dataclass(frozen=True)
class Sample:
    """A picture: `kind` is "good" or names the defect; `mask` is the file of its pixels, where there is one."""

    path: Path
    kind: str = GOOD
    mask: Path | None = None

    @property
    def is_anomaly(self) -> bool:
        return self.kind != GOOD


@dataclass(frozen=True)
class Category:
    """One set of pictures, each in the order of its path."""

    name: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]


def read_categories(folder: Path, names: Sequence[str] = ()) -> list[Category]:
    """The categories of a folder in the MVTec layout: itself, or those below it, or of these the named.

    Headers alone are read, so that what is wrong is said before the work begins.

    Raises:
        ValueError: there is no such folder or category, or one that cannot be evaluated: no train/good, no good or no
            defective test picture, a picture that does not open, a mask of another size than its picture.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected one in the MVTec layout")
    if (folder / "train" / GOOD).is_dir():
        found = {folder.resolve().name: folder}
    else:
        found = {path.name: path for path in sorted(folder.iterdir()) if (path / "train" / GOOD).is_dir()}
    if not found:
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"{folder} holds {inside}; expected train/{GOOD} and test/ in it (the MVTec layout), or folders with those"
        )
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{folder} has no category {', '.join(missing)}; it has {', '.join(found)}")
    return [read_category(found[name]) for name in (dict.fromkeys(names) or found)]


def read_category(folder: Path) -> Category:
    """One category; raises as `read_categories` does."""
    train = tuple(Sample(path) for path in _pictures(folder / "train" / GOOD))
    test = []
    for path in _pictures(folder / "test"):
        kind, *rest = path.relative_to(folder / "test").parts
        if not rest:
            raise ValueError(f"{path} lies beside the kinds; expected test/{GOOD}/{path.name} or test/KIND/{path.name}")
        test.append(Sample(path, kind, None if kind == GOOD else _mask_file(folder / "ground_truth" / kind, path)))
    n_bad = sum(sample.is_anomaly for sample in test)
    if n_bad in (0, len(test)):
        lacking = "defective" if n_bad == 0 else "good"
        where = "test/KIND" if n_bad == 0 else f"test/{GOOD}"
        raise ValueError(
            f"{folder}: none of its {len(test)} test pictures is {lacking} ({where} is empty or absent); "
            "expected both, since AUROC ranks the defective against the good"
        )
    for sample in (*train, *test):
        _check_header(sample)
    return Category(folder.resolve().name, train, tuple(test))


class MVTecDataset(Dataset[dict[str, Any]]):
    """Samples as MHPatchCore takes them, for a DataLoader.

    An item holds "image" [3, H, W] float32, normalised by ImageNet's mean and deviation; "is_anomaly", 0 or 1; "mask"
    [1, H, W] float32, 1 where it is defective, and NaN throughout where a defective picture has no mask: nobody knows;
    and "path".

    Args:
        input_shape: (H, W) to which pictures are squashed, antialiased, and masks by the nearest pixel.
    """

    def __init__(self, samples: Sequence[Sample], input_shape: tuple[int, int] = (224, 224)) -> None:
        self.samples = tuple(samples)
        self.input_shape = input_shape

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises ValueError where the picture or its mask does not decode."""
        sample = self.samples[index]
        if sample.mask is not None:
            mask = read_mask(sample.mask, self.input_shape)
        else:
            mask = torch.full((1, *self.input_shape), torch.nan if sample.is_anomaly else 0.0)
        image = normalised(read_pixels(sample.path), self.input_shape)
        return {"image": image, "is_anomaly": int(sample.is_anomaly), "mask": mask, "path": str(sample.path)}


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """A picture as RGB, [h, w, 3]: grey is repeated, palettes are looked up, alpha is dropped, 16 bits scaled to 8.

    Raises:
        ValueError: it does not open, or not to its end, or its values have 32 bits, whose range nobody knows.
    """
    try:
        with _open(path) as picture:
            if picture.mode == "F" or (picture.mode == "I" and picture.format != "PPM"):  # of which 16 bits read as I
                raise ValueError(f"its values have 32 bits (mode {picture.mode}), expected 8 or 16; save it with those")
            if picture.mode.startswith("I"):
                grey = (np.asarray(picture, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(picture.convert("RGB"))
    except UNREADABLE as error:
        raise _unreadable(path, error) from None


def normalised(pixels: NDArray[np.uint8], input_shape: tuple[int, int]) -> Tensor:
    """Pixels [h, w, 3], squashed to input_shape (antialiased), less ImageNet's mean, by its deviation: [3, H, W]."""
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    if tuple(x.shape[2:]) != input_shape:
        x = F.interpolate(x, size=input_shape, mode="bilinear", antialias=True, align_corners=False)
    return (x[0] / 255 - IMAGENET_MEAN) / IMAGENET_DEVIATION


def denormalised(image: Tensor) -> NDArray[np.uint8]:
    """The pixels [H, W, 3] of an image [3, H, W] that `normalised` made."""
    x = (image * IMAGENET_DEVIATION + IMAGENET_MEAN).clamp(0, 1) * 255
    pixels: NDArray[np.uint8] = x.round().byte().permute(1, 2, 0).numpy()
    return pixels


def read_mask(path: Path, input_shape: tuple[int, int]) -> Tensor:
    """A mask [1, H, W], 1 where a pixel is above half of the largest: 0/1, 0/255 and soft edges read alike.

    Raises:
        ValueError: it does not open, or not to its end.
    """
    H, W = input_shape
    try:
        with _open(path) as picture:
            wide = picture if picture.mode[0] in "IF" else picture.convert("L")
            values = np.asarray(wide.resize((W, H), Pillow.Resampling.NEAREST), dtype=np.float32)
            largest = wide.getextrema()[1]
    except UNREADABLE as error:
        raise _unreadable(path, error) from None
    return torch.from_numpy(2 * values > max(largest, 1)).float()[None]


def _open(path: Path) -> Pillow.Image:
    with warnings.catch_warnings(action="ignore", category=Pillow.DecompressionBombWarning):
        return Pillow.open(path)


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = "it is not a picture" if isinstance(error, UnidentifiedImageError) else f"{error}"
    return ValueError(f"{path} does not open: {reason}; repair it or take it out")


def _pictures(folder: Path) -> list[Path]:
    """The pictures under a folder by their suffix, hidden ones left out."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected the MVTec layout")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))
    if not files:
        raise ValueError(f"{folder}: no pictures in it; expected files that end in {', '.join(SUFFIXES)}")
    return files


def _mask_file(folder: Path, picture: Path) -> Path | None:
    candidates = (folder / f"{picture.stem}_mask.png", folder / f"{picture.stem}.png")
    return next((path for path in candidates if path.is_file()), None)


def _check_header(sample: Sample) -> None:
    (w, h), mask = _size(sample.path), sample.mask
    if mask is not None and (size := _size(mask)) != (w, h):
        raise ValueError(f"{mask} is {size[0]} x {size[1]} pixels, its picture {sample.path} {w} x {h}; expected equal")


def _size(path: Path) -> tuple[int, int]:
    try:
        with _open(path) as picture:
            return picture.size
    except UNREADABLE as error:
        raise _unreadable(path, error) from None
