"""What a picture may declare, looked at before it is decoded, and what may go along with it."""

import re
import struct
from typing import Any, TypeGuard

from worker.errors import RejectedError
from worker.settings import LimitSettings

DENSITY, JPEG_DENSITY = 16, 64  # bytes of pixels, at most, that a byte of a picture stands for in `decoding_bytes`
HEADERS = 64  # segments, or chunks, before what is coded; encoders write ten or so
UNTOLD = 40_000_000  # pixels of a picture that declares none within so many
SEGMENTS = frozenset((*range(0xFFE0, 0xFFF0), 0xFFDB, 0xFFC4, 0xFFDD, 0xFFFE, 0xFFCC))  # that stand before a frame
FRAMES = frozenset(range(0xFFC0, 0xFFD0)) - SEGMENTS
FILL = 0xFFFF  # any number of FF may stand before a marker (T.81, B.1.1.2)
SEQUENTIAL = (0xFFC0, 0xFFC1)  # frames of a single pass, by Huffman codes
PAIR, CHUNK, SIZE = (struct.Struct(form).unpack_from for form in (">HH", ">I4s", ">II"))
SCANS = 100  # in a JPEG; encoders write ten or so, and each takes a decoder through all its pixels
SCAN, END, ALONE = 0xDA, 0xD9, (0x01, 0xD8)  # codes of markers; those alone have no segment behind them
MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # in what is coded 00 or a restart follows FF


def check_size(h: int, w: int, limits: LimitSettings) -> None:
    """Raise RejectedError where a picture of h rows and w columns is beyond the limits."""
    if max(h, w) > limits.image_side or h * w > limits.image_pixels:
        raise RejectedError(
            "too_large",
            f"{w} x {h} pixels; at most {limits.image_side} a side and {limits.image_pixels} in all are accepted",
        )


def decoding_bytes(form: str, data: bytes) -> int:
    """Bytes of a picture, or more where it declares so many pixels that it takes longer than its bytes tell.

    A few hundred bytes may decode to 40 million pixels. Asked of every picture by the work loop, this takes less than a
    microsecond for a JPEG, and does not let go of the interpreter; what it cannot tell, it takes for a large one.
    """
    if form == "raw":
        return len(data)
    try:
        declared = _declared_by_jpeg(data) if form == "jpeg" else _declared_by_png(data)
    except struct.error:  # it ends before
        declared = 3 * UNTOLD // DENSITY
    return max(len(data), declared)


def _declared_by_jpeg(data: bytes) -> int:
    """By its frame. A sequential one is quick, and photographs may be as dense; others may take a hundred passes."""
    at = 2
    for _ in range(HEADERS):
        marker, length = PAIR(data, at)
        if marker == FILL:
            at += 1
        elif marker in SEGMENTS:
            at += 2 + length
        elif marker in FRAMES:
            h, w = PAIR(data, at + 5)
            return int(3 * h * w // (JPEG_DENSITY if marker in SEQUENTIAL else DENSITY))
        else:
            break
    return 3 * UNTOLD // DENSITY


def _declared_by_png(data: bytes) -> int:
    """By its largest header: of several, which no encoder writes, a decoder takes the last."""
    at, pixels = 8, 0
    for _ in range(HEADERS):
        length, kind = CHUNK(data, at)
        if kind == b"IDAT":
            return 3 * pixels // DENSITY
        if kind == b"IHDR":
            w, h = SIZE(data, at + 8)
            pixels = max(pixels, w * h)
        at += 12 + length
    return 3 * UNTOLD // DENSITY


def check_scans(jpeg: bytes) -> None:
    """Raise RejectedError where a JPEG has so many scans that it would take minutes to decode."""
    if jpeg.count(bytes((0xFF, SCAN))) <= SCANS:  # of its scans, what is embedded, and what stands behind its end
        return
    scans, at = 0, 0
    while scans <= SCANS and (found := MARKER.search(jpeg, at)) and (code := found[1][0]) != END:
        scans += code == SCAN
        at = found.end() + (0 if code in ALONE else int.from_bytes(jpeg[found.end() : found.end() + 2], "big"))
    if scans > SCANS:
        raise RejectedError("too_large", f"a JPEG of more than {SCANS} scans")


def is_text(value: Any) -> TypeGuard[str]:
    """Whether it is a text that UTF-8 has."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def is_plain(value: Any, depth: int) -> bool:
    """Maps with string keys, lists, and scalars, at most `depth` levels of them: what any reader of results takes."""
    if isinstance(value, dict):
        return depth > 0 and all(is_text(key) and is_plain(inner, depth - 1) for key, inner in value.items())
    if isinstance(value, list):
        return depth > 0 and all(is_plain(inner, depth - 1) for inner in value)
    return value is None or isinstance(value, bool | int | float | bytes) or is_text(value)
