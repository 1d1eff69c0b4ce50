"""Rendered parts: a brushed metal disc with a bore and six holes, as a camera over a conveyor sees it.

Every part is drawn from its seed alone, so it can be drawn again when the report wants it and no picture is kept. What
varies from part to part is what varies on a line: where the part lies, how it is turned, the brush marks, the light,
the sensor's noise. A defect is drawn into the same picture, with the mask of the pixels that it touches.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Pixels = NDArray[np.floating[Any]]  # float32 throughout
Mask = NDArray[np.bool_]
Split = Literal["learn", "calibrate", "test"]

SIZE = 256  # pixels, both ways
KINDS = ("missing_hole", "dent", "scratch")
HOLES = 6
RADIUS, BORE, HOLE, HOLE_RING = 104.0, 26.0, 11.0, 66.0  # pixels


@dataclass(frozen=True)
class Part:
    """One part of the demo, rendered or from a folder; its picture is made or read when it is asked for.

    `kind` is "good", the name of a defect, or None where nobody knows. `read` gives the bytes of a picture file;
    `read_mask` the pixels of the defect, bool [H, W] of that picture, or None where there are none or nobody knows.
    """

    id: str
    split: Split
    kind: str | None
    read: Callable[[], bytes]
    read_mask: Callable[[], Mask | None]

    @property
    def defective(self) -> bool | None:
        return None if self.kind is None else self.kind != "good"


def rendered_parts(
    learn: int = 250, calibrate: int = 50, good: int = 100, per_kind: int = 25, seed: int = 0
) -> list[Part]:
    """The demo's own parts: good ones to learn and to calibrate, then good and defective ones to score, shuffled."""
    test = np.random.default_rng(seed).permutation(["good"] * good + [kind for kind in KINDS for _ in range(per_kind)])
    splits: list[tuple[Split, str]] = [("learn", "good")] * learn
    splits += [("calibrate", "good")] * calibrate
    splits += [("test", str(kind)) for kind in test]
    return [rendered_part(split, kind, seed, number) for number, (split, kind) in enumerate(splits)]


def rendered_part(split: Split, kind: str, seed: int, number: int) -> Part:
    """Part `number` of the series `seed`."""
    draw = partial(render, kind, (seed, number))
    return Part(f"{split}/{kind}/{number:06d}", split, kind, lambda: encode_jpeg(draw()[0]), lambda: draw()[1])


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def render(kind: str, seed: int | tuple[int, ...]) -> tuple[NDArray[np.uint8], Mask | None]:
    """Draw one part.

    Args:
        kind: "good" or one of KINDS.
        seed: the same seed and kind give the same picture, bit for bit; another kind gives the same part with that
            defect, unchanged elsewhere.

    Returns:
        The picture, uint8 [SIZE, SIZE, 3], RGB, and the mask of the defect, bool [SIZE, SIZE] (None for a good part).
    """
    if kind != "good" and kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected 'good' or one of {', '.join(KINDS)}")
    rng, chance = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    pose = _Pose.draw(rng)
    missing = int(chance.integers(HOLES)) if kind == "missing_hole" else None
    metal = _brushed_metal(pose, rng)
    mask: Mask | None = None
    if kind == "dent":
        metal, mask = _dent(metal, pose, chance)
    elif kind == "scratch":
        metal, mask = _scratch(metal, pose, chance)
    metal = _edges(metal, pose, missing)
    if missing is not None:
        metal, mask = _punch_mark(metal, pose, missing, chance)
    scene = _on_conveyor(metal, pose, missing, rng)
    return _photograph(scene, rng), mask


@dataclass(frozen=True)
class _Pose:
    """Where the part lies and where the light comes from. Fields are [SIZE, SIZE], pixels and radians."""

    x: Pixels  # from the part's centre
    y: Pixels
    r: Pixels
    theta: Pixels
    nearest: NDArray[np.intp]  # which hole is nearest
    hole_x: Pixels  # from the nearest hole's centre
    hole_y: Pixels
    hole_r: Pixels
    lx: float  # where the light comes from, a unit vector
    ly: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Pose":
        cx, cy = (SIZE / 2 + rng.uniform(-4, 4, 2)).tolist()
        rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
        x, y = columns - cx, rows - cy
        theta = np.arctan2(y, x)
        turn = math.radians(rng.uniform(-8, 8))
        light = math.radians(-125 + rng.uniform(-4, 4))  # from the upper left; y points down
        nearest = np.round((theta - turn) * (HOLES / math.tau)).astype(np.intp) % HOLES
        angles = turn + np.arange(HOLES, dtype=np.float32) * np.float32(math.tau / HOLES)
        hole_x, hole_y = x - (HOLE_RING * np.cos(angles))[nearest], y - (HOLE_RING * np.sin(angles))[nearest]
        polar = np.hypot(x, y), theta, nearest, hole_x, hole_y, np.hypot(hole_x, hole_y)
        return cls(x, y, *polar, math.cos(light), math.sin(light))

    def facing(self, x: Pixels, y: Pixels) -> Pixels:
        """How far offsets (x, y) point towards the light, pixels."""
        return x * self.lx + y * self.ly

    def clearance(self) -> Pixels:
        """Distance of each pixel of the metal to the nearest edge; negative off the metal, and in each hole's place."""
        clearance: Pixels = np.minimum(np.minimum(RADIUS - self.r, self.r - BORE), self.hole_r - HOLE)
        return clearance


