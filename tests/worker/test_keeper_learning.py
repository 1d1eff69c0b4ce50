"""What a keeper's line learns from that is out of the ordinary: single patches, a bank that became smaller."""

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.worker.commanding import told, trained
from tests.worker.helpers import patches
from tests.worker.keeping import MakeKeeper, add, learn_all, opened
from worker.keeper import Keeper
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
    first.changed()
    keeper = opened(with_bank_size(make_keeper(), pins // 2), holder="station-1#b")
    assert told(keeper, "relearn")[0]
    assert keeper.line.phase == LEARNING
    add(streams, *(f"{number}-0" for number in range(20, 26)))
    assert learn_all(keeper).line.phase == CALIBRATING
    outcome = {"line": streams.line, "outcome": "skipped"}
    assert not keeper.metrics.registry.get_sample_value("mhpc_images_total", outcome)
