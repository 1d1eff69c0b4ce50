import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from torch import Tensor

from worker.answers import Opened
from worker.batching import AHEAD, Batcher
from worker.message import Image
from worker.settings import MIB
from worker.streams.line_streams import Entry

BATCH = 8
Make = Callable[..., Batcher]


def pixels(_image: Image) -> Tensor:
    return torch.zeros(3, 2, 2, dtype=torch.uint8)


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Batcher] = []

    def make(
        decode: Callable[[Image], Tensor] = pixels, wait: float = 0.0, weights: Mapping[str, float] | None = None
    ) -> Batcher:
        made.append(Batcher(decode, BATCH, wait, 2, weights or {}))
        return made[-1]

    yield make
    for batcher in made:
        batcher.close()


def images(count: int, size: int = 10, name: str = "") -> list[Image]:
    return [Image(f"{name}{n}", "jpeg", b"x" * size, None, None, None) for n in range(count)]


def put(batcher: Batcher, line: str, of_line: list[Image]) -> Opened:
    part = Opened(line, Entry("1-0", b""))
    batcher.put([(part, of_line)])
    return part


def batches(batcher: Batcher) -> Iterator[list[tuple[str, str]]]:
    """(line, image) of each batch, to the end."""
    time.sleep(0.01)  # all that is ahead is decoded
    while batch := batcher.take():
        yield [(picture.part.name, picture.image.id) for picture in batch]
        time.sleep(0.01)


def test_a_lines_images_come_in_order_and_none_is_left_out(make: Make) -> None:
    batcher = make()
    for entry in range(5):
        put(batcher, "a", images(7, name=f"{entry}/"))
    taken = [image for batch in batches(batcher) for _, image in batch]
    assert taken == [f"{entry}/{n}" for entry in range(5) for n in range(7)]


def test_a_batch_holds_at_most_max_batch_images_of_all_lines(make: Make) -> None:
    batcher = make()
    for line in "abc":
        put(batcher, line, images(10))
    sizes = [len(batch) for batch in batches(batcher)]
    assert sum(sizes) == 30
    assert max(sizes) == BATCH


def test_a_line_that_sends_little_waits_for_no_flood(make: Make) -> None:
    batcher = make()
    for flood in range(20):
        put(batcher, f"flood-{flood}", images(100))
    batcher.take()
    put(batcher, "light", images(2))
    assert [line for line, _ in next(batches(batcher))][:2] == ["light"] * 2


def test_a_lines_images_are_judged_together(make: Make) -> None:
    batcher = make()
    for line in "abc":
        put(batcher, line, images(2 * BATCH))
    assert [sorted({line for line, _ in batch}) for batch in batches(batcher)] == [["c"], ["b"], ["a"]] * 2


def test_lines_that_compete_are_served_by_their_weights(make: Make) -> None:
    batcher = make(weights={"a": 3.0, "c": 0.5})
    for line in "abc":
        put(batcher, line, images(200))
    served: Counter[str] = Counter()
    for batch in batches(batcher):
        served.update(line for line, _ in batch)
        if served.total() >= 180:
            break
    assert abs(served["a"] - 120) <= 3 * BATCH
    assert abs(served["b"] - 40) <= BATCH
    assert abs(served["c"] - 20) <= BATCH


def test_a_line_whose_images_take_long_to_decode_holds_nobody_up(make: Make) -> None:
    go = threading.Event()

    def decode(image: Image) -> Tensor:
        if len(image.data) > MIB:
            go.wait(10)
        return pixels(image)

    batcher = make(decode)
    put(batcher, "huge", images(20, 2 * MIB))  # one at a time: a thread is left
    put(batcher, "small", images(30))
    taken: list[tuple[str, str]] = []
    while len(taken) < 30:
        time.sleep(0.01)
        taken += [(p.part.name, p.image.id) for p in batcher.take()]
    assert {line for line, _ in taken} == {"small"}
    go.set()
    assert [image for batch in batches(batcher) for _, image in batch] == [str(n) for n in range(20)]


def test_no_more_is_decoded_ahead_than_a_few_batches(make: Make) -> None:
    decoded: list[str] = []

    def decode(image: Image) -> Tensor:
        decoded.append(image.id)
        return pixels(image)

    batcher = make(decode)
    put(batcher, "a", images(100))
    time.sleep(0.1)
    assert len(decoded) == AHEAD * BATCH
    batcher.take()
    time.sleep(0.1)
    assert len(decoded) == (AHEAD + 1) * BATCH


def test_what_was_dropped_is_not_taken(make: Make) -> None:
    batcher = make()
    put(batcher, "a", images(30))
    put(batcher, "b", images(3))
    batcher.drop("a")
    assert batcher.waiting("a") == 0
    assert [line for batch in batches(batcher) for line, _ in batch] == ["b"] * 3


def test_a_batch_that_is_not_full_has_patience_until_its_oldest_image_has_waited(make: Make) -> None:
    batcher = make(wait=0.5)
    assert batcher.patience() == 0  # nothing waits
    put(batcher, "a", images(3))
    time.sleep(0.05)
    assert 0.2 < batcher.patience() < 0.5
    time.sleep(0.5)
    assert batcher.patience() == 0  # it has waited
    put(batcher, "b", images(BATCH))
    assert batcher.patience() == 0  # it is full
    time.sleep(0.05)
    assert len(batcher.take()) == BATCH


def test_an_image_that_cannot_be_decoded_is_handed_over_with_its_error(make: Make) -> None:
    def decode(image: Image) -> Tensor:
        raise ValueError(image.id)

    batcher = make(decode)
    put(batcher, "a", images(2))
    time.sleep(0.05)
    first, _ = batcher.take()
    with pytest.raises(ValueError, match="0"):
        first.pixels.result()
