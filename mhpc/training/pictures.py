"""Training pictures: generated ones, and the photographs that scikit-image and scikit-learn carry in their packages.

Nothing here reaches a network: photographs are opened by path inside the installed packages, never by the loaders
of `skimage.data` that download what is not there.
"""

import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import ndimage

from mhpc.core.patch_features import IMAGENET_DEVIATION, IMAGENET_MEAN
from mhpc.training import shapes, textures
from mhpc.training.textures import Array, Texture

SIDE = 288  # of a generated picture, in pixels
PHOTOGRAPH_SHARE = 0.2  # of all crops that come from photographs

KINDS: tuple[Texture, ...] = (
    shapes.dead_leaves,
    textures.fractal_noise,
    textures.gratings,
    textures.brushed,
    textures.cast,
    shapes.circuit,
    textures.weave,
    shapes.text,
    textures.gradient,
    shapes.polygons,
)
PHOTOGRAPHS = {
    "skimage": (
        "data",
        "astronaut.png brick.png camera.png cell.png chelsea.png clock_motion.png coffee.png coins.png grass.png "
        "gravel.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png motorcycle_right.png page.png "
        "retina.jpg rocket.jpg text.png",
    ),
    "sklearn": ("datasets/images", "china.jpg flower.jpg"),
}


def generate(seed: int, index: int, side: int = SIDE) -> npt.NDArray[np.uint8]:
    """Draw picture `index` of the series `seed`: [side, side, 3] uint8. Each index has its own random stream."""
    rng = np.random.default_rng([seed, index])
    picture = KINDS[index % len(KINDS)](rng, side)
    if rng.random() < 0.3:
        picture = _mixture(rng, picture, KINDS[int(rng.integers(len(KINDS)))](rng, side))
    if rng.random() < 0.4:
        picture = textures.defects(rng, picture)
    return _camera(rng, picture)


def series(count: int, seed: int, side: int = SIDE, on_picture: Callable[[], None] = lambda: None) -> list[Image.Image]:
    """The first `count` generated pictures, RGB, side x side."""
    pictures = []
    for index in range(count):
        pictures.append(Image.fromarray(generate(seed, index, side)))
        on_picture()
    return pictures


def photographs() -> list[Image.Image]:
    """The photographs in the installed packages, RGB, at most 768 pixels on the longer side.

    Raises `FileNotFoundError` where one is missing: another choice of pictures would give another backbone.
    """
    found = []
    for package, (folder, names) in PHOTOGRAPHS.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"{package} is not installed; training needs it: pip install 'mhpc[demo]'")
        for name in names.split():
            path = Path(spec.origin).parent / folder / name
            if not path.is_file():
                raise FileNotFoundError(f"{package} was expected to carry {folder}/{name}; install the pinned version")
            with Image.open(path) as image:
                rgb = image.convert("RGB")
            rgb.thumbnail((768, 768))
            found.append(rgb)
    return found


class Crops:
    """Batches of augmented crops. One depends only on (seed, index): a resumed run sees what an unbroken one does."""

    def __init__(self, generated: list[Image.Image], photos: list[Image.Image], side: int, seed: int) -> None:
        self.generated = generated
        self.photos = photos
        self.side = side
        self.seed = seed

    def batch(self, index: int, size: int) -> torch.Tensor:
        """[size, 3, side, side] float32, normalised with ImageNet's mean and deviation."""
        rng = np.random.default_rng([self.seed, 1, index])
        crops = np.stack([self._crop(rng) for _ in range(size)])
        crops = _blend(rng, _light(rng, crops)).clip(0, 1)
        normalised = (crops - IMAGENET_MEAN.flatten().numpy()) / IMAGENET_DEVIATION.flatten().numpy()
        return torch.from_numpy(np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)))

    def _crop(self, rng: np.random.Generator) -> Array:
        pool = self.photos if self.photos and rng.random() < PHOTOGRAPH_SHARE else self.generated
        picture = pool[int(rng.integers(len(pool)))]
        W, H = picture.size
        # Between half and twice the size in which it will be seen; never more than the picture has.
        edge = min(int(self.side * np.exp(rng.uniform(np.log(0.5), np.log(2.0)))), H, W)
        left, top = int(rng.integers(W - edge + 1)), int(rng.integers(H - edge + 1))
        box = (left, top, left + edge, top + edge)
        crop = shapes.pixels(picture.resize((self.side, self.side), Image.Resampling.BILINEAR, box=box))
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        if rng.random() < 0.5:
            crop = crop.transpose(1, 0, 2)
        if rng.random() < 0.35:
            crop = np.broadcast_to(crop.mean(axis=2, keepdims=True), crop.shape)
        return crop


def _light(rng: np.random.Generator, crops: Array) -> Array:
    B = crops.shape[0]
    contrast = np.exp(rng.normal(0, 0.35, (B, 1, 1, 1))).astype(np.float32)
    brightness = rng.normal(0, 0.1, (B, 1, 1, 1)).astype(np.float32)
    mean = crops.mean(axis=(1, 2, 3), keepdims=True)
    lit: Array = (crops - mean) * contrast + mean + brightness
    return lit


def _blend(rng: np.random.Generator, crops: Array) -> Array:
    """Lay a faint copy of another crop over a quarter of them: textures that no generator draws."""
    B = crops.shape[0]
    share = np.where(rng.random(B) < 0.25, rng.uniform(0, 0.5, B), 0).astype(np.float32).reshape(B, 1, 1, 1)
    return crops + share * (np.roll(crops, 1, axis=0) - crops)


def _mixture(rng: np.random.Generator, one: Array, other: Array) -> Array:
    mask = textures.noise(rng, one.shape[0], 2.0)
    mask = (mask > rng.uniform(0.4, 0.6)).astype(np.float32) if rng.random() < 0.5 else mask
    return one + mask[..., None] * (other - one)


def _camera(rng: np.random.Generator, picture: Array) -> npt.NDArray[np.uint8]:
    """What a camera adds, in its order: uneven light, blur, sensor noise, JPEG."""
    if rng.random() < 0.4:
        field = ndimage.zoom(rng.uniform(0.4, 1.2, (3, 3)), picture.shape[0] / 3, order=1)
        picture = picture * field[..., None].astype(np.float32)
    if rng.random() < 0.4:
        picture = ndimage.gaussian_filter(picture, (*[rng.uniform(0.4, 2.0)] * 2, 0))
    if rng.random() < 0.5:
        picture = picture + rng.normal(0, rng.uniform(0.005, 0.06), picture.shape).astype(np.float32)
    pixels = shapes.as_bytes(picture)
    if rng.random() < 0.4:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=int(rng.integers(25, 95)))
        pixels = np.asarray(Image.open(buffer))
    return pixels
