"""What is drawn here: pictures within the limits of the wire format, and heat maps to lay over them."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from worker.errors import RejectedError
from worker.message import Image, decode_pixels
from worker.settings import LimitSettings

SIDES = {"thumb": 320, "full": 1280}  # pixels, the longer side
HEAT_SIDE = 384
MAP_SIDE = 4096
COOL, HOT = 0.8, 1.8  # patch scores, in thresholds, between which the heat map goes from clear to full;
FULL = 0.85  # or up to this share of a part's largest, so that a strong defect keeps its shape
STOPS = np.linspace(0, 1, 5)
COLOURS = np.array([[96, 19, 110], [187, 55, 84], [237, 105, 37], [251, 180, 26], [252, 255, 164]])  # of inferno
CACHE_BYTES = 32 * 1024 * 1024


def picture(image: Image, size: str, limits: LimitSettings) -> bytes:
    """A JPEG of at most SIDES[size] pixels. Raises RejectedError: it is none, or larger than the limits."""
    pixels = Pillow.fromarray(decode_pixels(image, limits))
    pixels.thumbnail((SIDES[size], SIDES[size]), Pillow.Resampling.LANCZOS, reducing_gap=2)
    return _encoded(pixels, "JPEG", quality=88)


def heat_map(result: dict[str, Any]) -> bytes:
    """A PNG that is clear where a part is as it should be, to be stretched over the whole picture.

    Raises:
        RejectedError: the result has no map, or a broken one.
    """
    scores = patch_scores(result.get("map"))
    threshold = result.get("threshold")
    scale = threshold if isinstance(threshold, float) and threshold > 0 else float(scores.max()) / HOT or 1.0
    h, w = scores.shape
    zoom = max(1.0, HEAT_SIDE / max(h, w))
    size = max(1, round(w * zoom)), max(1, round(h * zoom))
    smooth = np.asarray(Pillow.fromarray(scores / scale).resize(size, Pillow.Resampling.BICUBIC))
    hot = max(HOT, FULL * float(smooth.max()))
    level = np.clip((smooth - COOL) / (hot - COOL), 0, 1)  # [H, W]
    channels = [np.interp(level, STOPS, COLOURS[:, i]) for i in range(3)]
    rgba = np.stack([*channels, 255 * level], axis=-1)
    return _encoded(Pillow.fromarray(rgba.round().astype(np.uint8), "RGBA"), "PNG")


def patch_scores(packed: Any) -> NDArray[np.float32]:
    """[h, w] of the `map` of a result that anybody may have written. Raises RejectedError."""
    if not packed:
        raise RejectedError("lost", "the result carries no heat map")
    try:
        h, w = packed["shape"]
        largest = float(packed["max"])
        if not (0 < h <= MAP_SIDE and 0 < w <= MAP_SIDE and 0 <= largest < np.inf):
            raise ValueError(f"{h} x {w}, at most {largest}")
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
