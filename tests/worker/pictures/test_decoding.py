import io
import os
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from tests.worker.helpers import encoded, picture
from worker.errors import RejectedError
from worker.message import Image, Pixels, decode_pixels
from worker.pictures.bounds import SCANS
from worker.pictures.decoding import THREADS, decode, decoding_threads
from worker.settings import LimitSettings

START_OF_SCAN, END = b"\xff\xda", b"\xff\xd9"

LIMITS = LimitSettings()
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
JPEGS = [
    encoded(picture(0, 12, 16), "JPEG"),
    encoded(picture(1, 33, 47), "JPEG", progressive=True),
    encoded(picture(2, 40, 24), "JPEG", subsampling=0, quality=95),
    encoded(picture(3, 12, 16), "JPEG", "L"),
    encoded(picture(4, 12, 16), "JPEG", "CMYK"),
]


def outcome(decoder: Any, data: bytes) -> Pixels | str:
    try:
        pixels: Pixels = decoder(Image("a", "jpeg", data), LIMITS)
    except RejectedError as error:
        return error.reason
    return pixels


@pytest.mark.parametrize("data", JPEGS)
def test_a_jpeg_has_the_pixels_that_pillow_gives_it(data: bytes) -> None:
    np.testing.assert_array_equal(outcome(decode, data), np.array(Pillow.open(io.BytesIO(data)).convert("RGB")))


@given(st.sampled_from(JPEGS), st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=6)), max_size=4))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_of_a_damaged_jpeg_becomes_what_pillow_alone_would_make_of_it_unless_a_scan_is_cut(
    data: bytes, hits: Any
) -> None:
    damaged = bytearray(data)
    for at, new in hits:
        damaged[at % len(damaged) : at % len(damaged) + len(new)] = new
    found = outcome(decode, bytes(damaged))
    if not (isinstance(found, str) and found == "truncated" and has_a_cut_scan(bytes(damaged))):
        np.testing.assert_array_equal(found, outcome(decode_pixels, bytes(damaged)))


def has_a_cut_scan(data: bytes) -> bool:
    try:
        simplejpeg.decode_jpeg(data)
    except ValueError as error:
        return "premature end of data segment" in str(error) or "found marker 0xd9 instead of RST" in str(error)
    return False


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"subsampling": 0}),
        ("RGB", {"progressive": True}),
        ("L", {}),
        ("L", {"progressive": True}),
        ("CMYK", {}),
        ("CMYK", {"progressive": True}),
    ],
)
def test_a_jpeg_that_is_cut_within_a_scan_and_then_ended_is_truncated(mode: str, options: dict[str, Any]) -> None:
    """As a camera ends it whose buffer is too small; Pillow makes the rest grey."""
    whole = encoded(picture(0, 96, 128), "JPEG", mode, **options)
    start = whole.index(START_OF_SCAN) + 40
    for share in (0.0, 0.5, 0.9):
        cut = whole[: start + int(share * (len(whole) - start))].rstrip(b"\xff") + END
        assert isinstance(outcome(decode_pixels, cut), np.ndarray)
        with pytest.raises(RejectedError, match=r"cut off before its end marker .*; send the file") as caught:
            decode(Image("a", "jpeg", cut), LIMITS)
        assert caught.value.reason == "truncated"


def test_a_jpeg_that_ends_where_a_restart_belongs_is_truncated() -> None:
    whole = encoded(picture(0, 96, 128), "JPEG", restart_marker_rows=1)
    restart = whole.index(b"\xff\xd2")
    assert outcome(decode, whole[:restart] + END) == "truncated"
    assert isinstance(outcome(decode, whole), np.ndarray)


def test_a_progressive_jpeg_whose_last_scans_are_missing_is_a_coarser_picture() -> None:
    whole = encoded(picture(0, 96, 128), "JPEG", progressive=True)
    coarse = whole[: whole.rindex(b"\xff\xc4", 0, whole.rindex(START_OF_SCAN))] + END
    np.testing.assert_array_equal(outcome(decode, coarse), outcome(decode_pixels, coarse))


@pytest.mark.parametrize("data", JPEGS)
def test_the_pixels_of_a_jpeg_go_where_they_are_wanted_if_they_are_of_that_size(data: bytes) -> None:
    expected = decode(Image("a", "jpeg", data), LIMITS)
    for shape in (expected.shape, (12, 16, 3), (64, 64, 3)):
        out = np.zeros(shape, np.uint8)
        found = decode(Image("a", "jpeg", data), LIMITS, out)
        np.testing.assert_array_equal(found, expected)
        plain = Pillow.open(io.BytesIO(data)).mode != "CMYK"
        assert np.shares_memory(found, out) == (plain and shape == expected.shape)


def test_png_and_raw_pictures_are_decoded_as_before() -> None:
    pixels = picture(0, 6, 8)
    np.testing.assert_array_equal(decode(Image("a", "png", encoded(pixels)), LIMITS), pixels)
    np.testing.assert_array_equal(decode(Image("a", "raw", pixels.tobytes(), (6, 8, 3)), LIMITS), pixels)


def test_a_jpeg_beyond_the_limits_reaches_no_decoder() -> None:
    with pytest.raises(RejectedError, match="12 x 20 pixels"):
        decode(Image("a", "jpeg", encoded(picture(0, 20, 12), "JPEG")), LimitSettings(image_side=16))


def test_a_jpeg_of_more_scans_than_any_encoder_writes_reaches_no_decoder() -> None:
    progressive = encoded(picture(0, 20, 12), "JPEG", progressive=True)
    assert progressive.count(START_OF_SCAN) > 5
    assert decode(Image("a", "jpeg", progressive), LIMITS).shape == (20, 12, 3)
    scan = progressive[progressive.rindex(START_OF_SCAN) : -2]
    many = progressive[:-2] + 100 * scan + progressive[-2:]
    with pytest.raises(RejectedError, match="a JPEG of more than 100 scans"):
        decode(Image("a", "jpeg", many), LIMITS)


def test_what_stands_within_a_segment_or_behind_the_end_is_no_scan() -> None:
    plain = encoded(picture(0, 20, 12), "JPEG")
    comment = b"\xff\xfe" + (2 + 300).to_bytes(2, "big") + 150 * START_OF_SCAN
    expected = decode(Image("a", "jpeg", plain), LIMITS)
    for jpeg in (plain + 1000 * START_OF_SCAN, plain[:2] + comment + plain[2:]):
        assert jpeg.count(START_OF_SCAN) > SCANS
        np.testing.assert_array_equal(decode(Image("a", "jpeg", jpeg), LIMITS), expected)


def test_there_is_a_thread_for_each_core_of_this_process_within_a_bound() -> None:
    assert 1 <= decoding_threads() <= min(THREADS, len(os.sched_getaffinity(0)))
