"""One category, one model: learn, calibrate, score; figures of merit and of cost."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mhpc.core.calibration import MIN_TAIL, fit_threshold
from mhpc.core.mh_patch_core import MHPatchCore, Prediction
from mhpc.evaluation.meter import MIB, Meter
from mhpc.evaluation.metrics import decisions, image_auroc, image_average_precision, pixel_figures
from mhpc.evaluation.mvtec import GOOD, Category, Sample
from mhpc.evaluation.options import Protocol
from mhpc.evaluation.patches import Extract, PatchSource

LEAST = 2 * MIN_TAIL  # scores that a threshold is fitted to, at least


Done = TypeVar("Done")


@dataclass(frozen=True)
class Figures:
    """What was found on one category; None where it cannot be known, and `notes` say why.

    Shares are in [0, 1], `peak_mib` is the most memory held while learning or scoring, beyond what was held before;
    seconds and milliseconds count the backbone, the model and the maps, but not the reading of pictures.
    """

    category: str
    image_auroc: float
    image_average_precision: float
    pixel_auroc: float | None
    aupro: float | None
    f1: float | None
    false_positive_rate: float | None
    threshold: float | None
    bank_rows: int
    bank_mib: float
    peak_mib: float | None
    fit_seconds: float
    ms_per_image: float
    learned: int
    calibrated: int
    good: int
    defective: int
    notes: tuple[str, ...] = ()


class Cost(NamedTuple):
    """Seconds, and the most memory held in MiB, or None where that is not known."""

    seconds: float
    peak_mib: float | None


class Split(NamedTuple):
    """A category's pictures: to learn from, held out to calibrate (or None, and `note` says why), and to score."""

    learn: PatchSource
    calibrate: PatchSource | None
    test: PatchSource
    note: str

    @property
    def sources(self) -> list[PatchSource]:
        return [source for source in (self.learn, self.calibrate, self.test) if source is not None]


class Run(NamedTuple):
    """A model's scores [N] of the test pictures, their anomaly maps [N, H, W] and the threshold, where there is one."""

    scores: NDArray[np.float64]
    maps: NDArray[np.float32]
    threshold: float | None


def split_category(
    category: Category, input_shape: tuple[int, int], extract: Extract, protocol: Protocol, keep: bool = False
) -> Split:
    """Draw by protocol.seed what is held out of train/good; the same seed draws the same, whatever the model."""
    n = len(category.train)
    order = np.random.default_rng(protocol.seed).permutation(n)
    held, note = min(max(LEAST, round(n * protocol.calibration_share)), n // 2), ""
    if not protocol.calibration_share:
        held, note = 0, "no threshold: --calibration-share 0 holds no picture out"
    elif held < LEAST:
        held, note = 0, f"no threshold: {n} pictures in train/{GOOD}, {2 * LEAST} are needed to hold {LEAST} out"
    learn, calibrate = order[: n - held][: protocol.images], order[n - held :]

    def source(samples: list[Sample], stage: str) -> PatchSource:
        description = f"{category.name}: {stage}"
        return PatchSource(samples, input_shape, extract, protocol.batch_size, description, keep)

    return Split(
        source([category.train[i] for i in learn], "learning"),
        source([category.train[i] for i in calibrate], "calibrating") if held else None,
        source(list(category.test), "scoring"),
        note,
    )


def evaluate_model(
    model: MHPatchCore, category: Category, split: Split, protocol: Protocol, passes: int = 1
) -> tuple[Figures, Run]:
    """Learn, calibrate and score with a model whose features are those of `split`."""
    _, fitting = _metered(lambda: model.fit_features(lambda: split.learn, passes), split.learn, model.device)
    threshold = None
    if split.calibrate is not None:
        scores = _predict(model, split.calibrate).scores.double().numpy()
        threshold = fit_threshold(scores, protocol.false_positive_rate).value
    prediction, scoring = _metered(lambda: _predict(model, split.test), split.test, model.device)
    run = Run(prediction.scores.double().numpy(), prediction.masks.numpy(), threshold)
    return _figures(category.name, split, run, model.learner_.memory_, fitting, scoring), run


def _metered(work: Callable[[], Done], source: PatchSource, device: torch.device) -> tuple[Done, Cost]:
    """What the work gives, and its cost as if it had read nothing and the backbone had run on the whole source."""
    read, spared = source.read_seconds, source.spared_seconds
    with Meter(device) as meter:
        done = work()
    seconds = meter.seconds - (source.read_seconds - read) + source.spared_seconds - spared
    return done, Cost(seconds, meter.peak_mib)


def _figures(category: str, split: Split, run: Run, bank: Tensor, fitting: Cost, scoring: Cost) -> Figures:
    labels = split.test.labels
    pixel_auroc, aupro, pixel_note = _pixel(run.maps, split.test)
    decided = None if run.threshold is None else decisions(run.scores, labels, run.threshold)
    peaks = [cost.peak_mib for cost in (fitting, scoring) if cost.peak_mib is not None]
    return Figures(
        category=category,
        image_auroc=image_auroc(run.scores, labels),
        image_average_precision=image_average_precision(run.scores, labels),
        pixel_auroc=pixel_auroc,
        aupro=aupro,
        f1=None if decided is None else decided.f1,
        false_positive_rate=None if decided is None else decided.false_positive_rate,
        threshold=run.threshold,
        bank_rows=len(bank),
        bank_mib=bank.nbytes / MIB,
        peak_mib=max(peaks) if len(peaks) == 2 else None,
        fit_seconds=fitting.seconds,
        ms_per_image=1000 * scoring.seconds / len(split.test),
        learned=len(split.learn),
        calibrated=0 if split.calibrate is None else len(split.calibrate),
        good=int((~labels).sum()),
        defective=int(labels.sum()),
        notes=tuple(note for note in (split.note, pixel_note) if note),
    )


def mean_figures(rows: list[Figures]) -> dict[str, float | None]:
    """The mean of each figure over categories; None where a category lacks it: a mean of some would mislead."""
    means: dict[str, float | None] = {}
    for field in fields(Figures):
        values = [getattr(row, field.name) for row in rows]
        if field.name not in ("category", "notes", "threshold"):
            means[field.name] = None if None in values else float(np.mean(values))
    return means


def _predict(model: MHPatchCore, source: PatchSource) -> Prediction:
    parts = [model.predict_features(features, source.grid) for features in source]
    scores, maps = (torch.cat(part) for part in zip(*parts, strict=True))
    return Prediction(scores, maps)


def _pixel(maps: NDArray[np.float32], test: PatchSource) -> tuple[float | None, float | None, str]:
    """Pixel AUROC and AUPRO over the pictures whose masks are known, and a note where that is not all or none."""
    known = [i for i, mask in enumerate(test.masks) if mask is not None]
    masks = [mask for mask in test.masks if mask is not None]
    note = ""
    if lacking := len(maps) - len(known):
        note = f"pixel figures leave out {lacking} of {int(test.labels.sum())} defective pictures, which have no mask"
    if not any(mask.any() for mask in masks):
        return None, None, "no pixel figures: no mask in ground_truth/ marks a pixel"
    return *pixel_figures([maps[i] for i in known], masks), note
