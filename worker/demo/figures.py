"""What the demo found, in figures: from the parts that were played and the results that came."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from worker.demo.parts import Part

TINY = 1e-12  # in place of a threshold of 0, which pictures that are all the same lead to


@dataclass(frozen=True)
class Verdict:
    """A test part and what the worker said of it. `heat` is [h, w] patch scores over the whole picture, or None."""

    part: Part
    score: float
    threshold: float
    anomalous: bool
    heat: NDArray[np.float32] | None

    @classmethod
    def of(cls, part: Part, result: dict[str, Any]) -> "Verdict":
        return cls(part, result["score"], result["threshold"], result["anomalous"], result.get("map"))

    @property
    def ratio(self) -> float:
        """The score as a multiple of the threshold: above 1 it is anomalous."""
        return self.score / max(self.threshold, TINY)

    @property
    def heat_ratio(self) -> NDArray[np.float32] | None:
        """The heat map in multiples of the threshold, [h, w]."""
        return None if self.heat is None else self.heat / max(self.threshold, TINY)


@dataclass(frozen=True)
class KindFigures:
    """One kind of defect: how many parts, how many the worker found, AUROC against the good test parts."""

    kind: str
    parts: int
    found: int
    auroc: float | None


@dataclass(frozen=True)
class Run:
    """What was asked for, and what the demo counted and timed while it played."""

    backbone: str
    weights: str | None
    layers: tuple[str, ...] | None
    wanted_false_positive_rate: float
    parts: int  # pictures sent
    results: int  # distinct ids answered
    repeated: int  # results beyond the first for an id
    dead: int  # dead letters
    learned: int  # pictures sent to learn from
    calibrated: int  # pictures sent to calibrate with
    learning_seconds: float  # from the first picture sent to the switch to scoring
    scoring_seconds: float  # from the first test picture sent to the last result
    model: str | None


@dataclass(frozen=True)
class Figures:
    """The demo's figures; None where the truth is not known or a share has no parts to count."""

    run: Run
    scored: int
    anomalous: int
    good: int
    defective: int
    anomalies_found: int | None
    anomalies_missed: int | None
    false_alarms: int | None
    false_positive_rate: float | None
    false_positive_rate_interval: tuple[float, float] | None  # 95 %, Clopper-Pearson
    auroc: float | None
    kinds: tuple[KindFigures, ...]
    threshold: float | None
    images_per_second: float
    learning_images_per_second: float

    def as_json(self) -> dict[str, Any]:
        """All figures as one flat map; the run's stand beside the others."""
        figures = asdict(self)
        return {**figures.pop("run"), **figures}


def compute_figures(run: Run, verdicts: Sequence[Verdict]) -> Figures:
    """Count and measure. AUROC is of the image scores; the rates are of the verdicts as they were published."""
    good = [v for v in verdicts if v.part.defective is False]
    defective = [v for v in verdicts if v.part.defective]
    false_alarms, found = sum(v.anomalous for v in good), sum(v.anomalous for v in defective)
    interval = binomtest(false_alarms, len(good)).proportion_ci(0.95) if good else None
    by_kind: dict[str, list[Verdict]] = {}
    for verdict in defective:
        by_kind.setdefault(str(verdict.part.kind), []).append(verdict)
    return Figures(
        run,
        scored=len(verdicts),
        anomalous=sum(v.anomalous for v in verdicts),
        good=len(good),
        defective=len(defective),
        anomalies_found=found if defective else None,
        anomalies_missed=len(defective) - found if defective else None,
        false_alarms=false_alarms if good else None,
        false_positive_rate=false_alarms / len(good) if good else None,
        false_positive_rate_interval=(float(interval.low), float(interval.high)) if interval else None,
        auroc=_auroc(good, defective),
        kinds=tuple(
            KindFigures(kind, len(those), sum(v.anomalous for v in those), _auroc(good, those))
            for kind, those in sorted(by_kind.items())
        ),
        threshold=verdicts[-1].threshold if verdicts else None,
        images_per_second=len(verdicts) / run.scoring_seconds,
        learning_images_per_second=(run.learned + run.calibrated) / run.learning_seconds,
    )


def _auroc(good: Sequence[Verdict], defective: Sequence[Verdict]) -> float | None:
    if not good or not defective:
        return None
    truth = [0] * len(good) + [1] * len(defective)
    return float(roc_auc_score(truth, [v.score for v in (*good, *defective)]))
