from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mhpc.core.scoring import image_scores
from tests.worker.helpers import judge, patches
from worker.errors import ModelError
from worker.line import CALIBRATING, LEARNING, SCORING, Line
from worker.records import Serving, Source, Taken
from worker.settings import CalibrationSettings, LearningSettings, LineConfig, ScoringSettings

CPU = torch.device("cpu")
MODEL = "0000000001-0000000001"
GRID = (4, 4)


def config(learn: int = 24, calibrate: int = 20, **scoring: Any) -> LineConfig:
    return LineConfig(
        name="press-3",
        bank_size=60,
        learning=LearningSettings(images=learn),
        calibration=CalibrationSettings(images=calibrate, false_positive_rate=0.05),
        scoring=ScoringSettings(top_k=3, **scoring),
    )


def fresh(**changes: Any) -> Line:
    return Line(config(**changes), 0.99, CPU)


def play(line: Line, first: int, last: int, images: int = 4) -> Line:
    """Entries first-0 to last-0, of so many images each."""
    for number in range(first, last + 1):
        line.apply(f"{number}-0", [patches(number, images)])
    return line


def trained(**changes: Any) -> Line:
    line = play(fresh(**changes), 1, 11)
    assert line.phase == SCORING
    line.serving = line.served_by(MODEL)
    return line


def assert_same(a: Line, b: Line) -> None:
    (tensors, metadata), (others, other_metadata) = a.state(), b.state()
    assert metadata == other_metadata
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


# -- phases ------------------------------------------------------------------------------------------------------------


def test_a_line_learns_then_calibrates_then_scores_by_counts() -> None:
    line = fresh()
    phases = []
    for number in range(1, 12):
        phases.append(line.phase)
        play(line, number, number)
    assert phases == [LEARNING] * 6 + [CALIBRATING] * 5
    assert (line.phase, line.learns) == (SCORING, False)
    assert line.threshold is not None
    assert line.threshold.n_scores + line.threshold.n_trimmed == 20


def test_entries_that_are_applied_together_are_learned_as_one_after_the_other() -> None:
    together = fresh()
    taken = together.apply_entries([(f"{number}-0", [patches(number, 5)]) for number in range(1, 12)])
    one_by_one = fresh()
    assert taken == [one_by_one.apply(f"{number}-0", [patches(number, 5)]) for number in range(1, len(taken) + 1)]
    assert together.phase == one_by_one.phase == SCORING
    assert len(taken) == 9  # no more than the line wanted
    assert_same(together, one_by_one)


def test_phases_switch_between_entries_only() -> None:
    line = play(fresh(), 1, 1, images=30)
    assert line.phase == CALIBRATING
    assert line.learner.images_seen_ == 30
    assert len(line.calibration_scores) == 0
    play(line, 2, 2, images=50)
    assert line.phase == SCORING
    assert len(line.calibration_scores) == 50


def test_progress_counts_the_present_phase() -> None:
    line = fresh()
    assert line.progress == (0, 24)
    assert play(line, 1, 2).progress == (8, 24)
    assert play(line, 3, 8).progress == (8, 20)


def test_an_entry_says_what_became_of_its_images() -> None:
    line = fresh(learn=160)
    for number in range(1, 36):
        taken = line.apply(f"{number}-0", [patches(number, 4)])
        assert taken.learned + taken.quarantined == 4
    assert line.apply("50-0", [patches(50), patches(51, shift=100), patches(52)]) == Taken(2, 1, 0, (1,))
    assert line.apply("51-0", [patches(9, 4)])[2] == 0


def test_the_bank_is_frozen_while_it_calibrates() -> None:
    line = play(fresh(), 1, 6)
    before = line.learner.state_dict()
    play(line, 7, 10)
    assert line.phase == CALIBRATING
    assert all(torch.equal(tensor, before[name]) for name, tensor in line.learner.state_dict().items())


# -- applied once ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [2, 8])
def test_an_entry_is_applied_once(entries: int) -> None:
    line = play(fresh(), 1, entries)
    before = line.state()
    for again in (f"{entries}-0", "1-0", f"{entries - 1}-7"):
        assert line.apply(again, [patches(99, 4)]) == Taken(0, 0, 0)
    tensors, metadata = line.state()
    assert metadata == before[1]
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in tensors.items())


def test_an_entry_is_applied_once_though_ids_sort_otherwise_as_text() -> None:
    line = play(fresh(), 9, 10)
    assert line.applied_through == "10-0"
    assert line.apply("9-5", [patches(1)]) == Taken(0, 0, 0)
    assert line.apply("10-1", [patches(1)]) == Taken(1, 0, 0)


def test_the_features_of_an_entry_that_is_known_are_not_asked_for() -> None:
    line = play(fresh(), 1, 1)

    def asked() -> Any:
        raise AssertionError("extracted for nothing")
        yield

    assert line.apply("1-0", asked()) == Taken(0, 0, 0)


