"""JPEGs by simplejpeg, beside which other threads run; all else by Pillow."""

import os
from contextlib import suppress

import simplejpeg

from worker.message import Image, Pixels, decode_pixels, opened
from worker.settings import LimitSettings

THREADS = 8  # at most: on 16 cores more of them decode fewer pictures a second


def decoding_threads() -> int:
    """As many as there are cores for this process, within THREADS."""
    return min(THREADS, len(os.sched_getaffinity(0)))


def decode(image: Image, limits: LimitSettings) -> Pixels:
    """As `decode_pixels`, and to the same pixels: both use libjpeg-turbo.

    simplejpeg takes half of Pillow's time and little of the interpreter's, which all threads share. What it refuses is
    Pillow's to judge, and CMYK Pillow's to convert.

    Raises:
        RejectedError: as `decode_pixels`.
    """
    if image.format != "jpeg":
        return decode_pixels(image, limits)
    with opened(image, limits) as picture:  # the header alone: nothing beyond the limits reaches a decoder
        plain = picture.mode in ("RGB", "L")
    if plain:
        with suppress(ValueError):
            pixels: Pixels = simplejpeg.decode_jpeg(image.data)  # RGB, [h, w, 3]
            return pixels
    return decode_pixels(image, limits)
