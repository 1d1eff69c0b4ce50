"""The golden files: messages byte for byte as they travel, each with its content in the JSON beside it.

They are for whoever writes a producer or a reader in another language; docs/integrate.md points to them. In the JSON
{"hex": "..."} stands for bytes. A file that has to change is a new version of the wire format.
"""

import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from worker.errors import RejectedError
from worker.message import (
    REASONS,
    Image,
    Rejected,
    Result,
    decode_batch,
    decode_pixels,
    decode_result,
    encode_batch,
    encode_result,
    heat_maps,
)
from worker.settings import LimitSettings
from worker.streams.control import COMMANDS, encode_command

GOLDEN = Path(__file__).parent / "golden"
LIMITS = LimitSettings()
OF_SIZE = {"too_large", "too_many_images"}  # by the limits, which a plant sets
OF_PIXELS = {"not_an_image", "truncated"}  # found by decoding a picture
OF_FIELDS = {"no_batch_field", "lost", "failed"}  # no message has them


def names(kind: str) -> list[str]:
    return sorted(path.stem for path in GOLDEN.glob(f"{kind}-*.msgpack"))


def packed(name: str) -> bytes:
    return (GOLDEN / f"{name}.msgpack").read_bytes()


def content(name: str) -> Any:
    def bytes_of(fields: dict[str, Any]) -> Any:
        return bytes.fromhex(fields["hex"]) if fields.keys() == {"hex"} else fields

    return json.loads((GOLDEN / f"{name}.json").read_text(), object_hook=bytes_of)


def image_of(fields: dict[str, Any]) -> Image:
    return Image(**{**fields, "shape": tuple(fields["shape"]) if "shape" in fields else None})


def test_every_file_has_its_other_half() -> None:
    halves = [sorted(path.stem for path in GOLDEN.glob(f"*.{ending}")) for ending in ("msgpack", "json")]
    assert halves[0] == halves[1] == sorted(names("batch") + names("refused") + names("result") + names("command"))
    assert min(len(names(kind)) for kind in ("batch", "refused", "result", "command")) > 1


@pytest.mark.parametrize("name", names("batch"))
def test_a_message_is_what_encode_batch_makes_and_decodes_to_its_content(name: str) -> None:
    message = content(name)
    images = [image_of(fields) for fields in message["images"]]
    assert packed(name) == encode_batch(images)
    assert decode_batch(packed(name), LIMITS) == images
    assert msgpack.unpackb(packed(name)) == message
    for image in images:
        decode_pixels(image, LIMITS)


def refusal(name: str) -> dict[str, Any]:
    """Why the entry is refused, or which of its images are."""
    try:
        found = decode_batch(packed(name), LIMITS)
    except RejectedError as error:
        return {"reason": error.reason}
    rejected = {image.id: image.reason for image in found if isinstance(image, Rejected)}
    return {"images": [{"id": i.id, "reason": rejected[i.id]} if i.id in rejected else i.id for i in found]}


@pytest.mark.parametrize("name", names("refused"))
def test_a_message_that_is_refused_is_refused_for_its_reason(name: str) -> None:
    assert refusal(name) == content(name)


def test_each_reason_that_a_message_itself_may_give_has_a_file() -> None:
    found = set()
    for name in names("refused"):
        expected = content(name)
        found |= {fields["reason"] for fields in expected.get("images", [expected]) if isinstance(fields, dict)}
    assert found == set(REASONS) - OF_SIZE - OF_PIXELS - OF_FIELDS


@pytest.mark.parametrize("name", names("result"))
def test_a_result_is_what_encode_result_makes_and_decodes_to_its_content(name: str) -> None:
    fields = content(name)
    scores, version = fields.pop("map", None), fields.pop("v")
    values, heat = None, None
    if scores is not None:
        stored = np.frombuffer(scores["data"], np.uint8).reshape(scores["shape"])
        values = stored.astype(np.float32) * np.float32(scores["max"] / 255)
        (heat,) = heat_maps(values[None])
    assert packed(name) == encode_result(Result(map=heat, **fields))
    decoded = decode_result(packed(name))
    np.testing.assert_allclose(decoded.pop("map", None) if values is not None else [], [] if values is None else values)
    assert decoded == {"v": version, **fields}


@pytest.mark.parametrize("name", names("command"))
def test_a_command_is_what_encode_command_makes(name: str) -> None:
    fields = content(name)
    assert fields["name"] in COMMANDS
    assert packed(name) == encode_command(fields["name"], fields["args"], fields["by"])