def test_an_entry_without_a_usable_image_counts_as_applied() -> None:
    line = play(fresh(), 1, 1)
    assert line.apply("2-0", []) == Taken(0, 0, 0)
    assert line.applied_through == "2-0"


def test_chunks_of_eight_give_what_the_whole_entry_gives() -> None:
    whole, parts = fresh(learn=100), fresh(learn=100)
    for number in range(1, 4):
        images = patches(number, 20)
        whole.apply(f"{number}-0", [images])
        parts.apply(f"{number}-0", images.split(8))
    assert_same(whole, parts)


# -- through a snapshot ------------------------------------------------------------------------------------------------


def test_sources_of_builds_that_named_released_parts_are_read() -> None:
    line, again = play(fresh(), 1, 1), fresh()
    tensors, metadata = line.state()
    again.restore(tensors, {**metadata, "sources": [["1-0", 0, ""], ["9-9", 8, "part"]]})
    assert again.sources == line.sources == [Source("1-0", 0)]


@pytest.mark.parametrize("cut", range(12))
def test_a_restored_line_continues_as_if_it_had_never_stopped(cut: int) -> None:
    unbroken = trained()
    line = play(fresh(), 1, cut)
    again = fresh()
    again.restore(*line.state())
    assert_same(again, line)
    assert_same(play(again, 1, 11), unbroken)


def test_a_state_is_not_changed_by_what_is_learned_later() -> None:
    line = play(fresh(), 1, 2)
    tensors, metadata = line.state()
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    play(line, 3, 9)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in tensors.items())
    assert metadata["applied_through"] == "2-0"


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_without_a_model_there_is_no_verdict() -> None:
    line = play(fresh(), 1, 3)
    assert line.served_by(MODEL) == Serving(LEARNING, None, None)
    verdicts = judge(line, patches(0, 3), GRID)
    assert [(verdict.score, verdict.map) for verdict in verdicts] == [(None, None)] * 3


def test_while_it_calibrates_a_line_scores_without_a_threshold() -> None:
    line = play(fresh(), 1, 7)
    line.serving = line.served_by(MODEL)
    assert line.serving[:3] == (CALIBRATING, MODEL, None)
    assert all(verdict.score is not None for verdict in judge(line, patches(0, 3), GRID))


def test_a_verdict_is_by_the_committed_version_alone() -> None:
    line = play(fresh(), 1, 11)
    assert line.serving == Serving(LEARNING, None, None)
    assert judge(line, patches(0), GRID)[0].score is None


def test_scores_are_the_means_of_the_largest_patch_scores() -> None:
    line = trained()
    features = patches(70, 3)
    scored = line.learner.score_patches(features)
    verdicts = judge(line, features, GRID)
    assert [verdict.score for verdict in verdicts] == image_scores(scored, 3).tolist()
    for verdict, row in zip(verdicts, scored, strict=True):
        assert verdict.map is not None
        step = verdict.map.max / 255
        np.testing.assert_allclose(verdict.map.data * step, row.reshape(GRID).numpy(), atol=0.51 * step)


def test_a_part_that_is_far_from_normal_is_above_the_threshold_and_normal_ones_below() -> None:
    line = trained()
    assert line.serving.threshold is not None

    def scores(features: Tensor) -> list[Any]:
        return [verdict.score for verdict in judge(line, features, GRID)]

    assert min(scores(patches(71, 5, shift=5.0))) > line.serving.threshold
    assert np.median(scores(patches(72, 30))) < line.serving.threshold


def test_heat_maps_can_be_left_out() -> None:
    verdict = judge(trained(heat_map=False), patches(70), GRID)[0]
    assert verdict.score is not None
    assert verdict.map is None


def test_a_score_does_not_depend_on_the_batch() -> None:
    line = trained()
    features = patches(73, 6)
    together = [verdict.score for verdict in judge(line, features, GRID)]
    alone = [judge(line, one[None], GRID)[0].score for one in features]
    np.testing.assert_allclose(np.array(together, float), np.array(alone, float), rtol=1e-5)


# -- a configuration that changed under a model ------------------------------------------------------------------------


def test_scores_of_another_top_k_are_not_held_against_the_threshold() -> None:
    tensors, metadata = trained().state()
    changed = config().model_copy(update={"scoring": ScoringSettings(top_k=1)})
    with pytest.raises(ModelError, match=r"scoring.top_k is 1, its model was calibrated with 3"):
        Line(changed, 0.99, CPU).restore(tensors, metadata)


def test_a_changed_false_positive_rate_changes_no_threshold_before_who_keeps_the_line_asks_for_it() -> None:
    line = trained()
    rarer = config().model_copy(update={"calibration": CalibrationSettings(images=20, false_positive_rate=0.001)})
    again = Line(rarer, 0.99, CPU)
    again.restore(*line.state())
    assert line.threshold is not None
    assert again.threshold == line.threshold
    assert again.fitted().value > line.threshold.value
