"""Who is served how much: deficit round-robin over many batches."""

from collections import Counter
from collections.abc import Mapping

import pytest

from tests.worker.answering.test_batching import BATCH, Make, images, lines, put, take
from tests.worker.answering.test_batching import make as make  # a fixture
from worker.answering.batching import Batcher


def served(batcher: Batcher, arrivals: Mapping[str, int], takes: int) -> list[Counter[str]]:
    """Each batch's images by line; of 0 arrivals a line floods, of others so many come before each batch."""
    found = []
    for _ in range(takes):
        for line, count in arrivals.items():
            if count or batcher.waiting(line) < BATCH:
                put(batcher, line, images(count or BATCH))
        found.append(lines(take(batcher)))
    return found


WEIGHTS = [(1, 1, 1), (1.3, 1, 1), (3, 1, 0.5), (2.5, 0.3, 1), (0.05, 1, 1), (0.05, 1), (1.52, 1.52, 1.52), (1.52,)]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_lines_that_compete_are_served_by_their_weights(make: Make, weights: tuple[float, ...]) -> None:
    names = "abc"[: len(weights)]
    found = served(make(weights=dict(zip(names, weights, strict=True))), dict.fromkeys(names, 0), 250)
    taken = sum(found, Counter())
    assert taken.total() >= 0.98 * BATCH * len(found)  # a turn that hardly fits leaves room
    for line, weight in zip(names, weights, strict=True):
        share = taken.total() * weight / sum(weights)
        assert abs(taken[line] - share) <= max(0.02 * share, 2 * BATCH * weight)


def test_a_line_that_sends_little_is_in_every_batch_that_floods_fill(make: Make) -> None:
    batcher = make()
    for batch in served(batcher, {"light": 1, **dict.fromkeys("abcd", 0)}, 100):
        assert batch["light"] == 1
    assert batcher.waiting("light") == 0


def test_a_line_that_drains_and_comes_again_gets_no_more_than_a_flood(make: Make) -> None:
    taken = sum(served(make(), {"much": 6, "flood": 0}, 200), Counter())
    assert abs(taken["much"] - taken["flood"]) <= 4 * BATCH


def test_lines_that_come_between_cannot_put_a_flood_off_for_good(make: Make) -> None:
    found = served(make(), {"two": 2, "four": 4, "flood": 0}, 200)
    taken = sum(found, Counter())
    assert taken["two"] >= 2 * 200 - BATCH
    assert taken["flood"] >= 500
    assert all(sum(found[at : at + 3], Counter()).keys() >= {"two", "four", "flood"} for at in range(197))


def test_a_weight_that_is_lowered_holds_at_once(make: Make) -> None:
    weights = {"a": 100.0}
    batcher = make(weights=weights)
    for line in "ab":
        put(batcher, line, images(BATCH))
    served(batcher, {"a": 0, "b": 0}, 5)
    weights["a"] = 1.0
    taken = sum(served(batcher, {"a": 0, "b": 0}, 40), Counter())
    assert abs(taken["a"] - taken["b"]) <= 4 * BATCH
