"""What a picture may declare, looked at before it is decoded."""

from worker.errors import RejectedError
from worker.settings import LimitSettings

SCANS = 100  # in a JPEG; encoders write ten or so, and each takes a decoder through all its pixels
START_OF_SCAN = b"\xff\xda"  # in what is coded 00 follows FF


def check_size(h: int, w: int, limits: LimitSettings) -> None:
    """Raise RejectedError where a picture of h rows and w columns is beyond the limits."""
    if max(h, w) > limits.image_side or h * w > limits.image_pixels:
        raise RejectedError(
            "too_large",
            f"{w} x {h} pixels; at most {limits.image_side} a side and {limits.image_pixels} in all are accepted",
        )


def check_scans(jpeg: bytes) -> None:
    """Raise RejectedError where a progressive JPEG has so many scans that it would take minutes to decode."""
    if (scans := jpeg.count(START_OF_SCAN)) > SCANS:
        raise RejectedError("too_large", f"a JPEG of {scans} scans, at most {SCANS} are accepted")
