import dataclasses
import struct
import zlib
from typing import Any

import msgpack
import numpy as np
import pytest

from tests.worker.helpers import encoded, item, message, picture
from worker.errors import RejectedError
from worker.message import (
    META_DEPTH,
    REASONS,
    Image,
    Pixels,
    Rejected,
    Result,
    decode_batch,
    decode_pixels,
    decode_result,
    encode_batch,
    encode_result,
    heat_maps,
)
from worker.settings import LimitSettings

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Corrupt EXIF")

JPEG = encoded(picture(), "JPEG")
LIMITS = LimitSettings()
SMALL = LimitSettings(image_side=256, image_pixels=40_000, meta_bytes=200, entry_bytes=100_000, images_per_entry=3)


def sound(reason: str, text: str) -> str:
    """A reason that labels a metric, with one line that tells a person."""
    assert reason in REASONS
    assert text
    assert "\n" not in text
    return reason


def outcome(image: Image | Rejected, limits: LimitSettings) -> str:
    """ "ok", or the reason for which an image ends as a dead letter."""
    if isinstance(image, Rejected):
        return sound(image.reason, image.error)
    try:
        pixels = decode_pixels(image, limits)
    except RejectedError as error:
        return sound(error.reason, str(error))
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    return "ok"


def outcomes(batch: bytes | None, limits: LimitSettings = LIMITS) -> dict[str, str]:
    """What becomes of each image by its id; "" stands for the whole entry."""
    try:
        images = decode_batch(batch, limits)
    except RejectedError as error:
        return {"": sound(error.reason, str(error))}
    return {image.id: outcome(image, limits) for image in images}


def decoded(data: bytes, form: Any = "png", **fields: Any) -> Pixels:
    return decode_pixels(Image("a", form, data, **fields), LIMITS)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def jpeg_header(width: int, height: int) -> bytes:
    data = encoded(picture(), "JPEG")
    start = data.index(b"\xff\xc0") + 5  # SOF0: marker, length, precision
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


# -- whole entries -----------------------------------------------------------------------------------------------------


def test_what_is_encoded_is_decoded_again() -> None:
    images = [
        Image("a", "png", b"x", ts=1.5, meta={"part": "7", "list": [1, None, b"\0"]}),
        Image("b", "raw", bytes(6), shape=(1, 2, 3)),
    ]
    assert decode_batch(encode_batch(images), LIMITS) == images


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (None, "no_batch_field"),
        (b"", "not_msgpack"),
        (b"\xc1", "not_msgpack"),
        (b"not msgpack at all", "not_msgpack"),
        (message(item())[:-1], "not_msgpack"),
        (message(item()) + b"\0", "not_msgpack"),
        (msgpack.packb({1: 2}), "wrong_version"),
        (b"\x81\xa1v\xdd\xff\xff\xff\xff", "not_msgpack"),
        (b"\x91" * 5000 + b"\xc0", "not_msgpack"),
        (msgpack.packb({"v": 1, "images": msgpack.Timestamp(0)}), "wrong_shape"),
        (msgpack.packb(None), "wrong_shape"),
        (msgpack.packb([1, 2]), "wrong_shape"),
        (msgpack.packb({}), "wrong_version"),
        (message(item(), v=2), "wrong_version"),
        (message(item(), v="1"), "wrong_version"),
        (message(item(), v=True), "wrong_version"),
        (message(item(), v=None), "wrong_version"),
        (msgpack.packb({"v": 1}), "wrong_shape"),
        (message(images={"0": item()}), "wrong_shape"),
        (message(), "empty_batch"),
        (message(*[item(str(i)) for i in range(4)]), "too_many_images"),
        (message(item(data=bytes(100_001))), "too_large"),
    ],
)
def test_an_entry_that_cannot_be_used_is_rejected_whole_with_its_reason(batch: bytes | None, reason: str) -> None:
    assert outcomes(batch, SMALL) == {"": reason}


def test_what_is_unknown_is_ignored_whatever_it_is() -> None:
    at = msgpack.Timestamp(0)
    assert outcomes(message(item("1", takenAt=at), item("2", **{"gr\udcf6": 1}), sent=at)) == {"1": "ok", "2": "ok"}


# -- one image of a batch ----------------------------------------------------------------------------------------------

