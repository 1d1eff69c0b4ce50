"""Input of many kinds that no worker can use; each costs one dead letter."""

import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from tests.worker.helpers import encoded, item, message, picture

PNG, JPEG = encoded(picture(0)), encoded(picture(0), "JPEG")


def _bomb() -> bytes:
    """A small PNG that declares a huge picture."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return PNG[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:]


def _deep(levels: int) -> dict[str, Any]:
    return {"a": _deep(levels - 1)} if levels else {}


ENTRIES: list[Callable[[random.Random], dict[str, bytes]]] = [
    lambda _: {"other": b"no batch"},
    lambda _: {"batch": b""},
    lambda dice: {"batch": b"\xc1" + dice.randbytes(200)},
    lambda _: {"batch": b"\x91" * 5000},
    lambda dice: {"batch": message(item())[: -dice.randrange(1, 500)]},
    lambda _: {"batch": message(item(), v=2)},
    lambda _: {"batch": message(images=None)},
    lambda _: {"batch": message(images={"id": "a"})},
    lambda _: {"batch": message()},
    lambda _: {"batch": message(*range(257))},
]

# Changes to an image that stands among good ones, in an entry that is otherwise whole.
IMAGES: list[Callable[[random.Random], dict[str, Any]]] = [
    lambda dice: {"data": PNG[: dice.randrange(1, len(PNG) // 2)]},
    lambda dice: {"data": JPEG[: dice.randrange(1, len(JPEG) // 2)], "format": "jpeg"},
    lambda dice: {"data": dice.randbytes(500)},
    lambda _: {"data": b""},
    lambda _: {"data": "text"},
    lambda _: {"data": None},
    lambda _: {"data": PNG, "format": "jpeg"},
    lambda _: {"format": "gif"},
    lambda _: {"data": _bomb()},
    lambda _: {"format": "raw", "data": bytes(11), "shape": [2, 2, 3]},
    lambda _: {"format": "raw", "data": bytes(12), "shape": [-2, 2, 3]},
    lambda _: {"format": "raw", "data": bytes(12), "shape": [1 << 20, 1 << 20, 3]},
    lambda _: {"id": 7},
    lambda _: {"id": "x" * 5000},
    lambda _: {"ts": float("nan")},
    lambda _: {"meta": _deep(40)},
    lambda _: {"meta": {"a": "b" * 20_000}},
]


def malformed_entry(dice: random.Random) -> dict[str, bytes]:
    """The fields of an entry of which nothing can be used."""
    return dice.choice(ENTRIES)(dice)


def malformed_image(dice: random.Random, identity: str) -> dict[str, Any]:
    """An image that cannot be used, among others that can."""
    return item(identity, **dice.choice(IMAGES)(dice))
