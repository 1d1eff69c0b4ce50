"""One production line: its phases, its model, its counts. Knows no disk, and of Redis the entry ids alone."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mhpc.core.calibration import Threshold, fit_threshold
from mhpc.core.learner import OnePassLearner
from mhpc.core.scoring import image_scores
from mhpc.core.whitening import ZSpace
from worker.errors import ModelError
from worker.settings import LineConfig
from worker.streams.line_streams import FROM_START, entry_key

LEARNING, CALIBRATING, SCORING = "learning", "calibrating", "scoring"
PHASES = (LEARNING, CALIBRATING, SCORING)
CALIBRATION_SCORES = "calibration_scores"


class Serving(NamedTuple):
    """What results are given by: a committed version, and its threshold once there is one."""

    phase: str
    model: str | None
    threshold: float | None


class Verdict(NamedTuple):
    """`score` and `map` [h, w] are None while no model exists."""

    score: float | None
    map: NDArray[np.float32] | None


class Taken(NamedTuple):
    """What became of an entry's images."""

    learned: int
    quarantined: int
    calibrated: int


class Line:
    """The state machine learning -> calibrating -> scoring; it switches between entries only.

    `apply` is the one place where state changes, and it takes each entry once: what `applied_through` covers is not
    applied again. `state` and `restore` carry all of it through a snapshot.
    """

    def __init__(self, config: LineConfig, pca_variance_ratio: float, device: torch.device) -> None:
        self.config = config
        self.name = config.name
        self.phase = LEARNING
        self.applied_through = FROM_START
        space = ZSpace(pca_variance_ratio=pca_variance_ratio)
        self.learner = OnePassLearner(config.bank_size, space, config.scoring.top_k, device)
        self.calibration_scores = torch.empty(0, dtype=torch.float64)
        self.threshold: Threshold | None = None
        self.serving = Serving(LEARNING, None, None)

    @property
    def learns(self) -> bool:
        """Whether entries of the learning group are wanted."""
        return self.phase != SCORING

    @property
    def progress(self) -> tuple[int, int]:
        """Images of the present phase that were taken, and how many it takes."""
        if self.phase == LEARNING:
            return self.learner.images_seen_, self.config.learning.images
        return len(self.calibration_scores), self.config.calibration.images

    def judge(self, features: Tensor, grid: tuple[int, int]) -> list[Verdict]:
        """Verdicts on images by their features [B, P, D]."""
        B, _, _ = features.shape
        if self.serving.model is None:
            return [Verdict(None, None)] * B
        patches = self.learner.score_patches(features)
        scores = image_scores(patches, self.config.scoring.top_k).tolist()  # GPU sync
        if not self.config.scoring.heat_map:
            return [Verdict(score, None) for score in scores]
        maps = patches.reshape(B, *grid).cpu().numpy()  # GPU sync
        return [Verdict(score, heat) for score, heat in zip(scores, maps, strict=True)]

    def apply(self, entry: str, features: Iterable[Tensor]) -> Taken:
        """Learn from, or calibrate on, an entry's images, given as chunks [B, P, D]; then switch if it is time.

        An entry at or before `applied_through` changes nothing.
        """
        if entry_key(entry) <= entry_key(self.applied_through):
            return Taken(0, 0, 0)
        before = self._taken()
        for chunk in features:
            if self.phase == LEARNING:
                self.learner.partial_fit(chunk)
            else:
                scores = self.learner.score(chunk).double().cpu()  # GPU sync
                self.calibration_scores = torch.cat([self.calibration_scores, scores])
        self.applied_through = entry
        taken = Taken(*(now - then for now, then in zip(self._taken(), before, strict=True)))
        self._switch()
        return taken

    def _taken(self) -> Taken:
        return Taken(self.learner.images_learned_, self.learner.images_quarantined_, len(self.calibration_scores))

    def _switch(self) -> None:
        done, wanted = self.progress
        if self.phase == LEARNING and done >= wanted:
            self.learner.freeze()
            self.phase = CALIBRATING
        elif self.phase == CALIBRATING and done >= wanted:
            self.threshold = self._fitted()
            self.phase = SCORING

    def _fitted(self) -> Threshold:
        return fit_threshold(self.calibration_scores.numpy(), self.config.calibration.false_positive_rate)

    def served_by(self, model: str) -> Serving:
        """How this version answers once it is committed; while the bank still learns there is none to answer by."""
        if self.phase == LEARNING:
            return Serving(LEARNING, None, None)
        return Serving(self.phase, model, self.threshold.value if self.threshold else None)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and metadata of a snapshot."""
        tensors = {**self.learner.state_dict(), CALIBRATION_SCORES: self.calibration_scores}
        metadata = {
            "line": self.name,
            "phase": self.phase,
            "applied_through": self.applied_through,
            "images_learned": self.learner.images_learned_,
            "images_quarantined": self.learner.images_quarantined_,
            "images_calibrated": len(self.calibration_scores),
            "rows": self.learner.rows_seen_,
            "bank_size": self.config.bank_size,
            "top_k": self.config.scoring.top_k,
            "threshold": self.threshold._asdict() if self.threshold else None,
        }
        return tensors, metadata

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Continue from a snapshot's `state`; a false-positive rate that was changed since gives another threshold.

        Raises:
            ModelError: its scores are not comparable with those of this configuration.
        """
        if metadata["top_k"] != (top_k := self.config.scoring.top_k):
            raise ModelError(
                f"line {self.name}: scoring.top_k is {top_k}, its model was calibrated with {metadata['top_k']}; "
                "restore that, or learn anew under another line name"
            )
        self.learner.load_state_dict({name: t for name, t in tensors.items() if name != CALIBRATION_SCORES})
        self.calibration_scores = tensors[CALIBRATION_SCORES].clone()
        self.phase = metadata["phase"]
        self.applied_through = metadata["applied_through"]
        self.threshold = self._fitted() if self.phase == SCORING else None
