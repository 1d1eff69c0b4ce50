from typing import Any

import msgpack
import pytest
from hypothesis import given

from tests.worker.test_message_fuzz import VALUES
from worker.errors import RejectedError
from worker.message import OBJECTS, decode_batch
from worker.settings import LimitSettings
from worker.tokens import has_more_than, unpack


def counted(value: Any) -> int:
    """Values within a value, itself included."""
    if isinstance(value, dict):
        return 1 + sum(counted(key) + counted(inner) for key, inner in value.items())
    return 1 + (sum(map(counted, value)) if isinstance(value, list) else 0)


@given(VALUES)
def test_it_counts_what_unpacking_makes(value: Any) -> None:
    packed, count = msgpack.packb(value), counted(value)
    assert not has_more_than(packed, count)
    assert has_more_than(packed, count - 1)


@pytest.mark.parametrize("size", [0, 31, 32, 255, 256, 65535, 65536])
@pytest.mark.parametrize("kind", [bytes, str])
def test_a_picture_counts_as_one_whatever_its_length(size: int, kind: type) -> None:
    packed = msgpack.packb([b"x" * size if kind is bytes else "x" * size, 1.5, -7, 2**40, None])
    assert (has_more_than(packed, 6), has_more_than(packed, 5)) == (False, True)


def test_an_ext_counts_as_one() -> None:
    for size in (1, 2, 4, 8, 16, 3, 300, 70_000):
        packed = msgpack.packb([msgpack.ExtType(5, b"x" * size), 1])
        assert (has_more_than(packed, 3), has_more_than(packed, 2)) == (False, True)


def test_an_entry_of_a_million_empty_maps_is_refused_before_it_is_unpacked() -> None:
    empty = b"\xdd" + (OBJECTS + 1).to_bytes(4, "big") + b"\x80" * (OBJECTS + 1)
    with pytest.raises(RejectedError, match="more than 500000 values") as caught:
        decode_batch(b"\x82\xa1v\x01\xa6images" + empty, LimitSettings())
    assert caught.value.reason == "too_large"


def test_keys_that_collide_reach_no_dict() -> None:
    """As many numbers of one hash as an entry may hold would take a dict minutes."""
    colliding = [3 + number * (2**61 - 1) for number in range(8)]
    assert len(set(map(hash, colliding))) == 1
    assert unpack(msgpack.packb({"a": 1, b"b": dict.fromkeys(colliding, 2)})) == {"a": 1, b"b": {None: 2}}


def test_a_key_without_a_hash_costs_nothing_else() -> None:
    assert unpack(b"\x82\x91\x01\x02\xa1a\x81\x80\x05") == {None: 2, "a": {None: 5}}  # {[1]: 2, "a": {{}: 5}}
