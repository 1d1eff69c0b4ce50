import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import wait

import pytest
import torch
from torch import Tensor

from worker.answering import batching
from worker.answering.answers import Opened
from worker.answering.batching import AHEAD, Batcher
from worker.message import Image, Rejected
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
        decode: Callable[[Image], Tensor] = pixels,
        wait: float = 0.0,
        weights: Mapping[str, float] | None = None,
        apart: bool = False,
        max_batch: int = BATCH,
    ) -> Batcher:
        def each(images: list[Image]) -> list[Tensor | Rejected]:
            return [decode(image) for image in images]

        made.append(Batcher(each, max_batch, wait, 2, weights or {}, apart))
        return made[-1]

    yield make
    for batcher in made:
        batcher.close()


def images(count: int, size: int = 10, name: str = "") -> list[Image]:
    return [Image(f"{name}{n}", "raw", b"x" * size, None, None, None) for n in range(count)]


def put(batcher: Batcher, line: str, of_line: list[Image]) -> Opened:
    part = Opened(line, Entry("1-0", b""))
    batcher.put([(part, of_line)])
    return part


def decode_all(batcher: Batcher) -> None:
    """Wait until all that is ahead is decoded."""
    wait([picture.decoded for queue in batcher._queues.values() for picture in queue.ahead], 10)


def take(batcher: Batcher) -> list[tuple[str, str]]:
    """(line, image) of the next batch, once all that is ahead is decoded."""
    decode_all(batcher)
    return [(picture.opened.name, picture.image.id) for picture in batcher.take()]


def lines(batch: list[tuple[str, str]]) -> Counter[str]:
    """Images of each line."""
    return Counter(line for line, _ in batch)


def batches(batcher: Batcher) -> Iterator[list[tuple[str, str]]]:
    """Each batch, to the end."""
    while batch := take(batcher):
        yield batch


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


def test_where_it_is_through_sooner_alone_what_comes_before_turns_has_a_batch_of_its_own(make: Make) -> None:
    batcher = make(apart=True)
    put(batcher, "flood", images(6 * BATCH))
    assert [lines(take(batcher)) for _ in range(2)] == 2 * [{"flood": BATCH}]
    put(batcher, "light", images(1))
    put(batcher, "other", images(2))
    assert lines(take(batcher)) == {"light": 1, "other": 2}
    put(batcher, "third", images(1))
    assert lines(take(batcher)) == {"third": 1, "flood": BATCH - 1}  # turns come after each such batch
    assert {line for batch in batches(batcher) for line in lines(batch)} == {"flood"}


def test_what_comes_before_turns_can_be_taken_alone(make: Make) -> None:
    batcher = make(apart=True)
    put(batcher, "flood", images(3 * BATCH))
    assert lines(take(batcher)) == {"flood": BATCH}
    assert batcher.take(only_early=True) == []
    put(batcher, "light", images(1))
    decode_all(batcher)
    assert [picture.opened.name for picture in batcher.take(only_early=True)] == ["light"]
    assert [lines(batch) for batch in batches(batcher)] == 2 * [{"flood": BATCH}]


def test_a_lines_images_are_judged_together(make: Make) -> None:
    batcher = make()
    for line in "abc":
        put(batcher, line, images(2 * BATCH))
    assert [sorted({line for line, _ in batch}) for batch in batches(batcher)] == [["a"], ["b"], ["c"]] * 2


def test_turns_and_batches_stay_in_step_whatever_comes_between(make: Make) -> None:
    batcher = make()
    for line in "abc":
        put(batcher, line, images(5 * BATCH))
    for _ in "abc":  # whoever is new comes before all turns; these have had that
        take(batcher)
    put(batcher, "few", images(3))
    found = [lines(batch) for batch in batches(batcher)]
    assert found[0] == Counter(few=3, a=BATCH - 3)
    assert [len(batch) for batch in found[1:9]] == [1] * 8  # of one line each
    assert sum(found, Counter()) == Counter(few=3, a=4 * BATCH, b=4 * BATCH, c=4 * BATCH)


