"""What is drawn here: pictures within the limits of the wire format, and heat maps to lay over them."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from worker.console.text import number_of
from worker.errors import RejectedError
from worker.message import Image, opened, raw_pixels
from worker.settings import LimitSettings

SIDES = {"thumb": 320, "full": 1280}  # pixels, the longer side
HEAT_SIDE = 384
MAP_SIDE = 1024
COOL, HOT = 0.8, 1.8  # patch scores, in thresholds, between which the heat map goes from clear to full;
FULL = 0.85  # or up to this share of a part's largest, so that a strong defect keeps its shape
MOST = 1e6  # thresholds: more is as hot
LEVELS = np.linspace(0, 1, 256)
INFERNO = np.array([[96, 19, 110], [187, 55, 84], [237, 105, 37], [251, 180, 26], [252, 255, 164]])
CHANNELS = [*(np.interp(LEVELS, np.linspace(0, 1, 5), channel) for channel in INFERNO.T), 255 * LEVELS]
COLOURS = np.stack(CHANNELS, axis=-1).round().astype(np.uint8)  # [256, RGBA]
CACHE_BYTES = 32 * 1024 * 1024


def picture(image: Image, size: str, limits: LimitSettings) -> bytes:
    """A JPEG of at most SIDES[size] pixels. Raises RejectedError: it is none, or larger than the limits."""
    if image.format == "raw":
        pixels = raw_pixels(image, limits)
        small = _shrunk(Pillow.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels), SIDES[size])
    else:
        with opened(image, limits) as whole:
            small = _shrunk(whole, SIDES[size])
    return _encoded(small, "JPEG", quality=88)


def _shrunk(whole: Pillow.Image, side: int) -> Pillow.Image:
    """With one picture of full size in memory: a JPEG is decoded small, and no copy in RGB is made before."""
    w, h = whole.size
    whole.draft(None, (max(1, side * w // max(w, h)), max(1, side * h // max(w, h))))
    if whole.mode in ("LA", "RGBA"):  # the worker drops alpha, too; to shrink with it would blend the colours
        bands = [_shrunk(whole.getchannel(band), side) for band in whole.getbands()[:-1]]
        return Pillow.merge(whole.mode[:-1], bands)
    if whole.mode.startswith("I"):  # 16 bits -> 8
        whole = Pillow.fromarray((np.asarray(whole) >> 8).clip(0, 255).astype(np.uint8))
    elif whole.mode not in ("L", "RGB", "CMYK"):
        whole = whole.convert("RGB")
    whole.thumbnail((side, side), Pillow.Resampling.LANCZOS, reducing_gap=2)
    return whole.convert("L" if whole.mode == "L" else "RGB")  # which decodes what was small enough


def heat_map(result: dict[str, Any]) -> bytes:
    """A PNG that is clear where a part is as it should be, to be stretched over the whole picture.

    Raises:
        RejectedError: the result has no map, or a broken one.
    """
    scores = patch_scores(result.get("map"))
    threshold = number_of(result.get("threshold")) or 0.0
    scale = threshold if threshold > 0 else float(scores.max()) / HOT or 1.0
    h, w = scores.shape
    zoom = HEAT_SIDE / max(h, w)
    size = max(1, round(w * zoom)), max(1, round(h * zoom))
    with np.errstate(over="ignore"):
        relative = np.minimum(scores.astype(np.float64) / scale, MOST).astype(np.float32)
    smooth = np.asarray(Pillow.fromarray(relative).resize(size, Pillow.Resampling.BICUBIC))
    hot = max(HOT, FULL * float(smooth.max()))
    level = np.clip((smooth - COOL) / (hot - COOL), 0, 1)  # [H, W]
    return _encoded(Pillow.fromarray(COLOURS[(255 * level).round().astype(np.uint8)], "RGBA"), "PNG")


def patch_scores(packed: Any) -> NDArray[np.float32]:
    """[h, w] of the `map` of a result that anybody may have written. Raises RejectedError."""
    if not packed:
        raise RejectedError("lost", "the result carries no heat map")
    try:
        h, w = packed["shape"]
        largest = number_of(packed["max"])
        if not (0 < h <= MAP_SIDE and 0 < w <= MAP_SIDE) or largest is None or largest < 0:
            raise ValueError(f"{h!r:.40} x {w!r:.40}, at most {packed['max']!r:.40}")
        data = np.frombuffer(packed["data"], np.uint8).reshape(h, w)
    except (KeyError, ValueError, TypeError) as error:
        raise RejectedError("wrong_shape", f"the heat map is broken: {error}") from None
    return data.astype(np.float32) * np.float32(largest / 255)


def _encoded(image: Pillow.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


class Drawn:
    """What was drawn of late, by what it is of, within CACHE_BYTES."""

    def __init__(self) -> None:
        self._drawn: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, of: tuple[str, ...], draw: Callable[[], bytes]) -> bytes:
        """It, drawn now if it is not at hand; raises what `draw` raises."""
        with self._lock:
            if of in self._drawn:
                self._drawn.move_to_end(of)
                return self._drawn[of]
        data = draw()
        with self._lock:
            if of not in self._drawn:
                self._drawn[of] = data
                self._size += len(data)
            while self._size > CACHE_BYTES:
                _, old = self._drawn.popitem(last=False)
                self._size -= len(old)
        return data