BAD_IMAGES = [
    ("no picture", {"data": b"GIF89a and no more"}, "not_an_image"),
    ("no bytes", {"data": b""}, "not_an_image"),
    ("a png named jpeg", {"format": "jpeg"}, "not_an_image"),
    ("a jpeg named png", {"data": encoded(picture(), "JPEG")}, "not_an_image"),
    ("a gif", {"data": encoded(picture(), "GIF")}, "not_an_image"),
    ("a png of 60,000 x 60,000", {"data": png_header(60_000, 60_000)}, "too_large"),
    ("a png of 12,000 x 12,000", {"data": png_header(12_000, 12_000)}, "too_large"),
    ("a jpeg of 60,000 x 60,000", {"format": "jpeg", "data": jpeg_header(60_000, 60_000)}, "too_large"),
    ("raw of 60,000 x 60,000", {"format": "raw", "shape": [60_000, 60_000, 3]}, "too_large"),
    ("a png too long on one side", {"data": png_header(257, 8)}, "too_large"),
    ("a jpeg of too many pixels", {"format": "jpeg", "data": jpeg_header(250, 250)}, "too_large"),
    ("a truncated png", {"data": encoded(picture())[:-200]}, "truncated"),
    ("a truncated jpeg", {"format": "jpeg", "data": encoded(picture(), "JPEG")[:-200]}, "truncated"),
    ("a png that declares more than it holds", {"data": png_header(100, 100)}, "truncated"),
    ("raw without a shape", {"format": "raw"}, "wrong_shape"),
    ("raw with two bytes missing", {"format": "raw", "shape": [2, 2, 3], "data": bytes(10)}, "wrong_shape"),
    ("raw with a byte too many", {"format": "raw", "shape": [2, 2, 1], "data": bytes(5)}, "wrong_shape"),
    ("raw of two channels", {"format": "raw", "shape": [2, 2, 2], "data": bytes(8)}, "wrong_shape"),
    ("raw without a side", {"format": "raw", "shape": [0, 2, 3], "data": b""}, "wrong_shape"),
    ("raw of a negative side", {"format": "raw", "shape": [-1, -1, 3], "data": bytes(3)}, "wrong_shape"),
    ("raw of half a pixel", {"format": "raw", "shape": [0.5, 2, 3], "data": bytes(3)}, "wrong_shape"),
    ("raw of a side that is true", {"format": "raw", "shape": [True, 1, 3], "data": bytes(3)}, "wrong_shape"),
    ("a format that is unknown", {"format": "tiff"}, "wrong_shape"),
    ("a format that is a list", {"format": ["png"]}, "wrong_shape"),
    ("no format", {"format": None}, "wrong_shape"),
    ("no data", {"data": None}, "wrong_shape"),
    ("data that is text", {"data": "x"}, "wrong_shape"),
    ("a jpeg as text", {"format": "jpeg", "data": "\udcff\udcd8"}, "wrong_shape"),
    ("a jpeg of a thousand scans", {"format": "jpeg", "data": JPEG[:-2] + 1000 * b"\xff\xda\0\2\0"}, "too_large"),
    ("a ts that is a date", {"ts": msgpack.Timestamp(0)}, "wrong_shape"),
    ("a ts that is NaN", {"ts": float("nan")}, "wrong_shape"),
    ("a ts that is infinite", {"ts": float("inf")}, "wrong_shape"),
    ("a ts that is text", {"ts": "now"}, "wrong_shape"),
    ("a ts that is true", {"ts": True}, "wrong_shape"),
    ("a meta that is text", {"meta": "x"}, "wrong_shape"),
    ("a meta that is too large", {"meta": {"x": "y" * 300}}, "too_large"),
    ("a meta that is too deep", {"meta": nested(META_DEPTH + 1)}, "wrong_shape"),
    ("a meta that is a thousand deep", {"meta": nested(1000)}, "wrong_shape"),
    ("a meta with bytes as a key", {"meta": {b"x": 1}}, "wrong_shape"),
    ("a meta with a number as a key", {"meta": {"x": [{"y": 1, 2: 3}]}}, "wrong_shape"),
    ("a meta with an extension", {"meta": {"x": msgpack.ExtType(5, b"")}}, "wrong_shape"),
    ("a meta with a date", {"meta": {"at": msgpack.Timestamp(0)}}, "wrong_shape"),
    ("a meta with text that is no UTF-8", {"meta": {"x": ["\udcff"]}}, "wrong_shape"),
    ("a meta with such a key", {"meta": {"\udcff": 1}}, "wrong_shape"),
]


@pytest.mark.parametrize(("changes", "reason"), [bad[1:] for bad in BAD_IMAGES], ids=[bad[0] for bad in BAD_IMAGES])
def test_one_bad_image_ends_with_its_reason_and_the_rest_survives(changes: dict[str, Any], reason: str) -> None:
    batch = message(item("1"), item("bad", **changes), item("2"))
    assert outcomes(batch, SMALL) == {"1": "ok", "bad": reason, "2": "ok"}


@pytest.mark.parametrize("identity", [None, 7, b"bytes", "x" * 513, ["a"], {}, "Pr\udcfcfung", msgpack.Timestamp(0)])
def test_an_image_without_a_usable_id_is_named_by_its_place(identity: Any) -> None:
    assert outcomes(message(item("1"), item(identity))) == {"1": "ok", "#1": "wrong_shape"}


