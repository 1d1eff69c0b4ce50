"""Generated pictures of things: dead leaves, polygons, printed circuits, text.

Drawn with Pillow; each function gives one picture, [size, size, 3] float32 in [0, 1].
"""

import string

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from mhpc.training.textures import Array, fractal_noise, noise

Colour = tuple[int, int, int]


def colour(rng: np.random.Generator) -> Colour:
    rgb = rng.integers(0, 256, 3) if rng.random() < 0.6 else np.full(3, rng.integers(0, 256))
    return int(rgb[0]), int(rgb[1]), int(rgb[2])


def pixels(image: Image.Image) -> Array:
    """RGB, H x W -> [H, W, 3] in [0, 1]."""
    return np.asarray(image, np.float32) / np.float32(255)


def dead_leaves(rng: np.random.Generator, size: int) -> Array:
    """Occluding discs, boxes and triangles whose radii follow a power law, some of them textured."""
    image = Image.new("RGB", (size, size), colour(rng))
    draw = ImageDraw.Draw(image)
    smallest, exponent = rng.uniform(2, 8), rng.uniform(1.2, 2.5)
    form = rng.integers(0, 4)
    for _ in range(int(rng.integers(150, 1200))):
        radius = min(smallest * (1 - rng.random()) ** (-1 / exponent), size / 3)
        x, y = rng.uniform(0, size, 2)
        kind = form if form < 3 else rng.integers(0, 3)
        if kind == 0:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour(rng))
        else:
            corners = 4 if kind == 1 else 3
            draw.regular_polygon((x, y, radius), corners, rotation=float(rng.uniform(0, 360)), fill=colour(rng))
    leaves = pixels(image)
    if rng.random() < 0.5:
        leaves = leaves * (0.5 + 0.5 * fractal_noise(rng, size))
    return leaves


def polygons(rng: np.random.Generator, size: int) -> Array:
    """A few large polygons, rings and lines on a textured ground: outlines of parts."""
    ground = fractal_noise(rng, size) if rng.random() < 0.6 else np.full((size, size, 3), rng.random(), np.float32)
    image = Image.fromarray((ground * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 25))):
        x, y = rng.uniform(0, size, 2)
        radius = np.exp(rng.uniform(np.log(6), np.log(size / 2)))
        width = int(rng.integers(1, 12))
        kind = rng.random()
        if kind < 0.3:
            fill = colour(rng) if rng.random() < 0.5 else None
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=colour(rng), width=width)
        elif kind < 0.8:
            angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
            corners = [(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles]
            draw.polygon(corners, fill=colour(rng), outline=colour(rng))
        else:
            draw.line((x, y, *rng.uniform(0, size, 2)), fill=colour(rng), width=width)
    return pixels(image)


def circuit(rng: np.random.Generator, size: int) -> Array:
    """A printed circuit board: tracks in eight directions, pads with holes, packages with legs."""
    board, track = colour(rng), colour(rng)
    image = Image.new("RGB", (size, size), board)
    draw = ImageDraw.Draw(image)
    pitch = int(rng.integers(6, 24))
    width = max(1, pitch // int(rng.integers(2, 5)))
    for _ in range(int(rng.integers(20, 120))):
        _track(rng, draw, size, pitch, width, track)
    metal = colour(rng)
    for _ in range(int(rng.integers(0, 10))):
        x, y = rng.integers(0, size // pitch, 2) * pitch
        w, h = rng.integers(2, 7, 2) * pitch
        for leg in range(int(x), int(x + w), pitch):
            draw.rectangle((leg, y - pitch // 2, leg + width, y + h + pitch // 2), fill=metal)
        draw.rectangle((x, y, x + w, y + h), fill=colour(rng), outline=metal)
    grain = 1 + rng.uniform(0, 0.3) * (noise(rng, size, 1.0)[..., None] - 0.5)
    return (pixels(image) * grain).clip(0, 1).astype(np.float32)


def text(rng: np.random.Generator, size: int) -> Array:
    """Lines of random characters in one size, as on labels and displays."""
    ground = Image.fromarray((fractal_noise(rng, size) * 255).astype(np.uint8))
    image = ground if rng.random() < 0.3 else Image.new("RGB", (size, size), colour(rng))
    draw = ImageDraw.Draw(image)
    alphabet = list(string.ascii_letters + string.digits + "  .-/#")
    height, ink = int(rng.integers(8, 48)), colour(rng)
    font = ImageFont.load_default(height)
    y = int(rng.integers(-height, height))
    while y < size:
        line = "".join(rng.choice(alphabet, max(4, 3 * size // height)))
        draw.text((int(rng.integers(-height, 2 * height)), y), line, fill=ink, font=font)
        y += int(height * rng.uniform(1.1, 1.8))
    return pixels(image.rotate(float(rng.choice([0, 90, rng.uniform(-20, 20)])), fillcolor=colour(rng)))


def _track(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: int, pitch: int, width: int, fill: Colour
) -> None:
    x, y = (int(c) * pitch for c in rng.integers(0, size // pitch + 1, 2))
    points: list[tuple[int, int]] = [(x, y)]
    for _ in range(int(rng.integers(1, 5))):
        turn, reach = rng.integers(-1, 2, 2), int(rng.integers(1, 8)) * pitch
        x, y = x + int(turn[0]) * reach, y + int(turn[1]) * reach
        points.append((x, y))
    draw.line(points, fill=fill, width=width, joint="curve")
    for px, py in (points[0], points[-1]):
        draw.ellipse((px - width, py - width, px + width, py + width), fill=fill)
        hole = max(1, width // 2)
        draw.ellipse((px - hole, py - hole, px + hole, py + hole), fill=(20, 20, 20))


def as_bytes(picture: Array) -> npt.NDArray[np.uint8]:
    """[H, W, 3] in [0, 1] -> uint8."""
    return (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8)
