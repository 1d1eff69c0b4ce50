"""Generated surfaces: each function draws one picture from a random generator, [size, size, 3] float32 in [0, 1].

Dead leaves: Lee, Mumford, Huang (2001), "Occlusion Models for Natural Images"; as training pictures, Baradad et al.
(2021), "Learning to See by Looking at Noise", arXiv:2106.05963. Fractal noise has the power spectrum 1 / f^(2a) of
natural images.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array = npt.NDArray[np.float32]
Texture = Callable[[np.random.Generator, int], Array]


def unit(field: npt.NDArray[np.floating]) -> Array:
    """Stretch a field linearly to [0, 1]; a constant one becomes 0."""
    low, high = float(field.min()), float(field.max())
    return ((field - low) / max(high - low, 1e-9)).astype(np.float32)


def noise(rng: np.random.Generator, size: int, exponent: float, stretch: tuple[float, float] = (1.0, 1.0)) -> Array:
    """[size, size] noise of amplitude spectrum 1 / f^exponent, frequencies scaled by `stretch` (rows, columns)."""
    spectrum = np.fft.rfft2(rng.standard_normal((size, size)))
    f = np.hypot(np.fft.fftfreq(size)[:, None] * stretch[0], np.fft.rfftfreq(size)[None, :] * stretch[1])
    f[0, 0] = np.inf
    return unit(np.fft.irfft2(spectrum / f**exponent, s=(size, size)))


def coloured(rng: np.random.Generator, field: Array) -> Array:
    """Map a [size, size] field through a random ramp of two to four colours; every second one is near grey."""
    stops = int(rng.integers(2, 5))
    palette = rng.random((stops, 3))
    if rng.random() < 0.5:
        palette = palette.mean(axis=1, keepdims=True) + rng.normal(0, 0.03, (1, 3))
    at = np.linspace(0, 1, stops)
    return np.stack([np.interp(field, at, palette[:, c]) for c in range(3)], axis=-1).clip(0, 1).astype(np.float32)


def grid(rng: np.random.Generator, size: int) -> tuple[Array, Array]:
    """Coordinates [size, size] in pixels, turned by a random angle and slightly bent."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    bend = rng.exponential(6.0)
    return (u + bend * noise(rng, size, 2.0)).astype(np.float32), (v + bend * noise(rng, size, 2.0)).astype(np.float32)


def fractal_noise(rng: np.random.Generator, size: int) -> Array:
    if rng.random() < 0.5:
        return coloured(rng, noise(rng, size, rng.uniform(0.6, 2.2)))
    return np.stack([noise(rng, size, rng.uniform(0.6, 2.2)) for _ in range(3)], axis=-1)


def gratings(rng: np.random.Generator, size: int) -> Array:
    u, v = grid(rng, size)
    field = np.zeros((size, size), np.float32)
    for _ in range(int(rng.integers(1, 4))):
        period, mix = np.exp(rng.uniform(np.log(3), np.log(60))), rng.uniform(-0.4, 1.4)
        field += np.sin((u * mix + v * (1 - mix)) * 2 * np.pi / period + rng.uniform(0, 6.28)) * rng.uniform(0.3, 1)
    if rng.random() < 0.3:
        field = np.tanh(field * 6)
    return coloured(rng, unit(field + noise(rng, size, 1.0) * rng.uniform(0, 1)))


def gradient(rng: np.random.Generator, size: int) -> Array:
    u, v = grid(rng, size)
    centre = rng.uniform(0, size, 2)
    field = np.hypot(u - centre[0], v - centre[1]) if rng.random() < 0.5 else u
    return coloured(rng, unit(field))


def brushed(rng: np.random.Generator, size: int) -> Array:
    """Brushed metal: noise drawn out along one direction, or round a centre as on a turned part."""
    if rng.random() < 0.4:
        y, x = np.mgrid[:size, :size].astype(np.float32)
        radius = np.hypot(y - rng.uniform(0, size), x - rng.uniform(0, size))
        profile = noise(rng, 2 * size, rng.uniform(0.2, 1.0))[0]
        field = np.interp(radius, np.arange(2 * size), profile).astype(np.float32)
        field += 0.3 * noise(rng, size, 0.5)
    else:
        field = noise(rng, size, rng.uniform(0.5, 1.5), (1.0, rng.uniform(8, 60)))
        angle = float(rng.choice([0, 90, rng.uniform(0, 180)]))
        field = ndimage.rotate(field, angle, reshape=False, order=1, mode="reflect")
    base, depth = rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.6)
    return _grey(rng, base + depth * (unit(field) - 0.5))


