"""Msgpack of strangers: how many objects a value unpacks to, since a byte can become a dict of 64, and unpacking it."""

from typing import Any

import msgpack

# Bytes behind a token's head: of its number; of the length of what follows (str, bin, ext).
_NUMBERS = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_CONTAINERS = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_FIXED_EXT = {0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}
_LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_SKIPPED = _NUMBERS | _CONTAINERS | _FIXED_EXT
_EXT = (0xC7, 0xC8, 0xC9)  # a byte of their type more


def has_more_than(packed: bytes, most: int) -> bool:
    """Whether a msgpack value has more than so many objects, maps, lists and scalars counted alike."""
    position, size = 0, len(packed)
    for _ in range(most):
        if position >= size:
            return False
        head = packed[position]
        position += 1
        if 0xA0 <= head <= 0xBF:  # a short str
            position += head & 0x1F
        elif (width := _LENGTHS.get(head)) is not None:
            length = int.from_bytes(packed[position : position + width], "big")
            position += width + length + (head in _EXT)
        else:
            position += _SKIPPED.get(head, 0)
    return position < size


def unpack(packed: bytes) -> Any:
    """A value, whatever its maps' keys; text that is no UTF-8 has surrogates in it.

    Nobody reads what stands in a map by neither a text nor bytes: a key None in the dict tells that it was there. Under
    keys of their own, numbers that collide would take minutes, and lists have no hash.

    Raises:
        ValueError, msgpack.UnpackException, RecursionError: it is no msgpack, is cut off, or nested too deep.
    """
    size = len(packed)  # no element takes less than a byte
    options: dict[str, Any] = {f"max_{kind}_len": size for kind in ("str", "bin", "array", "map", "ext")}
    options["unicode_errors"] = "surrogateescape"
    try:
        return msgpack.unpackb(packed, strict_map_key=True, **options)
    except ValueError:  # perhaps a key; the hook alone would double the time that every entry takes
        return msgpack.unpackb(packed, strict_map_key=False, object_pairs_hook=_by_names, **options)


def _by_names(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {key if isinstance(key, str | bytes) else None: value for key, value in pairs}
