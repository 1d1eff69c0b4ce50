"""The real tiles and the backbone with ImageNet features, where they are at hand, for the benchmarks."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mhpc.core.backbones import load_backbone
from mhpc.core.patch_features import IMAGENET_DEVIATION, IMAGENET_MEAN, PatchFeatures

TILES = Path(__file__).parents[3] / "shared" / "data" / "mtd" / "tile"
KINDS = ("blowhole", "break")
APART = 200  # a part was photographed at up to six exposures, running numbers that are no farther apart


def mobilenet_features() -> PatchFeatures | None:
    """MobileNet v1's layers at strides 8 and 16; None, which is said, where it or the tiles are not at hand."""
    if not TILES.is_dir():
        print(f"{TILES} is absent: the real tiles are not at hand")
        return None
    sys.path.insert(0, str(TILES.parents[1]))
    if importlib.util.find_spec("mobilenet_v1") is None:
        print("mobilenet_v1 is not importable")
        return None
    return PatchFeatures(load_backbone("mobilenet_v1:mobilenet_v1"), ["block5", "block11"])


def tiles() -> dict[str, Tensor] | None:
    """Features [N, 784, 768] by folder: "train" and "good", and KINDS; None where they are not at hand."""
    extract = mobilenet_features()
    if extract is None:
        return None
    folders = {"train": TILES / "train" / "good", **{kind: TILES / "test" / kind for kind in ("good", *KINDS)}}
    return {name: tile_features(extract, folder) for name, folder in folders.items()}


def tile_features(extract: PatchFeatures, folder: Path, n: int | None = None) -> Tensor:
    """Features [N, P, D] of a folder's pictures, or of the first n, at 224 x 224."""
    return torch.cat([extract(pixels[None])[0] for pixels in tile_images(folder, n)])


def parts_shown(folder: Path) -> list[int]:
    """The part that each of a folder's pictures shows, by its name, exp{EXPOSURE}_num_{NUMBER}, as the number of the
    part's first picture there; exposures rise within a part."""
    names = [re.findall(r"\d+", path.stem) for path in sorted(folder.iterdir())]
    taken = [(int(number), int(exposure)) for exposure, number in names]
    first, last, part = 0, (-APART - 1, 0), {}
    for number, exposure in sorted(taken):
        if number - last[0] > APART or exposure <= last[1]:
            first = number
        last = number, exposure
        part[last] = first
    return [part[each] for each in taken]


def tile_images(folder: Path, n: int | None = None) -> list[Tensor]:
    """A folder's pictures, or the first n, [3, 224, 224] each, normalised."""
    images = []
    for path in sorted(folder.iterdir())[:n]:
        pixels = np.asarray(Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))
        images.append(
            (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 - IMAGENET_MEAN) / IMAGENET_DEVIATION
        )
    return images
