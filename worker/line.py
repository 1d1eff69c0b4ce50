"""One production line: its phases, its model, its counts. Knows no disk, and of Redis the entry ids alone."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mhpc.core.calibration import Threshold, fit_threshold
from mhpc.core.drift import DriftMonitor
from mhpc.core.learner import OnePassLearner
from mhpc.core.scorer import Scorer
from mhpc.core.scoring import image_scores, patch_scores
from mhpc.core.whitening import ZSpace
from worker.errors import ModelError
from worker.settings import LineConfig
from worker.streams.line_streams import FROM_START, entry_key

LEARNING, CALIBRATING, SCORING, PAUSED = "learning", "calibrating", "scoring", "paused"
PHASES = (LEARNING, CALIBRATING, SCORING, PAUSED)
CALIBRATION_SCORES, CALIBRATION_MEANS = "calibration_scores", "calibration_means"
ANSWERING = "answering."  # what the tensors of a version that answers while another is learned begin with
FORGETTING_IMAGES = 1000  # that learning.forgetting is given for


class Serving(NamedTuple):
    """What results are given by: a committed version, and its threshold once there is one."""

    phase: str
    model: str | None
    threshold: float | None
    provisional: bool = False
    scorer: Scorer | None = None


class Verdict(NamedTuple):
    """`score` and `map` [h, w] are None while no model exists."""

    score: float | None
    map: NDArray[np.float32] | None


class Taken(NamedTuple):
    """What became of an entry's images; `set_aside` are the places in the entry of those quarantined."""

    learned: int
    quarantined: int
    calibrated: int
    set_aside: tuple[int, ...] = ()


