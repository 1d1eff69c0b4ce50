"""Maps in msgpack that anybody may have written: results, commands, replies."""

from typing import Any

import msgpack

from worker.settings import MIB
from worker.tokens import has_more_than

BYTES, OBJECTS = 4 * MIB, 20_000  # a worker's result has a heat map of some 100 KB, and `meta` of some KB


def unpacked(packed: bytes | None) -> dict[str, Any] | None:
    """The map as it was sent, or None where there is none, or one that no worker writes."""
    if packed is None or len(packed) > BYTES or has_more_than(packed, OBJECTS):
        return None
    try:
        value = msgpack.unpackb(packed)
    except (ValueError, msgpack.UnpackException, RecursionError, TypeError):
        return None
    return value if isinstance(value, dict) else None
