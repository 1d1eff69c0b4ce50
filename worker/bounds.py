"""What a picture may declare, looked at before it is decoded, and what may go along with it."""

import re
from typing import Any, TypeGuard

from worker.errors import RejectedError
from worker.settings import LimitSettings

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
