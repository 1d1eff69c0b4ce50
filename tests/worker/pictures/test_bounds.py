import io
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from tests.worker.helpers import encoded, picture
from tests.worker.pictures.test_decoding import EXAMPLES, JPEGS
from worker.errors import RejectedError
from worker.message import Image
from worker.pictures.bounds import DENSITY, HEADERS, JPEG_DENSITY, UNTOLD, decoding_bytes
from worker.pictures.decoding import decode
from worker.settings import LimitSettings

H, W = 600, 800
FLAT = np.zeros((H, W, 3), np.uint8)
PNGS = [encoded(picture(0, 12, 16)), encoded(picture(1, 9, 7), mode="P"), encoded(picture(2, 5, 40), mode="RGBA")]


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png_behind(chunks: bytes, png: bytes) -> bytes:
    """A PNG with chunks put before its own."""
    return png[:8] + chunks + png[8:]


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_photograph_counts_for_its_bytes(form: str) -> None:
    for h, w in ((40, 48), (224, 224), (700, 500)):
        data = encoded(picture(0, h, w), form)
        assert decoding_bytes(form.lower(), data) == len(data)
    filled = b"\xff\xd8\xff\xff" + encoded(picture(0, 224, 224), "JPEG")[2:]
    assert decode(Image("a", "jpeg", filled), LimitSettings()).shape == (224, 224, 3)
    assert decoding_bytes("jpeg", filled) == len(filled)
    assert decoding_bytes("raw", b"x" * 1000) == 1000


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGB", "RGBA"])
def test_a_png_counts_for_what_it_declares_however_small_it_is(mode: str) -> None:
    buffer = io.BytesIO()
    Pillow.new(mode, (W, H)).save(buffer, "png")
    assert len(buffer.getvalue()) < 10_000
    assert decoding_bytes("png", buffer.getvalue()) == 3 * H * W // DENSITY


def test_so_does_a_jpeg_that_a_decoder_passes_over_more_than_once() -> None:
    assert decoding_bytes("jpeg", encoded(FLAT, "JPEG", progressive=True)) == 3 * H * W // DENSITY
    exif = b"Exif\0\0" + bytes(30_000)
    assert decoding_bytes("jpeg", encoded(FLAT, "JPEG", exif=exif, progressive=True)) == 3 * H * W // DENSITY


def test_a_sequential_jpeg_without_what_is_coded_counts_for_its_pixels_too() -> None:
    jpeg = encoded(FLAT, "JPEG")
    scan = jpeg.index(b"\xff\xda")
    without = jpeg[: scan + 2 + jpeg[scan + 3]] + jpeg[-2:]
    with pytest.raises(RejectedError, match="cut off before its end marker"):  # found out by decoding all of it
        decode(Image("a", "jpeg", without), LimitSettings())
    assert len(without) < 1000 < decoding_bytes("jpeg", without) == 3 * H * W // JPEG_DENSITY


def test_of_several_headers_the_largest_counts_wherever_it_stands() -> None:
    flat, small = encoded(FLAT), encoded(picture(0, 2, 2))
    for before in (small[8:33], chunk(b"tEXt", b"a\0b"), 2 * small[8:33]):
        twice = png_behind(before, flat)
        assert decode(Image("a", "png", twice), LimitSettings()).shape == FLAT.shape
        assert decoding_bytes("png", twice) == 3 * H * W // DENSITY


def test_a_picture_that_does_not_tell_its_size_in_time_is_taken_for_a_large_one() -> None:
    jpeg, png, large = encoded(FLAT, "JPEG"), encoded(FLAT), 3 * UNTOLD // DENSITY
    assert decoding_bytes("png", png_behind(HEADERS * chunk(b"tEXt", b"a\0b"), png)) == large
    assert decoding_bytes("jpeg", jpeg[:2] + HEADERS * b"\xff\xfe\0\2" + jpeg[2:]) == large
    assert decoding_bytes("jpeg", jpeg[:2] + b"\0" + jpeg[2:]) == large
    for rubbish in (b"", b"x", b"rubbish" * 100, b"\xff" * 100):
        assert decoding_bytes("jpeg", rubbish) == decoding_bytes("png", rubbish) == large


@given(
    st.sampled_from([("jpeg", data) for data in JPEGS] + [("png", data) for data in PNGS]),
    st.lists(st.tuples(st.integers(0, 100), st.binary(max_size=6)), max_size=3),
    st.integers(0, 40),
)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_a_damaged_picture_is_decoded_to_it_counts_for(given: Any, hits: Any, cut: int) -> None:
    form, data = given
    damaged = bytearray(data)
    for at, new in hits:
        damaged[at : at + len(new)] = new
    data = bytes(damaged[: len(damaged) - cut])
    counted = decoding_bytes(form, data)
    assert counted >= len(data)
    try:
        pixels = decode(Image("a", form, data), LimitSettings())
    except RejectedError:
        return
    assert counted >= pixels.nbytes // (DENSITY if form == "png" else JPEG_DENSITY)