@pytest.mark.parametrize("image", [None, 5, "x", [], b"x"])
def test_an_image_that_is_no_map_is_named_by_its_place(image: Any) -> None:
    assert outcomes(message(image, item("1"))) == {"#0": "wrong_shape", "1": "ok"}


def test_a_rejected_image_keeps_what_came_for_it() -> None:
    bad, good = decode_batch(message(item("a", ts="now", data=b"bytes"), item("b")), LIMITS)
    assert isinstance(bad, Rejected)
    assert isinstance(good, Image)
    assert (bad.id, bad.payload) == ("a", b"bytes")
    assert "'now'" in bad.error


def test_an_image_within_every_limit_is_taken() -> None:
    widest = item("x" * 512, data=encoded(picture(0, 156, 256)), ts=3, meta=nested(META_DEPTH))
    assert outcomes(message(widest), LimitSettings(image_side=256, image_pixels=40_000)) == {"x" * 512: "ok"}


def test_fields_that_are_unknown_are_left_for_later_versions() -> None:
    assert outcomes(message(item("a", later=[1, 2]), also="x")) == {"a": "ok"}


# -- pixels ------------------------------------------------------------------------------------------------------------


def test_a_png_is_decoded_to_the_pixel() -> None:
    np.testing.assert_array_equal(decoded(encoded(picture())), picture())


def test_a_jpeg_is_decoded_closely() -> None:
    flat = np.full((32, 32, 3), (200, 100, 50), np.uint8)
    assert np.abs(decoded(encoded(flat, "JPEG", quality=95), "jpeg").astype(int) - flat).max() <= 4


def test_sixteen_bits_are_scaled_to_eight() -> None:
    grey = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    pixels = decoded(encoded(grey))
    np.testing.assert_array_equal(pixels, np.repeat((grey // 256).astype(np.uint8)[:, :, None], 3, 2))


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_is_repeated(mode: str) -> None:
    levels = np.where(picture()[:, :, 0] > 128, 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(decoded(encoded(levels, mode=mode)), np.repeat(levels[:, :, None], 3, 2))


def test_alpha_is_dropped() -> None:
    alpha = np.zeros((*picture().shape[:2], 1), np.uint8)
    np.testing.assert_array_equal(decoded(encoded(np.concatenate([picture(), alpha], 2))), picture())


def test_a_palette_is_resolved() -> None:
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)[np.arange(300).reshape(10, 30) % 3]
    np.testing.assert_array_equal(decoded(encoded(colours, mode="P")), colours)


def test_a_grey_jpeg_and_a_cmyk_jpeg_become_rgb() -> None:
    grey = decoded(encoded(np.full((16, 16), 90, np.uint8), "JPEG"), "jpeg")
    assert np.abs(grey.astype(int) - 90).max() <= 3
    red = np.full((16, 16, 3), (220, 30, 30), np.uint8)
    cmyk = decoded(encoded(red, "JPEG", "CMYK", quality=95), "jpeg")
    assert np.abs(cmyk.astype(int) - red).max() <= 8


def test_raw_pixels_are_row_major_rgb() -> None:
    np.testing.assert_array_equal(decoded(picture().tobytes(), "raw", shape=(40, 48, 3)), picture())
    grey = picture()[:, :, :1]
    np.testing.assert_array_equal(decoded(grey.tobytes(), "raw", shape=(40, 48, 1)), np.repeat(grey, 3, 2))


# -- results -----------------------------------------------------------------------------------------------------------


def result(heat: Any) -> Result:
    return Result(
        line="press-3", entry="5-1", id="a", phase="scoring", model="0000000001-0000000002", score=3.5, threshold=4.25,
        anomalous=False, provisional=False, ts=7.5, latency_ms=12.5, map=heat, meta={"n": [1, b"x"]},
    )  # fmt: skip


def test_a_result_comes_back_with_all_its_fields() -> None:
    expected = {"v": 1, **{k: v for k, v in dataclasses.asdict(result(None)).items() if k != "map"}}
    assert decode_result(encode_result(result(None))) == expected


def test_a_heat_map_comes_back_to_half_a_step() -> None:
    heat = np.random.default_rng(0).gamma(2.0, 3.0, (7, 9)).astype(np.float32)
    (_, quantised) = heat_maps(np.stack([heat / 2, heat]))
    packed = msgpack.unpackb(encode_result(result(quantised)))["map"]
    assert (packed["shape"], packed["max"], len(packed["data"])) == ([7, 9], float(heat.max()), 63)
    again = decode_result(encode_result(result(quantised)))["map"]
    assert again.dtype == np.float32
    np.testing.assert_allclose(again, heat, atol=float(heat.max()) / 255 / 2 * 1.001)


def test_a_heat_map_of_zeros_comes_back() -> None:
    np.testing.assert_array_equal(
        decode_result(encode_result(result(heat_maps(np.zeros((1, 2, 3), np.float32))[0])))["map"], 0
    )
