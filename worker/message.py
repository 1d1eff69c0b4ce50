"""The wire format: entries of `mhpc:{LINE}:images` and `:scores`. Imports no torch.

Whatever comes from a stream is untrusted: the size of an entry is checked before it is unpacked, and a picture's
declared size before it is decoded.
"""

import io
import math
import reprlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from worker.errors import RejectedError
from worker.pictures.bounds import check_scans, check_size, is_plain, is_text
from worker.settings import LimitSettings
from worker.tokens import has_more_than, unpack

VERSION = 1
FORMATS = ("jpeg", "png", "raw")
ID_LENGTH = 512  # characters
OBJECTS = 500_000  # in an entry: some 50 MB once unpacked
META_DEPTH = 16  # maps and lists within each other; a result's readers recurse

# Every reason that a dead letter may carry; they label `mhpc_dead_letters_total`.
REASONS = (
    "no_batch_field",
    "not_msgpack",
    "wrong_version",
    "wrong_shape",
    "empty_batch",
    "too_many_images",
    "too_large",
    "not_an_image",
    "truncated",
    "lost",
    "failed",
)

MALFORMED = (IndexError, KeyError, TypeError, struct.error)  # of Pillow, at a chunk too short for what it is to hold

Pixels = NDArray[np.uint8]  # [H, W, 3] RGB


@dataclass(frozen=True)
class Image:
    """One picture as it travels. `shape` is (h, w, c) for format "raw" alone: uint8, c 1 or 3, RGB, row-major."""

    id: str
    format: Literal["jpeg", "png", "raw"]
    data: bytes
    shape: tuple[int, int, int] | None = None
    ts: float | None = None
    meta: dict[str, Any] | None = None


@dataclass(frozen=True)
class Rejected:
    """An image of an entry that ends as a dead letter; `payload` is what came for it."""

    id: str
    reason: str
    error: str
    payload: bytes


class HeatMap(NamedTuple):
    """Patch scores [h, w] as they travel: each is data / 255 * max."""

    data: NDArray[np.uint8]
    max: float


@dataclass(frozen=True)
class Result:
    """The verdict on one image; the fields are those of the `result` map."""

    line: str
    entry: str
    id: str
    phase: str
    model: str | None
    score: float | None
    threshold: float | None
    anomalous: bool | None
    provisional: bool
    ts: float | None
    latency_ms: float
    map: HeatMap | None
    meta: dict[str, Any] | None


def encode_batch(images: list[Image]) -> bytes:
    """The value of an entry's `batch` field."""
    return _packed({"v": VERSION, "images": [_as_map(image) for image in images]})


def encode_map(image: bytes) -> bytes:
    """The value of a `batch` field with the one image whose map is packed in `image`."""
    return _packed({"v": VERSION, "images": [unpack(image)]})


def _as_map(image: Image) -> dict[str, Any]:
    optional = {"shape": image.shape, "ts": image.ts, "meta": image.meta}
    present = {key: value for key, value in optional.items() if value is not None}
    return {"id": image.id, "format": image.format, "data": image.data, **present}


def decode_batch(batch: bytes | None, limits: LimitSettings) -> list[Image | Rejected]:
    """Split an entry into its images; one that is malformed is returned as Rejected beside the good ones.

    Raises:
        RejectedError: nothing of the entry can be used.
    """
    if batch is None:
        raise RejectedError("no_batch_field", 'the entry has no field "batch"; XADD KEY * batch <msgpack>')
    if len(batch) > limits.entry_bytes:
        raise RejectedError("too_large", f"entry of {len(batch)} bytes, at most {limits.entry_bytes} are accepted")
    message = unpacked(batch)
    if not isinstance(message, dict):
        raise RejectedError("wrong_shape", f"`batch` is {_kind(message)}, expected a map with `v` and `images`")
    if message.get("v") != VERSION or isinstance(message.get("v"), bool):
        raise RejectedError("wrong_version", f"`v` is {_shown(message.get('v'))}, this worker reads {VERSION}")
    images = message.get("images")
    if not isinstance(images, list):
        raise RejectedError("wrong_shape", f"`images` is {_kind(images)}, expected a list of maps")
    if not images:
        raise RejectedError("empty_batch", "`images` is empty, expected at least one")
    if len(images) > limits.images_per_entry:
        raise RejectedError(
            "too_many_images", f"{len(images)} images in one entry, at most {limits.images_per_entry} are accepted"
        )
    return [_image(item, index, limits) for index, item in enumerate(images)]


def unpacked(batch: bytes) -> Any:
    """What a `batch` field holds; text that is no UTF-8 has surrogates in it. Raises RejectedError."""
    if has_more_than(batch, OBJECTS):
        raise RejectedError("too_large", f"`batch` holds more than {OBJECTS} values; pictures are one each")
    try:
        return unpack(batch)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise RejectedError("not_msgpack", f"`batch` is not msgpack: {type(error).__name__}: {error}") from None


def _image(item: Any, index: int, limits: LimitSettings) -> Image | Rejected:
    try:
        return _checked(item, limits)
    except RejectedError as error:
        return Rejected(image_name(item, index), error.reason, str(error), image_data(item))


def image_name(item: Any, index: int) -> str:
    """The id of an image of an entry, or its place where it has none that can be used."""
    identity = item.get("id") if isinstance(item, dict) else None
    return identity if is_text(identity) and len(identity) <= ID_LENGTH else f"#{index}"


def image_data(item: Any) -> bytes:
    """What came as an image's `data`, be it as a text, which is of the same bytes; none where it is of another type."""
    data = item.get("data") if isinstance(item, dict) else None
    if isinstance(data, str):
        return data.encode(errors="surrogateescape")
    return data if isinstance(data, bytes) else b""


