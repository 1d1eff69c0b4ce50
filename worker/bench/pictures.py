"""The pictures of a run: JPEG parts of 224 x 224 at quality 90, encoded before anything is timed."""

import io
from pathlib import Path

import msgpack
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from worker.demo.parts import SIZE, render
from worker.message import Image, encode_batch

SIDE = 224  # pixels
QUALITY = 90
RENDERED = 64  # drawing one takes thirty times as long as varying it
SHIFT = 6  # pixels, each way
NOISE = 6.0  # grey levels, one standard deviation at most


def jpeg_parts(count: int, seed: int = 0) -> list[bytes]:
    """Distinct pictures of good parts: some are rendered, the others shown shifted, under other light and noise."""
    rng = np.random.default_rng(seed)
    rendered = [render("good", (seed, number))[0] for number in range(min(count, RENDERED))]
    return [_encoded(_varied(rendered[number % len(rendered)], rng)) for number in range(count)]


def _varied(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A part [SIZE, SIZE, 3] as another exposure shows it, [SIDE, SIDE, 3]."""
    top, left = (SIZE - SIDE) // 2 + rng.integers(-SHIFT, SHIFT + 1, 2)
    seen = pixels[top : top + SIDE, left : left + SIDE] * np.float32(rng.uniform(0.93, 1.07))
    seen += np.float32(rng.uniform(1, NOISE)) * rng.standard_normal(seen.shape, np.float32)
    varied: NDArray[np.uint8] = np.clip(seen + 0.5, 0, 255).astype(np.uint8)
    return varied


def _encoded(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def write_parts(path: Path, parts: list[bytes]) -> None:
    """Lay the pictures down for the processes of the run."""
    path.write_bytes(msgpack.packb(parts))


def read_parts(path: Path) -> list[bytes]:
    parts: list[bytes] = msgpack.unpackb(path.read_bytes())
    return parts


def as_images(parts: list[bytes]) -> list[Image]:
    return [Image(f"part-{number:05d}", "jpeg", data) for number, data in enumerate(parts)]


def as_entries(parts: list[bytes], per_entry: int) -> list[bytes]:
    """The pictures as the `batch` fields of entries, `per_entry` in each; those left over make none."""
    images = as_images(parts)
    whole = len(images) - len(images) % per_entry
    return [encode_batch(images[start : start + per_entry]) for start in range(0, whole, per_entry)]