class Line:
    """The state machine learning -> calibrating -> scoring, and back by a command; it switches between entries only.

    `apply` takes each entry once: what `applied_through` covers is not applied again. What commands do to a line is
    in `worker.commands`. `state` and `restore` carry all of it through a snapshot.
    """

    def __init__(self, config: LineConfig, pca_variance_ratio: float, device: torch.device) -> None:
        self.config = config
        self.name = config.name
        self.device = device
        self.phase = LEARNING
        self.paused = False
        self.applied_through = self.commands_through = FROM_START
        self.rate: float | None = None  # where a command has set it
        self.forgetting: float | None = None  # the same
        space = ZSpace(pca_variance_ratio=pca_variance_ratio)
        self.learner = OnePassLearner(config.bank_size, space, config.scoring.top_k, device)
        self.calibration_scores = torch.empty(0, dtype=torch.float64)
        self.calibration_means = torch.empty(0, 0)  # in Z-space, [n, d + 1]
        self.threshold: Threshold | None = None
        self.serving = Serving(LEARNING, None, None)
        self.relearning = False  # a version that answers stays until the next one is calibrated
        self.sources: list[tuple[str, int]] = []  # entries learned from of late, first image of each
        self.set_aside: list[tuple[str, int]] = []  # entry and place of parts set aside when learning ended
        self.monitor: DriftMonitor | None = None

    @property
    def learns(self) -> bool:
        """Whether entries of the learning group are wanted."""
        return self.phase != SCORING and not self.paused

    @property
    def shown_phase(self) -> str:
        return PAUSED if self.paused else self.phase

    @property
    def false_positive_rate(self) -> float:
        return self.config.calibration.false_positive_rate if self.rate is None else self.rate

    @property
    def progress(self) -> tuple[int, int]:
        """Images of the present phase that were taken, and how many it takes at most."""
        if self.phase == LEARNING:
            return self.learner.images_seen_, self.config.learning.images
        return len(self.calibration_scores), self.config.calibration.images

    def judge(self, features: Tensor, grid: tuple[int, int]) -> list[Verdict]:
        """Verdicts on images by their features [B, P, D]; the drift monitor watches."""
        B, _, _ = features.shape
        scorer = self.serving.scorer
        if scorer is None:
            return [Verdict(None, None)] * B
        z = scorer.whiten(features)
        patches = patch_scores(z, scorer.memory)
        scores = image_scores(patches, scorer.top_k)
        if self.monitor is not None and not self.relearning:
            self.monitor.update(scores, z.mean(1))  # GPU sync
        if not self.config.scoring.heat_map:
            return [Verdict(score, None) for score in scores.tolist()]  # GPU sync
        maps = patches.reshape(B, *grid).cpu().numpy()  # GPU sync
        return [Verdict(score, heat) for score, heat in zip(scores.tolist(), maps, strict=True)]

    def apply(self, entry: str, features: Iterable[Tensor], guard: bool = True) -> Taken:
        """Learn from, or calibrate on, an entry's images, given as chunks [B, P, D]; then switch if it is time.

        An entry at or before `applied_through` changes nothing.
        """
        if entry_key(entry) <= entry_key(self.applied_through):
            return Taken(0, 0, 0)
        before, learned = self._counts(), []
        if self.phase == LEARNING:
            self.sources.append((entry, self.learner.images_seen_))
        for chunk in features:
            if self.phase == LEARNING:
                self._forget(len(chunk))
                learned += self.learner.partial_fit(chunk, guard).learned.tolist()
            else:
                self._calibrate(chunk)
        self.applied_through = entry
        learned_now, quarantined, calibrated = (now - was for now, was in zip(self._counts(), before, strict=True))
        aside = tuple(place for place, was_learned in enumerate(learned) if not was_learned)
        taken = Taken(learned_now, quarantined, calibrated, aside)
        self._switch()
        return taken

    def _counts(self) -> tuple[int, int, int]:
        return self.learner.images_learned_, self.learner.images_quarantined_, len(self.calibration_scores)

    def _forget(self, images: int) -> None:
        kept = self.config.learning.forgetting if self.forgetting is None else self.forgetting
        if self.relearning and kept < 1:
            self.learner.forget(kept ** (images / FORGETTING_IMAGES))

    def _calibrate(self, features: Tensor) -> None:
        scorer = self.learner.scorer()
        scores, means = scorer.score(features).double().cpu(), scorer.whiten(features).mean(1).cpu()  # GPU sync
        self.calibration_scores = torch.cat([self.calibration_scores, scores])
        self.calibration_means = (
            means if not len(self.calibration_means) else torch.cat([self.calibration_means, means])
        )

    def _switch(self) -> None:
        done, wanted = self.progress
        learning = self.config.learning
        if self.phase == LEARNING:
            enough = learning.converge and done >= min(learning.min_images, wanted)
            if done >= wanted or (enough and self.learner.convergence_.converged):
                self.end_learning()
        elif self.phase == CALIBRATING and done >= wanted:
            self.threshold = self.fitted()
            self.phase, self.relearning = SCORING, False
            self.watch_drift()

    def end_learning(self) -> None:
        """Freeze the bank and go on to calibration; parts that turn out not to belong go to `set_aside`."""
        for number in self.learner.freeze().tolist():
            entry, first = max((source for source in self.sources if source[1] <= number), key=lambda s: s[1])
            self.set_aside.append((entry, number - first))
        self.sources = []
        self.phase = CALIBRATING
        self.forget_calibration()

    def forget_calibration(self) -> None:
        self.calibration_scores = torch.empty(0, dtype=torch.float64)
        self.calibration_means = torch.empty(0, 0)

    def fitted(self) -> Threshold:
        """The threshold by calibration's scores."""
        return fit_threshold(self.calibration_scores.numpy(), self.false_positive_rate)

    def watch_drift(self) -> None:
        self.monitor = DriftMonitor().fit(self.calibration_scores, self.calibration_means)

    def served_by(self, model: str) -> Serving:
        """How this version answers once it is committed; while the bank still learns there is none to answer by.

        A version that answers already does so until the next is calibrated.
        """
        phase = self.shown_phase
        if self.relearning:
            return self.serving._replace(phase=phase)
        if self.phase == LEARNING:
            return Serving(phase, None, None)
        limit = self.threshold
        value, provisional = (None, False) if limit is None else (limit.value, limit.provisional)
        return Serving(phase, model, value, provisional, self.learner.scorer())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and metadata of a snapshot."""
        tensors = self.learner.state_dict()
        tensors |= {CALIBRATION_SCORES: self.calibration_scores, CALIBRATION_MEANS: self.calibration_means}
        answering = None
        if self.relearning and self.serving.scorer is not None:
            tensors |= {ANSWERING + name: tensor for name, tensor in self.serving.scorer.state_dict().items()}
            answering = [self.serving.model, self.serving.threshold, self.serving.provisional]
        return tensors, {
            "line": self.name,
            "phase": self.phase,
            "paused": self.paused,
            "applied_through": self.applied_through,
            "commands_through": self.commands_through,
            "images_learned": self.learner.images_learned_,
            "images_quarantined": self.learner.images_quarantined_,
            "images_calibrated": len(self.calibration_scores),
            "rows": self.learner.rows_seen_,
            "bank_size": self.config.bank_size,
            "top_k": self.config.scoring.top_k,
            "rate": self.rate,
            "forgetting": self.forgetting,
            "false_positive_rate": self.false_positive_rate,
            "threshold": self.threshold._asdict() if self.threshold else None,
            "answering": answering,
            "sources": self.sources,
        }

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
        self.restore_model(tensors, metadata)
        self.paused, self.rate, self.forgetting = metadata["paused"], metadata["rate"], metadata["forgetting"]
        self.applied_through, self.commands_through = metadata["applied_through"], metadata["commands_through"]
        self.relearning = metadata["answering"] is not None
        if self.relearning:
            state = {name.removeprefix(ANSWERING): t for name, t in tensors.items() if name.startswith(ANSWERING)}
            scorer = Scorer.of_state(state, top_k, self.device)
            model, threshold, provisional = metadata["answering"]
            self.serving = Serving(self.shown_phase, model, threshold, provisional, scorer)
        if self.phase == SCORING and metadata["false_positive_rate"] != self.false_positive_rate:
            self.threshold = self.fitted()

    def restore_model(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Take over what a snapshot has learned and calibrated, and its phase."""
        beside = (CALIBRATION_SCORES, CALIBRATION_MEANS)
        learned = {name: t for name, t in tensors.items() if name not in beside and not name.startswith(ANSWERING)}
        self.learner.load_state_dict(learned)
        self.calibration_scores, self.calibration_means = (tensors[name].clone() for name in beside)
        self.phase = metadata["phase"]
        self.sources = [(entry, first) for entry, first in metadata["sources"]]
        self.threshold = Threshold(**metadata["threshold"]) if metadata["threshold"] else None
        if self.phase == SCORING:
            self.watch_drift()