def _inside(distance: Pixels, soft: float = 0.7) -> Pixels:
    """Share of each pixel that lies inside, from a signed distance: an anti-aliased edge."""
    share: Pixels = np.clip(0.5 - distance / (2 * soft), 0, 1)
    return share


def _ridge(distance: Pixels, width: float) -> Pixels:
    """1 where the distance is 0, falling off as a Gaussian."""
    height: Pixels = np.exp(-((distance / width) ** 2))
    return height


def _brushed_metal(pose: _Pose, rng: np.random.Generator) -> Pixels:
    """Turned metal: brush marks run around the centre, so highlights lie in a bow tie across the light."""
    rings, sectors = 160, 256
    marks = rng.standard_normal((rings, sectors), np.float32)
    long = ndimage.gaussian_filter1d(marks, 24, axis=1, mode="wrap") * 5.5
    short = ndimage.gaussian_filter1d(marks[::-1], 5, axis=1, mode="wrap") * 1.6
    across = ndimage.gaussian_filter1d(rng.standard_normal(rings + 1, np.float32), 1.2)
    polar = np.pad(long + short, ((0, 1), (0, 1)), mode="wrap")  # [rings + 1, sectors + 1]
    ring = np.clip(pose.r * (rings / 120), 0, rings)
    sector = (pose.theta / math.tau % 1) * sectors
    brush = ndimage.map_coordinates(polar, [ring, sector], order=1, mode="nearest")
    brush += 0.8 * np.interp(ring, np.arange(rings + 1), across).astype(np.float32)
    towards = pose.facing(pose.x, pose.y) / np.maximum(pose.r, 1)  # cosine of the angle to the light
    bow = np.exp((towards**2 - 1) / 0.42**2) + 0.45 * _ridge(towards, 0.25)
    slope = pose.facing(pose.x, pose.y) / RADIUS
    strength = rng.uniform(0.75, 1.1)
    base: Pixels = 0.50 + 0.16 * bow + 0.05 * slope + strength * brush * (0.022 + 0.016 * bow)
    return base


def _edges(metal: Pixels, pose: _Pose, missing: int | None) -> Pixels:
    """Bevels of rim, step, bore and holes: they face the light on one side and look away from it on the other."""

    towards = pose.facing(pose.x, pose.y) / np.maximum(pose.r, 1)
    rim, step, bore = _ridge(pose.r - RADIUS + 3, 2.2), _ridge(pose.r - 42, 1.1), _ridge(pose.r - BORE - 1.8, 1.6)
    metal = metal + (0.30 * rim - 0.13 * step - 0.26 * bore) * towards
    into = pose.facing(pose.hole_x, pose.hole_y) / np.maximum(pose.hole_r, 1)
    drilled = True if missing is None else pose.nearest != missing
    return metal - 0.26 * _ridge(pose.hole_r - HOLE - 1.8, 1.6) * into * drilled


def _on_conveyor(metal: Pixels, pose: _Pose, missing: int | None, rng: np.random.Generator) -> Pixels:
    """Lay the part on the belt: its shadow, and holes through which the shaded belt shows."""
    grain = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE), np.float32), (0.6, 1.4))
    worn = ndimage.zoom(ndimage.gaussian_filter(grain[::8, ::8], 1.5), 8, order=1)  # broad patches, cheaply
    shadow = np.clip(1 - (np.hypot(pose.x + 7 * pose.lx, pose.y + 7 * pose.ly) - RADIUS) / 14, 0, 1)
    belt = (0.155 + 0.03 * grain + 0.04 * worn) * (1 - 0.65 * shadow)
    drilled = _inside(pose.hole_r - HOLE)
    if missing is not None:
        drilled = drilled * (pose.nearest != missing)
    solid = _inside(pose.r - RADIUS) * (1 - _inside(pose.r - BORE)) * (1 - drilled)
    scene: Pixels = belt + (metal - belt) * solid
    return scene


