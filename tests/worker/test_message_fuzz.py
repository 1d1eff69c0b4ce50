"""Whatever bytes come, they are answered or rejected."""

import dataclasses
import os
import struct
import zlib
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.worker.helpers import encoded, item, message, picture
from tests.worker.test_message import SMALL, nested, outcome, outcomes, result
from worker.errors import RejectedError
from worker.message import (
    Image,
    Rejected,
    decode_batch,
    decode_result,
    encode_result,
)

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Corrupt EXIF")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))  # each

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20)
NAMES = st.text(max_size=4) | st.binary(max_size=4)
KEYS = NAMES | st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
VALUES = st.recursive(
    SCALARS | st.binary(max_size=60),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
IMAGES = st.fixed_dictionaries(
    {},
    optional={
        "id": VALUES | st.text(max_size=4),
        "format": st.sampled_from(["jpeg", "png", "raw"]) | VALUES,
        "data": st.binary(max_size=100) | VALUES,
        "shape": st.lists(st.integers(-1, 5), min_size=3, max_size=3) | VALUES,
        "ts": VALUES,
        "meta": VALUES,
    },
)


@given(st.binary(max_size=300))
@settings(max_examples=EXAMPLES, deadline=None)
def test_random_bytes_are_rejected_and_nothing_else(data: bytes) -> None:
    outcomes(data, SMALL)


@given(VALUES | st.fixed_dictionaries({"v": st.just(1), "images": st.lists(IMAGES, max_size=3)}))
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_msgpack_is_answered_or_rejected_and_what_is_answered_can_be_published(value: Any) -> None:
    try:
        images = decode_batch(msgpack.packb(value), SMALL)
    except RejectedError:
        return
    for image in images:
        outcome(image, SMALL)
        if isinstance(image, Image):
            sent = dataclasses.replace(result(None), id=image.id, ts=image.ts, meta=image.meta)
            assert decode_result(encode_result(sent))["id"] == image.id


ODD = {7: 1, None: 2, (1, 2): 3, 2.5: 4, True: 5, msgpack.Timestamp(0): 6}


def test_keys_of_any_type_are_unknown_ones_and_cost_nothing() -> None:
    images = [item("1", box=[ODD]), {**item("2"), **ODD}, item("3")]
    assert outcomes(msgpack.packb({"v": 1, "images": images, "sent": ODD, **ODD}), SMALL) == dict.fromkeys("123", "ok")


@pytest.mark.parametrize("field", ["id", "format", "data", "shape", "ts", "meta"])
def test_keys_of_any_type_in_a_field_that_is_read_cost_its_own_image(field: str) -> None:
    bad = {**item("bad", format="raw", data=bytes(3), shape=[1, 1, 3]), field: ODD}
    name = "#1" if field == "id" else "bad"
    assert outcomes(message(item("1"), bad, item("2")), SMALL) == {"1": "ok", name: "wrong_shape", "2": "ok"}


@given(st.binary(max_size=300) | st.integers(256, 70_000).map(bytes))
@settings(max_examples=EXAMPLES, deadline=None)
def test_of_data_that_came_as_a_text_each_byte_is_kept(data: bytes) -> None:
    """The classic mistake: a packer without bin."""
    batch = msgpack.packb({"v": 1, "images": [{"id": "a", "format": "jpeg", "data": data}]}, use_bin_type=False)
    (image,) = decode_batch(batch, SMALL)
    assert isinstance(image, Rejected)
    assert (image.id, image.reason, image.payload) == ("a", "wrong_shape", data)


PICTURES: list[tuple[Any, bytes]] = [
    ("png", encoded(picture(0, 12, 16))),
    ("png", encoded(picture(0, 12, 16), mode="P")),
    ("png", encoded(np.arange(192, dtype=np.uint16).reshape(12, 16))),
    ("jpeg", encoded(picture(0, 12, 16), "JPEG", progressive=True)),
    ("jpeg", encoded(picture(0, 12, 16), "JPEG", "CMYK", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")),
]


@given(st.sampled_from(PICTURES), st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=6)), max_size=4))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_picture_is_decoded_or_rejected_and_nothing_else(source: tuple[Any, bytes], hits: Any) -> None:
    form, data = source
    damaged = bytearray(data)
    for place, patch in hits:
        start = place % len(damaged)
        damaged[start : start + len(patch)] = patch
    outcome(Image("a", form, bytes(damaged)), SMALL)


@pytest.mark.parametrize(
    "changes", [{"format": nested(1000)}, {"format": "raw", "shape": nested(1000)}, {"ts": nested(1000)}]
)
def test_a_field_that_is_a_thousand_levels_deep_costs_its_own_image(changes: dict[str, Any]) -> None:
    batch = message(item("1"), item("bad", **changes), item("2"))
    assert outcomes(batch, SMALL) == {"1": "ok", "bad": "wrong_shape", "2": "ok"}


def test_a_version_that_is_a_thousand_levels_deep_is_another_version() -> None:
    assert outcomes(message(item("1"), v=nested(1000)), SMALL) == {"": "wrong_version"}


@pytest.mark.parametrize("body", [b"", b"\0", b"a\0"])
def test_a_png_whose_colour_profile_is_too_short_is_cut_off(body: bytes) -> None:
    chunk = struct.pack(">I", len(body)) + b"iCCP" + body + struct.pack(">I", zlib.crc32(b"iCCP" + body))
    png = encoded(picture())
    assert outcome(Image("a", "png", png[:-12] + chunk + png[-12:]), SMALL) == "truncated"  # IEND is 12 bytes
