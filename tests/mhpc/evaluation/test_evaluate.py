from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader

from mhpc.core.mh_patch_core import MHPatchCore
from mhpc.evaluation.evaluate import Split, evaluate_model, mean_figures, split_category
from mhpc.evaluation.mvtec import MVTecDataset, read_category
from mhpc.evaluation.options import Protocol
from tests.mhpc.evaluation.parts import SIDE, write_category

SHAPE = (SIDE, SIDE)


def made() -> MHPatchCore:
    return MHPatchCore("tiny", weights="bundled", input_shape=SHAPE, bank_size=200)


def split_of(folder: Path, model: MHPatchCore, protocol: Protocol, keep: bool = False) -> Split:
    return split_category(read_category(folder), SHAPE, model.extract, protocol, keep)


def names(split: Split) -> tuple[list[str], list[str]]:
    calibrate = [] if split.calibrate is None else [s.path.name for s in split.calibrate.samples]
    return [s.path.name for s in split.learn.samples], calibrate


def test_defects_are_found_and_figures_are_those_of_the_scores(plates: Path) -> None:
    model, protocol = made(), Protocol()
    category = read_category(plates)
    split = split_of(plates, model, protocol)
    figures, run = evaluate_model(model, category, split, protocol)
    assert figures.image_auroc == roc_auc_score(split.test.labels, run.scores)
    assert figures.image_auroc > 0.95
    assert figures.aupro is not None
    assert figures.aupro > 0.5
    assert (figures.learned, figures.calibrated, figures.good, figures.defective) == (22, 20, 8, 8)
    assert figures.threshold == run.threshold is not None
    assert figures.false_positive_rate == (run.scores[~split.test.labels] > run.threshold).mean()
    assert (figures.bank_rows, figures.bank_mib) == (200, model.learner_.memory_.nbytes / 2**20)
    assert figures.notes == ()


def test_scores_are_those_of_fit_and_predict_on_loaders(plates: Path) -> None:
    model, protocol = made(), Protocol(seed=3)
    category = read_category(plates)
    split = split_of(plates, model, protocol)
    _, run = evaluate_model(model, category, split, protocol)
    other = made().fit(DataLoader(MVTecDataset(split.learn.samples, SHAPE), batch_size=8))
    prediction = other.predict(DataLoader(MVTecDataset(category.test, SHAPE), batch_size=8))
    assert torch.equal(prediction.scores.double(), torch.from_numpy(run.scores))
    assert torch.equal(prediction.masks, torch.from_numpy(run.maps))


@pytest.mark.parametrize("passes", [1, 3])
def test_features_that_are_kept_give_the_same_scores_and_their_seconds_are_counted(plates: Path, passes: int) -> None:
    category, protocol = read_category(plates), Protocol()
    runs = []
    for keep in (False, True):
        model = made()
        split = split_of(plates, model, protocol, keep)
        for source in split.sources:
            source.load()
        read = split.learn.read_seconds
        figures, run = evaluate_model(model, category, split, protocol, passes)
        runs.append(run)
        assert figures.fit_seconds > 0
        assert (split.learn.read_seconds == read) is keep  # nothing is read again
        assert (split.learn.spared_seconds > 0) is keep
    assert (runs[0].scores == runs[1].scores).all()
    assert (runs[0].maps == runs[1].maps).all()


def test_a_sixth_of_the_good_pictures_and_at_least_twenty_are_held_out(tmp_path: Path, plates: Path) -> None:
    many = write_category(tmp_path / "many", train=144, good=1, defective=1)
    model = made()
    learn, calibrate = names(split_of(many, model, Protocol()))
    assert (len(learn), len(calibrate)) == (120, 24)
    assert len({*learn, *calibrate}) == 144
    learn, calibrate = names(split_of(plates, model, Protocol()))
    assert (len(learn), len(calibrate)) == (22, 20)
    assert names(split_of(plates, model, Protocol())) == (learn, calibrate)
    assert names(split_of(plates, model, Protocol(seed=1)))[1] != calibrate


@pytest.mark.parametrize(("train", "share", "held"), [(43, 0.5, 21), (41, 0.1, 20), (40, 0.5, 20)])
def test_half_of_the_good_pictures_at_most_are_held_out(tmp_path: Path, train: int, share: float, held: int) -> None:
    folder = write_category(tmp_path / "plates", train=train, good=1, defective=1)
    split = split_of(folder, made(), Protocol(calibration_share=share))
    assert [len(part) for part in names(split)] == [train - held, held]
    assert split.note == ""


def test_a_cap_on_the_pictures_learned_leaves_the_held_out_as_they_are(plates: Path) -> None:
    learn, calibrate = names(split_of(plates, made(), Protocol()))
    assert names(split_of(plates, made(), Protocol(images=5))) == (learn[:5], calibrate)


@pytest.mark.parametrize(
    ("train", "protocol", "note"),
    [
        (39, Protocol(), "no threshold: 39 pictures in train/good, 40 are needed to hold 20 out"),
        (42, Protocol(calibration_share=0), "no threshold: --calibration-share 0 holds no picture out"),
    ],
)
def test_without_pictures_to_hold_out_there_is_no_f1_and_a_note(
    tmp_path: Path, train: int, protocol: Protocol, note: str
) -> None:
    folder = write_category(tmp_path / "plates", train=train, good=3, defective=3)
    model = made()
    figures, run = evaluate_model(model, read_category(folder), split_of(folder, model, protocol), protocol)
    assert (figures.f1, figures.false_positive_rate, figures.threshold, run.threshold) == (None, None, None, None)
    assert (figures.learned, figures.calibrated) == (train, 0)
    assert figures.notes == (note,)
    assert figures.image_auroc > 0.5


def test_pixel_figures_leave_out_defective_pictures_without_a_mask(category: Path) -> None:
    def found() -> tuple[float | None, float | None, tuple[str, ...]]:
        model = made()
        split = split_of(category, model, Protocol())
        figures, _ = evaluate_model(model, read_category(category), split, Protocol())
        return figures.pixel_auroc, figures.aupro, figures.notes

    all_masks = found()
    (category / "ground_truth" / "spot" / "000_mask.png").unlink()
    some = found()
    assert all_masks[2] == ()
    assert some[2] == ("pixel figures leave out 1 of 8 defective pictures, which have no mask",)
    assert None not in some
    assert some[0] != all_masks[0]
    for mask in (category / "ground_truth" / "spot").iterdir():
        mask.unlink()
    assert found() == (None, None, ("no pixel figures: no mask in ground_truth/ marks a pixel",))


def test_the_mean_is_absent_where_a_category_lacks_the_figure(plates: Path) -> None:
    model = made()
    full, _ = evaluate_model(model, read_category(plates), split_of(plates, model, Protocol()), Protocol())
    protocol = Protocol(calibration_share=0)
    bare, _ = evaluate_model(model, read_category(plates), split_of(plates, model, protocol), protocol)
    mean = mean_figures([full, bare])
    assert mean["image_auroc"] == pytest.approx((full.image_auroc + bare.image_auroc) / 2)
    assert mean["f1"] is None
    assert mean_figures([full, full])["f1"] == full.f1