def _photograph(scene: Pixels, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Exposure, white balance, vignette, lens blur and sensor noise of one exposure; scene [SIZE, SIZE] -> RGB."""
    span = np.linspace(-1, 1, SIZE, dtype=np.float32)
    vignette = 1 - 0.10 * (span[:, None] ** 2 + span**2)
    drift = 1 + np.float32(rng.uniform(-0.04, 0.04)) * span  # the light is never quite even
    exposed = ndimage.gaussian_filter(scene * vignette * drift * np.float32(rng.uniform(0.9, 1.1)), 0.55)
    tint = np.array([0.985, 1.0, 1.03], np.float32) * (1 + rng.uniform(-0.012, 0.012, 3).astype(np.float32))
    noise = np.float32(rng.uniform(0.006, 0.012)) * rng.standard_normal((SIZE, SIZE, 3), np.float32)
    rgb: Pixels = np.clip(exposed[:, :, None] * tint + noise, 0, 1)
    return (rgb * 255 + 0.5).astype(np.uint8)


def _on_metal(pose: _Pose, rng: np.random.Generator, margin: float) -> tuple[float, float]:
    """A point of the metal at least `margin` pixels from every edge, pixels from the part's centre."""
    row, column = rng.choice(np.argwhere(pose.clearance() > margin))
    return float(pose.x[row, column]), float(pose.y[row, column])


def _punch_mark(metal: Pixels, pose: _Pose, missing: int, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """A hole that was never drilled: bare metal with no more than the mark of the centre punch."""
    here = pose.nearest == missing
    width = rng.uniform(1.6, 2.6)
    mark = _ridge(pose.hole_r, width) * here
    shade = 0.6 + pose.facing(pose.hole_x, pose.hole_y) / width
    return metal - rng.uniform(0.25, 0.5) * mark * shade, (pose.hole_r < HOLE + 3) & here


def _dent(metal: Pixels, pose: _Pose, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """A blow's mark: a shallow bowl, dark on the side of the light, bright on the other, its brush marks smeared."""
    size = rng.uniform(7.0, 12.0)
    cx, cy = _on_metal(pose, rng, margin=5)
    turn, stretch = rng.uniform(0, math.pi), rng.uniform(1.0, 1.5)
    dx, dy = pose.x - cx, pose.y - cy
    u = (dx * math.cos(turn) + dy * math.sin(turn)) / stretch
    v = dy * math.cos(turn) - dx * math.sin(turn)
    q = np.hypot(u, v) / size  # 1 at the bowl's rim
    bowl, rim = _ridge(q, 0.62), _ridge(q - 1.05, 0.16)
    facing = pose.facing(dx, dy) / size
    depth = rng.uniform(0.24, 0.45)
    smeared = metal + bowl * (ndimage.gaussian_filter(metal, 2.0) - metal)
    dented = smeared - depth * (bowl * (1.6 * facing + 0.35) - 0.35 * rim * np.clip(facing, -1, 1))
    return dented, (q < 1.2) & (pose.clearance() > 0)


def _scratch(metal: Pixels, pose: _Pose, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """A curved groove across the brush marks: a bright burr beside a dark furrow, tapering to both ends."""
    fine = 4  # drawn this much larger, then averaged down
    cx, cy = _on_metal(pose, rng, margin=8)
    length, turn, bend = rng.uniform(40, 95), rng.uniform(0, math.pi), rng.uniform(-0.22, 0.22)
    t = np.linspace(-0.5, 0.5, 40)
    along, across = t * length, bend * length * (0.25 - t**2) + ndimage.gaussian_filter1d(rng.normal(0, 0.6, 40), 3)
    x = cx + along * math.cos(turn) - across * math.sin(turn) - float(pose.x[0, 0])
    y = cy + along * math.sin(turn) + across * math.cos(turn) - float(pose.y[0, 0])
    canvas = Image.new("L", (SIZE * fine, SIZE * fine))
    pen, width = ImageDraw.Draw(canvas), rng.uniform(1.1, 2.6) * fine
    for i in range(39):
        taper = max(1, round(width * (1 - (2 * t[i]) ** 4)))
        pen.line([(x[i] * fine, y[i] * fine), (x[i + 1] * fine, y[i + 1] * fine)], fill=255, width=taper)
    furrow = np.asarray(canvas.reduce(fine), np.float32) / 255
    on_metal = pose.clearance() > 1
    side = math.copysign(1.4, pose.lx * math.sin(turn) - pose.ly * math.cos(turn))  # the burr lies away from the light
    burr = ndimage.shift(furrow, (side * math.cos(turn), -side * math.sin(turn)), order=1) * on_metal
    furrow = furrow * on_metal
    contrast = rng.uniform(0.22, 0.55)
    touched: Mask = ndimage.binary_dilation((furrow > 0.05) | (burr > 0.05), iterations=1)
    return metal - contrast * furrow + 0.8 * contrast * burr, touched
