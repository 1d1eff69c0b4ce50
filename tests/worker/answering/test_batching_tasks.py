"""What is decoded at once: several small pictures of a large batch in one task, of huge ones one."""

import io
import threading
from collections import Counter
from typing import Any

import pytest
from PIL import Image as Pillow
from torch import Tensor

from tests.worker.answering.test_batching import Make, batches, decode_all, images, pixels, put, take
from tests.worker.answering.test_batching import make as make  # a fixture
from worker.message import Image
from worker.settings import MIB


@pytest.mark.parametrize(
    ("size", "together"), [(10, 8), (MIB // 64, 8), (MIB // 16, 2), (MIB // 8, 1), (MIB // 2, 1), (2 * MIB, 1)]
)
def test_small_pictures_of_a_large_batch_share_a_task_and_large_ones_have_their_own(
    make: Make, size: int, together: int
) -> None:
    batcher = make(max_batch=64)
    put(batcher, "a", images(64, size))
    ahead = batcher._queues["a"].ahead
    tasks = Counter(id(picture.decoded) for picture in ahead)
    assert set(tasks.values()) == {together}
    assert sum(len(picture.image.data) for picture in ahead) <= max(MIB, size)


def test_batches_of_pictures_that_were_decoded_together_leave_none_out_and_keep_their_order(make: Make) -> None:
    batcher = make(max_batch=24, weights={"b": 0.3})  # three a task; turns of b end amid one
    for entry in range(9):
        put(batcher, "a", images(7, name=f"{entry}/"))
        put(batcher, "b", images(7, name=f"{entry}/"))
    taken = [each for batch in batches(batcher) for each in batch]
    expected = [f"{entry}/{n}" for entry in range(9) for n in range(7)]
    assert [image for line, image in taken if line == "a"] == expected
    assert [image for line, image in taken if line == "b"] == expected


def test_a_line_that_is_dropped_amid_a_task_comes_again_from_its_first(make: Make) -> None:
    batcher = make(max_batch=64)
    put(batcher, "a", images(20))
    decode_all(batcher)
    batcher.drop("a")
    put(batcher, "a", images(20, name="again "))
    assert take(batcher) == [("a", f"again {n}") for n in range(20)]


@pytest.mark.parametrize(("form", "options"), [("png", {}), ("jpeg", {"progressive": True}), ("jpeg", {})])
@pytest.mark.parametrize("max_batch", [8, 64])
def test_of_tiny_pictures_that_declare_40_megapixels_one_is_decoded_at_a_time(
    make: Make, max_batch: int, form: Any, options: dict[str, bool]
) -> None:
    go = threading.Semaphore(0)

    def decode(image: Image) -> Tensor:
        go.acquire(timeout=10)
        return pixels(image)

    buffer = io.BytesIO()
    Pillow.new("L", (6320, 6320)).save(buffer, form, **options)
    data = buffer.getvalue()
    assert len(data) < MIB / 2
    batcher = make(decode, max_batch=max_batch)
    put(batcher, "a", [Image(str(n), form, data) for n in range(10)])
    for n in range(10):
        assert [picture.image.id for picture in batcher._queues["a"].ahead] == [str(n)]
        go.release()
        assert take(batcher) == [("a", str(n))]