def _checked(item: Any, limits: LimitSettings) -> Image:
    def expect(holds: bool, text: str) -> None:
        if not holds:
            raise RejectedError("wrong_shape", text)

    expect(isinstance(item, dict), f"an image is {_kind(item)}, expected a map with `id`, `format` and `data`")
    identity, form, data = item.get("id"), item.get("format"), item.get("data")
    expect(is_text(identity), f"`id` is {_kind(identity)}, expected a string in UTF-8")
    expect(len(identity) <= ID_LENGTH, f"`id` has {len(identity)} characters, at most {ID_LENGTH} are accepted")
    expect(form in FORMATS, f"`format` is {_shown(form)}, expected one of {', '.join(FORMATS)}")
    expect(isinstance(data, bytes), f"`data` is {_kind(data)}, expected bytes (msgpack bin)")
    shape, ts, meta = item.get("shape"), item.get("ts"), item.get("meta")
    if form == "raw":
        whole = isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)
        expect(whole and shape[2] in (1, 3), f"`shape` is {_shown(shape)}, expected [h, w, c] with c 1 or 3 for raw")
    number = isinstance(ts, int | float) and not isinstance(ts, bool) and math.isfinite(ts)
    expect(ts is None or number, f"`ts` is {_shown(ts)}, expected seconds as a number")
    expect(meta is None or isinstance(meta, dict), f"`meta` is {_kind(meta)}, expected a map")
    expect(is_plain(meta, META_DEPTH), f"`meta` holds more than plain values by string keys, {META_DEPTH} levels deep")
    if meta and len(_packed(meta)) > limits.meta_bytes:
        raise RejectedError("too_large", f"`meta` packs to more than {limits.meta_bytes} bytes")
    return Image(identity, form, data, tuple(shape) if form == "raw" else None, ts, meta)


def decode_pixels(image: Image, limits: LimitSettings) -> Pixels:
    """Decode to RGB, [H, W, 3] uint8; grey is repeated, alpha dropped, 16 bits scaled to 8.

    Raises:
        RejectedError: what came is not a picture, is cut off, or declares more than the limits.
    """
    if image.format == "raw":
        pixels = raw_pixels(image, limits)
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels.copy()
    with opened(image, limits) as picture:
        return _rgb(picture)


@contextmanager
def opened(image: Image, limits: LimitSettings) -> Iterator[Pillow.Image]:
    """A JPEG or PNG to decode in the block; so far its header alone was read. Raises RejectedError as decode_pixels."""
    if image.format == "jpeg":
        check_scans(image.data)
    try:
        # Lazy: this reads the header alone, so a small file that declares a huge picture costs nothing.
        picture = Pillow.open(io.BytesIO(image.data), formats=(image.format.upper(),))
    except Pillow.DecompressionBombError as error:  # Pillow's own bound, 179 megapixels
        raise RejectedError("too_large", f"{error}; at most {limits.image_pixels} pixels are accepted") from None
    except UnidentifiedImageError:
        raise RejectedError("not_an_image", f"{len(image.data)} bytes that are not a {image.format}") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise RejectedError("not_an_image", f"{len(image.data)} bytes are not a {image.format}: {error}") from None
    with picture:
        check_size(picture.height, picture.width, limits)
        try:
            yield picture
        except (OSError, ValueError, SyntaxError, EOFError, *MALFORMED) as error:
            raise RejectedError("truncated", f"a {image.format} that does not decode to its end: {error}") from None


def _rgb(picture: Pillow.Image) -> Pixels:
    if picture.mode.startswith("I;16") or picture.mode == "I":
        grey = (np.asarray(picture, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8)  # 16 bits -> 8
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(picture.convert("RGB"))


def raw_pixels(image: Image, limits: LimitSettings) -> Pixels:
    """[h, w, c] of a raw picture, not copied. Raises RejectedError: larger than the limits, or of another size."""
    assert image.shape is not None  # noqa: S101 - decode_batch refuses a raw image without one
    h, w, c = image.shape
    check_size(h, w, limits)
    if len(image.data) != h * w * c:
        raise RejectedError("wrong_shape", f"raw {h} x {w} x {c} needs {h * w * c} bytes, {len(image.data)} came")
    return np.frombuffer(image.data, dtype=np.uint8).reshape(h, w, c)


def encode_result(result: Result) -> bytes:
    """The value of a result entry's `result` field."""
    fields = {"v": VERSION, **vars(result)}
    if (heat := fields.pop("map")) is not None:
        fields["map"] = {"shape": heat.data.shape, "max": heat.max, "data": heat.data.tobytes()}
    return _packed(fields)


def heat_maps(scores: NDArray[np.float32]) -> list[HeatMap]:
    """Of patch scores [B, h, w] of so many images."""
    largest = scores.max((1, 2), initial=0)
    scale = 255 / np.where(largest > 0, largest, 1).astype(np.float64)
    data = np.rint(scores * scale.astype(np.float32)[:, None, None]).astype(np.uint8)
    return [HeatMap(*each) for each in zip(data, largest.tolist(), strict=True)]


def decode_result(value: bytes) -> dict[str, Any]:
    """The map of a `result` field; `map`, where there is one, becomes [h, w] float32 patch scores."""
    result: dict[str, Any] = msgpack.unpackb(value)
    if result.get("map"):
        packed = result["map"]
        data = np.frombuffer(packed["data"], np.uint8).reshape(packed["shape"])
        result["map"] = data.astype(np.float32) * (packed["max"] / 255)
    return result


def _packed(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _shown(value: Any) -> str:
    """What came, cut short; msgpack nests values deeper than `repr` can follow."""
    return f"{reprlib.repr(value):.60}"


def _kind(value: Any) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