def cast(rng: np.random.Generator, size: int) -> Array:
    """A cast or ground surface: fine grain lit from one side, with pits and stains."""
    height = noise(rng, size, rng.uniform(0.6, 1.6)) + 0.3 * noise(rng, size, rng.uniform(0.0, 0.6))
    for _ in range(int(rng.integers(0, 12))):
        height -= rng.uniform(0.1, 0.8) * _blob(rng, size, rng.uniform(1.5, 12))
    dy, dx = np.gradient(ndimage.gaussian_filter(height, rng.uniform(0.3, 1.5)))
    angle = rng.uniform(0, 2 * np.pi)
    lit = (dx * np.cos(angle) + dy * np.sin(angle)) * rng.uniform(2, 15)
    stains = noise(rng, size, rng.uniform(1.5, 2.5)) * rng.uniform(0, 0.4)
    return _grey(rng, rng.uniform(0.2, 0.8) + np.tanh(lit) * 0.4 + stains)


def weave(rng: np.random.Generator, size: int) -> Array:
    """Threads that cross over and under: plain, twill or satin by the offset from row to row."""
    u, v = grid(rng, size)
    period = np.exp(rng.uniform(np.log(5), np.log(32)))
    i, j = np.floor(u / period), np.floor(v / period)
    repeat, offset = int(rng.integers(2, 6)), int(rng.integers(1, 4))
    over = ((i + offset * j) % repeat) < max(1, repeat // 2)
    fu, fv = (u / period) % 1, (v / period) % 1
    thread = np.where(over, np.sin(np.pi * fv), np.sin(np.pi * fu)) ** rng.uniform(0.3, 1.5)
    strand = np.sin(2 * np.pi * np.where(over, u, v) / rng.uniform(2, 6)) * rng.uniform(0, 0.3)
    colours = rng.random((2, 3)) if rng.random() < 0.6 else np.tile(rng.random((2, 1)), 3)
    shade = (0.3 + 0.7 * thread + strand + 0.3 * noise(rng, size, 1.0))[..., None]
    cloth: Array = (np.where(over[..., None], colours[0], colours[1]) * shade).clip(0, 1).astype(np.float32)
    return cloth


def defects(rng: np.random.Generator, picture: Array) -> Array:
    """Scratches, pits, cracks and stains laid over any picture, so that the student sees what banks must tell apart."""
    size = picture.shape[0]
    result = picture.copy()
    for _ in range(int(rng.integers(1, 7))):
        kind = rng.random()
        if kind < 0.4:
            mask = _blob(rng, size, np.exp(rng.uniform(np.log(1.5), np.log(20))))
        elif kind < 0.85:
            mask = _stroke(rng, size, wander=0.05 if kind < 0.6 else 0.5)
        else:
            mask = (noise(rng, size, 2.0) > rng.uniform(0.7, 0.9)).astype(np.float32)
        tone = rng.random(3) if rng.random() < 0.2 else np.full(3, rng.random())
        result += (mask * rng.uniform(0.2, 1.0))[..., None] * (tone.astype(np.float32) - result)
    marked: Array = result.clip(0, 1)
    return marked


def _grey(rng: np.random.Generator, field: npt.NDArray[np.floating]) -> Array:
    tint = 1 + rng.normal(0, 0.03, 3) if rng.random() < 0.7 else rng.uniform(0.5, 1.2, 3)
    return (field[..., None] * tint).clip(0, 1).astype(np.float32)


def _blob(rng: np.random.Generator, size: int, radius: float) -> Array:
    y, x = np.mgrid[:size, :size].astype(np.float32)
    a, ratio = rng.uniform(0, np.pi), rng.uniform(0.4, 1.0)
    y, x = y - rng.uniform(0, size), x - rng.uniform(0, size)
    distance = np.hypot(x * np.cos(a) + y * np.sin(a), (y * np.cos(a) - x * np.sin(a)) / ratio)
    sharpness = rng.uniform(0.5, 4.0)
    falloff: Array = (1 / (1 + np.exp(((distance - radius) * sharpness).clip(-30, 30)))).astype(np.float32)
    return falloff


def _stroke(rng: np.random.Generator, size: int, wander: float) -> Array:
    """A line of small steps whose direction wanders: straight ones are scratches, wandering ones cracks."""
    steps = int(rng.integers(20, size))
    direction = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, wander, steps))
    points = rng.uniform(0, size, 2)[:, None] + np.cumsum([np.sin(direction), np.cos(direction)], axis=1)
    inside = points[:, ((points >= 0) & (points < size)).all(axis=0)].astype(int)
    line = np.zeros((size, size), np.float32)
    line[inside[0], inside[1]] = 1
    return unit(ndimage.gaussian_filter(line, rng.uniform(0.5, 2.0)))
