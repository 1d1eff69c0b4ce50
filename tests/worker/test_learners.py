"""What a line learns where its learner takes long steps, as on a GPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mhpc.core.learner import OnePassLearner
from tests.worker.helpers import patches
from tests.worker.test_line import fresh
from worker.records import Source, Taken


def test_where_steps_are_longer_they_are_of_several_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnePassLearner, "step", 20)
    line, entries = fresh(), [patches(number, 5) for number in range(1, 8)]
    learner = fresh().learner
    learned = torch.cat([learner.partial_fit(torch.cat(part)).learned for part in (entries[:4], entries[4:5])])
    taken = line.apply_entries([(f"{number}-0", [x]) for number, x in enumerate(entries, 1)])
    assert [(each.learned, each.quarantined) for each in taken[:5]] == [
        (int(of_entry.sum()), int((~of_entry).sum())) for of_entry in learned.split(5)
    ]
    assert [each.calibrated for each in taken] == [0] * 5 + [5] * 2  # 24 are wanted: a phase ends between entries
    learner.freeze()
    assert torch.equal(line.learner.memory_, learner.memory_)


def test_a_step_that_the_device_has_no_memory_for_is_learned_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnePassLearner, "step", 20)
    real, sizes = OnePassLearner.partial_fit, []

    def small_device(learner: OnePassLearner, features: Tensor) -> Any:
        sizes.append(len(features))
        if len(features) > 10:
            raise torch.OutOfMemoryError("no room")
        return real(learner, features)

    monkeypatch.setattr(OnePassLearner, "partial_fit", small_device)
    line = fresh()
    (taken,) = line.apply_entries([("1-0", [patches(1, 20)])])
    assert sizes == [20, 10, 10]
    assert taken == Taken(20, 0, 0)


def test_a_part_is_found_again_by_the_entry_it_came_in_where_steps_are_of_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OnePassLearner, "step", 20)
    line = fresh(learn=1000)
    line.apply_entries([(f"{number}-0", [patches(number, number)]) for number in range(1, 8)])
    assert line.sources == [Source(f"{number}-0", number * (number - 1) // 2) for number in range(1, 8)]