def test_a_turn_that_hardly_fits_begins_the_next_batch_but_is_put_off_once_alone(make: Make) -> None:
    batcher = make()
    for line in "ab":
        put(batcher, line, images(5 * BATCH))
    for _ in "ab":
        take(batcher)
    found = []
    for line in ("many", "more"):
        put(batcher, line, images(BATCH - 2))
        found.append(lines(take(batcher)))
    assert found == [Counter(many=BATCH - 2), Counter(more=BATCH - 2, a=2)]


def test_the_only_line_that_floods_fills_each_batch(make: Make) -> None:
    batcher = make()
    put(batcher, "a", images(5 * BATCH))
    take(batcher)
    put(batcher, "many", images(BATCH - 2))
    assert lines(take(batcher)) == Counter(many=BATCH - 2, a=2)


def test_lines_of_few_images_fill_a_batch_together(make: Make) -> None:
    batcher = make()
    for line in range(12):
        put(batcher, str(line), images(2))
    assert [len(batch) for batch in batches(batcher)] == [BATCH] * 3


def test_a_picture_that_has_just_come_is_waited_for_although_others_are_ready(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(image: Image) -> Tensor:
        time.sleep(0.05 * image.id.startswith("new"))
        return pixels(image)

    monkeypatch.setattr(batching, "FRESH_SECONDS", 10.0)
    batcher = make(decode)
    put(batcher, "flood", images(100))
    decode_all(batcher)
    put(batcher, "light", images(1, name="new"))
    assert [picture.opened.name for picture in batcher.take()][:1] == ["light"]


def test_who_sends_little_comes_before_turns_although_one_passed_while_its_picture_was_decoded(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def decode(image: Image) -> Tensor:
        if image.id.startswith("light"):
            go.wait(10)
        return pixels(image)

    monkeypatch.setattr(batching, "FRESH_SECONDS", 0.0)
    batcher = make(decode)
    put(batcher, "flood", images(6 * BATCH))
    decode_all(batcher)
    batcher.take()
    for _ in range(3 * BATCH):  # more than its share of a round
        go.clear()
        put(batcher, "light", images(1, name="light"))
        put(batcher, "flood", images(2 * BATCH))
        assert {picture.opened.name for _ in range(2) for picture in batcher.take()} == {"flood"}
        go.set()
        decode_all(batcher)
        assert [picture.opened.name for picture in batcher.take(only_early=True)] == ["light"]


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
        taken += [(p.opened.name, p.image.id) for p in batcher.take()]
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
    for batches_taken in range(3):
        decode_all(batcher)
        time.sleep(0.05)  # in which nothing more is
        assert len(decoded) == (AHEAD + batches_taken) * BATCH
        assert len(batcher.take()) == BATCH


def test_what_was_dropped_is_not_taken(make: Make) -> None:
    batcher = make()
    put(batcher, "a", images(30))
    put(batcher, "b", images(3))
    batcher.drop("a")
    assert batcher.waiting("a") == 0
    assert [line for batch in batches(batcher) for line, _ in batch] == ["b"] * 3


def test_a_batch_that_is_not_full_has_patience_until_its_oldest_image_has_waited(make: Make) -> None:
    batcher = make(wait=60.0)
    assert batcher.patience() == 0  # nothing waits
    put(batcher, "a", images(3))
    first = batcher.patience()
    time.sleep(0.05)
    assert 0 < batcher.patience() <= first - 0.05
    batcher.max_wait = 0.05
    assert batcher.patience() == 0  # it has waited
    batcher.max_wait = 60.0
    put(batcher, "b", images(BATCH))
    assert batcher.patience() == 0  # it is full
    decode_all(batcher)
    assert len(batcher.take()) == BATCH


def test_an_image_that_cannot_be_decoded_is_handed_over_with_its_error(make: Make) -> None:
    def decode(image: Image) -> Tensor:
        raise ValueError(image.id)

    batcher = make(decode)
    put(batcher, "a", images(2))
    decode_all(batcher)
    first, _ = batcher.take()
    with pytest.raises(ValueError, match="0"):
        _ = first.pixels
