"""What a keeper's line learns from that is out of the ordinary: single patches, a bank that became smaller."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.worker.commanding import told, trained
from tests.worker.helpers import patches
from tests.worker.keepers import ENTRIES, MakeKeeper, add, assert_same, extract, learn_all, opened, pending
from worker.keeping.keeper import Keeper
from worker.line import CALIBRATING, LEARNING, SCORING, Line
from worker.streams.line_streams import Entry, LineStreams


def single(_line: str, entry: Entry) -> Iterator[Tensor]:
    """Features of one part of a single patch."""
    yield patches(int(entry.id.partition("-")[0]))[:, :1]


def test_entries_of_one_part_of_a_single_patch_are_learned_from_the_first_one_on(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *(f"{number}-0" for number in range(1, 46)))
    keeper = opened(make_keeper())
    while keeper.learn(single, 1):
        if keeper.snapshot_due:
            keeper.snapshot()
    assert (keeper.line.phase, keeper.line.counts) == (SCORING, (24, 0, 20))


def with_bank_size(keeper: Keeper, bank_size: int) -> Keeper:
    """A process that was started with another configuration."""
    config = keeper.line.config.model_copy(update={"bank_size": bank_size})
    keeper.make_line = lambda: Line(config, 0.99, torch.device("cpu"))
    keeper.line = keeper.make_line()
    return keeper


def test_a_relearn_ends_though_the_bank_has_become_smaller_than_its_pinned_anchors(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    first = trained(make_keeper, streams)
    pins = first.line.learner.pin(patches(70, shift=3.0), 0.1)
    first.save_change()
    keeper = opened(with_bank_size(make_keeper(), pins // 2), holder="station-1#b")
    assert told(keeper, "relearn")[0]
    assert keeper.line.phase == LEARNING
    add(streams, *(f"{number}-0" for number in range(20, 26)))
    assert learn_all(keeper).line.phase == CALIBRATING
    outcome = {"line": streams.line, "outcome": "skipped"}
    assert not keeper.metrics.registry.get_sample_value("mhpc_images_total", outcome)


@pytest.mark.parametrize(("count", "step"), [(1, 8), (4, 8), (4, 20)])
def test_an_entry_that_is_not_ready_is_learned_in_its_place_once_it_is(
    make_keeper: MakeKeeper,
    streams: LineStreams,
    unbroken: Line,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    step: int,
) -> None:
    def ready(entry: Entry) -> bool:
        asked.append(entry.id)
        return entry.id not in ENTRIES[::2] or asked.count(entry.id) == 2

    asked: list[str] = []
    monkeypatch.setattr("mhpc.core.learner.OnePassLearner.step", step)
    add(streams, *ENTRIES)
    keeper = opened(make_keeper())
    for _ in range(3 * len(ENTRIES)):
        keeper.learn(extract, count, ready=ready)
        if keeper.snapshot_due:
            keeper.snapshot()
    assert asked == [name for name in ENTRIES[:11] for _ in range(2 if name in ENTRIES[::2] else 1)]
    assert (keeper.line.phase, pending(streams)) == (SCORING, [])
    assert_same(keeper.line, unbroken)


def test_what_is_applied_already_is_acknowledged_although_what_comes_with_it_is_not_ready(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mhpc.core.learner.OnePassLearner.step", 20)
    add(streams, *ENTRIES[:4])
    first = opened(make_keeper())
    monkeypatch.setattr(first.reading, "acknowledge", lambda: None)
    assert first.learn(extract, 2) == 2
    first.snapshot()
    assert first.reading.read(2)  # and then it is killed
    second = opened(make_keeper(), holder="station-1#b")
    assert pending(streams) == ENTRIES[:4]
    assert second.learn(extract, 4, ready=lambda _: False) == 0
    assert learn_all(second).line.applied_through == ENTRIES[3]
    second.snapshot()
    assert pending(streams) == []


def test_an_entry_that_is_tried_by_itself_after_a_crash_is_not_put_back(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    """What crashes the process meanwhile would count as its own."""
    add(streams, *ENTRIES[:2])
    assert opened(make_keeper()).reading.read(1)
    keeper = opened(make_keeper(), holder="station-1#b")
    keeper.reading.suspicious = True
    assert keeper.learn(extract, 1, ready=lambda _: False) == 1
    assert keeper.learn(extract, 1, ready=lambda _: False) == 0  # that is new
    assert keeper.line.applied_through == ENTRIES[0]
