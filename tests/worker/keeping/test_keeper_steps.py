"""Where a learner takes long steps, as on a GPU, a keeper applies many entries at once."""

from collections.abc import Iterator

import pytest
from torch import Tensor

from mhpc.core.learner import OnePassLearner
from tests.worker.keepers import ENTRIES, MakeKeeper, add, extract, opened, pending
from worker.keeping.keeper import Keeper
from worker.keeping.reading import ATTEMPTS
from worker.keeping.taking import Extract
from worker.line import SCORING
from worker.streams.line_streams import Entry, LineStreams


def test_where_steps_are_long_all_that_is_read_is_applied_at_once_and_phases_end_between_entries(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnePassLearner, "step", 20)
    add(streams, *ENTRIES)
    keeper = opened(make_keeper(every_images=1000))
    assert keeper.learn(extract, 64) == len(ENTRIES)
    assert (keeper.line.phase, keeper.line.applied_through) == (SCORING, "11-0")
    assert keeper.line.counts == (24, 0, 20)
    keeper.snapshot()
    assert pending(streams) == []


def learned_again(keeper: Keeper, extract: Extract) -> int:
    """A step, by a line that is loaded again where the one before failed."""
    if not keeper.epoch:
        keeper._acquire_at = 0.0
        opened(keeper)
    return keeper.learn(extract, 64)


def test_an_entry_that_fails_in_a_step_of_many_costs_itself_alone(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnePassLearner, "step", 20)
    tried = []

    def fails(line: str, entry: Entry) -> Iterator[Tensor]:
        tried.append(entry.id)
        if entry.id == "3-0":
            raise ValueError("no such picture")
        yield from extract(line, entry)

    add(streams, *ENTRIES[:5])
    keeper = make_keeper(every_images=1000)
    for _ in range(20):
        learned_again(keeper, fails)
    assert (keeper.line.applied_through, keeper.line.counts[0]) == ("5-0", 16)
    assert tried.count("3-0") == 1 + ATTEMPTS
    assert tried[:3] == ["1-0", "2-0", "3-0"]  # in one step, then each by itself
    assert pending(streams) == ENTRIES[:5]
    keeper.snapshot()
    assert pending(streams) == []


def test_entries_that_fail_one_after_the_other_are_each_counted_as_skipped_once(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    def fails(line: str, entry: Entry) -> Iterator[Tensor]:
        if entry.id in ENTRIES[1:5]:
            raise ValueError("no such picture")
        yield from extract(line, entry)

    add(streams, *ENTRIES[:7])
    keeper = make_keeper(every_images=1000)
    for _ in range(60):
        if not learned_again(keeper, fails) and keeper.epoch:
            break
        if keeper.epoch and keeper.snapshot_due:
            keeper.snapshot()
    assert (keeper.line.applied_through, keeper.line.counts[0]) == ("7-0", 12)
    outcome = {"line": streams.line, "outcome": "skipped"}
    assert keeper.metrics.registry.get_sample_value("mhpc_images_total", outcome) == 4
