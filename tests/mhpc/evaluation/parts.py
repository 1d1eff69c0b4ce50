"""Small parts in the MVTec layout: grey plates with noise; the defect is a bright square."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64
SQUARE = slice(20, 36)  # rows and columns of the defect


def plate(seed: int, defective: bool = False) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    pixels = rng.normal(110, 12, (SIDE, SIDE, 3))
    if defective:
        pixels[SQUARE, SQUARE] += 110
    return pixels.clip(0, 255).astype(np.uint8)


def square_mask() -> NDArray[np.uint8]:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[SQUARE, SQUARE] = 255
    return mask


def save(path: Path, pixels: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_category(folder: Path, train: int = 42, good: int = 8, defective: int = 8) -> Path:
    for i in range(train):
        save(folder / "train" / "good" / f"{i:03}.png", plate(i))
    for i in range(good):
        save(folder / "test" / "good" / f"{i:03}.png", plate(1000 + i))
    for i in range(defective):
        save(folder / "test" / "spot" / f"{i:03}.png", plate(2000 + i, defective=True))
        save(folder / "ground_truth" / "spot" / f"{i:03}_mask.png", square_mask())
    return folder
