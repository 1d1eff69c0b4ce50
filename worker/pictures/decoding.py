"""JPEGs by simplejpeg, beside which other threads run; all else by Pillow."""

import os
import re

import simplejpeg

from worker.errors import RejectedError
from worker.message import Image, Pixels, decode_pixels
from worker.pictures.bounds import check_scans, check_size
from worker.settings import LimitSettings

PLAIN = ("YCbCr", "RGB", "Gray")  # colour spaces that need no conversion of Pillow's
# Of libjpeg's warnings those of an end marker (D9) in the middle of a scan, the rest of which it, and Pillow, fill in.
CUT = re.compile("premature end of data segment|found marker 0xd9 instead of RST")
THREADS = 8  # at most: on 16 cores more of them decode fewer pictures a second


def decoding_threads() -> int:
    """As many as there are cores for this process, within THREADS."""
    return min(THREADS, len(os.sched_getaffinity(0)))


def decode(image: Image, limits: LimitSettings, out: Pixels | None = None) -> Pixels:
    """As `decode_pixels`, and to the same pixels: both use libjpeg-turbo.

    simplejpeg takes half of Pillow's time and little of the interpreter's, which all threads share. What it refuses is
    Pillow's to judge, and CMYK Pillow's to convert. A JPEG of which but what describes it is damaged, such as an ICC or
    Photoshop segment, is a picture here, and none to Pillow. One that was cut short and then ended is none here, while
    Pillow makes what is missing grey.

    Args:
        out: [H, W, 3] contiguous; where a JPEG's pixels go if they are of this size.

    Raises:
        RejectedError: as `decode_pixels`.
    """
    if image.format != "jpeg":
        return decode_pixels(image, limits)
    check_scans(image.data)
    try:
        h, w, colors, _ = simplejpeg.decode_jpeg_header(image.data)
        check_size(h, w, limits)  # nothing beyond the limits reaches a decoder
        if colors in PLAIN:
            fits = out is not None and (h, w) == out.shape[:2]
            pixels: Pixels = simplejpeg.decode_jpeg(image.data, buffer=out if fits else None)  # RGB, [h, w, 3]
            return pixels
        simplejpeg.decode_jpeg(image.data, "CMYK", min_height=1, min_width=1)  # small, to see whether it is whole
    except ValueError as error:
        if CUT.search(str(error)):
            text = f"a jpeg whose picture is cut off before its end marker ({error}); send the file as it was written"
            raise RejectedError("truncated", text) from None
    return decode_pixels(image, limits)
