"""One production line: its phases, its model, its counts. Knows no disk, and of Redis the entry ids alone."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from mhpc.core.calibration import Threshold, tracked_scores
from mhpc.core.drift import DriftMonitor
from mhpc.core.patch_maps import PatchMaps
from mhpc.core.recent import Convergence
from mhpc.core.scorer import Scorer
from worker.errors import ModelError
from worker.learners import fitted_threshold, learn_entries, new_learner
from worker.records import Scores, Serving, SetAside, Source, Taken
from worker.scoring import begin_to_score
from worker.settings import LineConfig
from worker.streams.ids import FROM_START, entry_key

LEARNING, CALIBRATING, SCORING, PAUSED = "learning", "calibrating", "scoring", "paused"
PHASES = (LEARNING, CALIBRATING, SCORING, PAUSED)
CALIBRATION_SCORES, CALIBRATION_MEANS, TRACKED_SCORES = "calibration_scores", "calibration_means", "tracked_scores"
ANSWERING = "answering."  # what the tensors of a version that answers while another is learned begin with
FORGETTING_IMAGES = 1000  # that learning.forgetting is given for


class Line:
    """The state machine learning -> calibrating -> scoring, and back by a command; it switches between entries only.

    `apply` takes each entry once: what `applied_through` covers is not applied again. What commands do to a line is
    in `worker.keeping.commands`. `state` and `restore` carry all of it through a snapshot.
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
        self.called_normal: list[tuple[str, str]] = []  # parts by entry and id, whose anchors are pinned
        self.before = ""  # the version that stood before a person last changed what is learned, for them to go back to
        self.learner = new_learner(config, pca_variance_ratio, device)
        self.threshold: Threshold | None = None
        self.fitted_rate: float | None = None  # that it is for
        self.serving = Serving(LEARNING, None, None)
        self.standing: Serving | None = None  # answers until the next version is calibrated; its name may be to come
        self.sources: list[Source] = []  # since learning began, oldest first
        self.set_aside: list[SetAside] = []  # when learning ended, for the keeper to take
        self.doubted = 0  # how many those were: learned from, and set aside
        self.monitor: DriftMonitor | None = None  # watches once what it was fitted to is committed
        self.calibration_scores, self.calibration_means = torch.empty(0, dtype=torch.float64), torch.empty(0, 0)
        self.forget_recent()

    @property
    def learns(self) -> bool:
        """Whether entries of the learning group are wanted."""
        return self.phase != SCORING and not self.paused

    @property
    def relearning(self) -> bool:
        """Whether one version answers while the next is learned or calibrated."""
        return self.standing is not None

    @property
    def shown_phase(self) -> str:
        return PAUSED if self.paused else self.phase

    @property
    def false_positive_rate(self) -> float:
        return self.config.calibration.false_positive_rate if self.rate is None else self.rate

    @property
    def progress(self) -> tuple[int, int]:
        """Images of the present phase that were taken, and how many it takes at most."""
        learned, quarantined, calibrated = self.counts
        if self.phase == LEARNING:
            return learned + quarantined, self.config.learning.images
        return calibrated, self.config.calibration.images

    @property
    def counts(self) -> tuple[int, int, int]:
        """Images learned, set aside, and calibrated on."""
        return self.learner.images_learned_, self.learner.images_quarantined_, len(self.calibration_scores)

    @property
    def convergence(self) -> Convergence:
        """How much of what comes is new."""
        return self.learner.convergence_

    def gather(self) -> None:
        """Have all that was learned in `learner`; it is there already, unless others learn with this process."""

    def scores_by(self) -> Callable[[PatchMaps], Scores]:
        """What begins to score images by the version that answers now, on whichever thread."""
        return partial(begin_to_score, self.serving, self.config.scoring.heat_map)

    def apply(self, entry: str, features: Iterable[Tensor]) -> Taken:
        """Learn from, or calibrate on, an entry's images, given as chunks [B, P, D]; then switch if it is time.

        An entry at or before `applied_through` changes nothing. All chunks but the last are of a multiple of STEP
        images, so that an entry is learned in the same steps however it was cut.
        """
        return self.apply_entries([(entry, features)])[0]

    def apply_entries(self, entries: Iterable[tuple[str, Iterable[Tensor]]]) -> list[Taken]:
        """`apply` for entries one after the other, until the line wants no more; what came of each.

        Where the learner takes long steps, they may be of several entries, and whether learning has converged is looked
        at behind all of them.
        """
        rest, taken = deque(entries), list[Taken]()
        while rest and (self.learns or not taken):
            if entry_key(rest[0][0]) <= entry_key(self.applied_through):
                rest.popleft()
                taken.append(Taken(0, 0, 0))
                continue
            taken += self._learn_from(rest) if self.phase == LEARNING else [self._calibrate_on(*rest.popleft())]
            self._switch()
        return taken

    def _learn_from(self, rest: deque[tuple[str, Iterable[Tensor]]]) -> list[Taken]:
        """Take entries from the left, until as many images are learned as are to be: a phase ends between entries."""
        done, wanted = self.progress
        lessons = learn_entries(self.learner, rest, wanted - done, self._kept)
        self.sources += [Source(lesson.entry, lesson.first) for lesson in lessons if lesson.learned]
        self.applied_through = lessons[-1].entry
        return [Taken.of_learning(lesson.learned) for lesson in lessons]

    def _calibrate_on(self, entry: str, features: Iterable[Tensor]) -> Taken:
        before = len(self.calibration_scores)
        for images in chain.from_iterable(chunk.split(self.learner.step) for chunk in features):
            self._calibrate(images)
        self.applied_through = entry
        return Taken(0, 0, len(self.calibration_scores) - before)

    def _kept(self, images: int) -> float:
        """The share of the weight of all that was learned before that so many images leave to it."""
        kept = self.config.learning.forgetting if self.forgetting is None else self.forgetting
        return float(kept ** (images / FORGETTING_IMAGES)) if self.relearning else 1.0

    def _calibrate(self, features: Tensor) -> None:
        scorer = self.learner.scorer()
        z = scorer.whiten(features)
        self.calibrated(scorer.score_maps(z)[0].double().cpu(), z.mean(1).cpu())  # GPU sync

    def calibrated(self, scores: Tensor, means: Tensor) -> None:
        """Take scores [n], float64, and means in Z-space [n, d + 1] of images that were calibrated on."""
        self.calibration_scores = torch.cat([self.calibration_scores, scores])
        self.calibration_means = torch.cat([self.calibration_means, means]) if len(self.calibration_means) else means

    def _switch(self) -> None:
        done, wanted = self.progress
        learning = self.config.learning
        if self.phase == LEARNING:
            enough = learning.converge and done >= min(learning.min_images, wanted)
            if done >= wanted or (enough and self.convergence.converged):
                self.end_learning()
        elif self.phase == CALIBRATING and done >= wanted:
            self.phase, self.standing = SCORING, None
            self.forget_recent()
            self.threshold = self.fitted()
            self.watch_drift()

    def end_learning(self) -> None:
        """Freeze the bank and go on to calibration; parts that turn out not to belong go to `set_aside`."""
        for number in self.learner.freeze().tolist():
            entry, first = max((s for s in self.sources if s.first <= number), key=lambda s: s.first)
            self.set_aside.append(SetAside(entry, number - first))
        self.sources, self.doubted = [], len(self.set_aside)
        self.phase = CALIBRATING
        self.forget_calibration()

    def forget_calibration(self) -> None:
        self.calibration_scores = torch.empty(0, dtype=torch.float64)
        self.calibration_means = torch.empty(0, 0)  # in Z-space, [n, d + 1]

    def forget_recent(self) -> None:
        """Scores before a calibration say nothing of its threshold: those to follow begin with the next result."""
        self.recent_scores = torch.empty(0, dtype=torch.float64)
        self.scores_through = ""  # the last of the results that they are of
        self.scores_since = ""  # the version whose results are the first; "": the next to be committed

    def follow(self, scores: list[float], through: str) -> None:
        """Remember the newest scores, up to the result entry `through`: as many as the threshold is fitted to."""
        kept = torch.cat([self.recent_scores, torch.tensor(scores, dtype=torch.float64)])
        self.recent_scores = kept[-tracked_scores(self.false_positive_rate) :].clone()
        self.scores_through = through

    def fitted(self) -> Threshold:
        """The threshold by calibration's scores, and by the recent ones where it follows them."""
        rate = self.fitted_rate = self.false_positive_rate
        return fitted_threshold(self.calibration_scores, self.recent_scores, rate, self.config.scoring)

    def watch_drift(self) -> None:
        self.monitor = DriftMonitor().fit(self.calibration_scores, self.calibration_means)

    def served_by(self, model: str) -> Serving:
        """How this version answers once it is committed; while the bank still learns there is none to answer by.

        A version that answers already does so until the next is calibrated; where a command has changed its bank, it
        goes by this name from now on.
        """
        phase = self.shown_phase
        if self.standing is not None:
            return self.standing._replace(phase=phase, model=self.standing.model or model)
        if self.phase == LEARNING:
            return Serving(phase, None, None)
        limit = self.threshold
        value, provisional = (None, False) if limit is None else (limit.value, limit.provisional)
        monitor = None if self.paused else self.monitor
        return Serving(phase, model, value, provisional, self.learner.scorer(), monitor)

    def serve(self, serving: Serving) -> None:
        """Answer by a version that is committed."""
        self.serving = serving
        self.scores_since = self.scores_since or serving.model or ""
        if self.standing is not None:
            self.standing = serving

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and metadata of a snapshot."""
        tensors = self.learner.state_dict()
        tensors |= {CALIBRATION_SCORES: self.calibration_scores, CALIBRATION_MEANS: self.calibration_means}
        tensors[TRACKED_SCORES] = self.recent_scores
        answering = None
        if self.standing is not None and self.standing.scorer is not None:
            tensors |= {ANSWERING + name: tensor for name, tensor in self.standing.scorer.state_dict().items()}
            answering = [self.standing.model, self.standing.threshold, self.standing.provisional]
        return tensors, {
            "line": self.name,
            "phase": self.phase,
            "paused": self.paused,
            "applied_through": self.applied_through,
            "commands_through": self.commands_through,
            "before": self.before,
            "called_normal": self.called_normal,
            "scores_through": self.scores_through,
            "scores_since": self.scores_since,
            "images_learned": self.learner.images_learned_,
            "images_quarantined": self.learner.images_quarantined_,
            "images_doubted": self.doubted,
            "images_calibrated": len(self.calibration_scores),
            "rows": self.learner.rows_seen_,
            "bank_size": self.config.bank_size,
            "top_k": self.config.scoring.top_k,
            "rate": self.rate,
            "forgetting": self.forgetting,
            "false_positive_rate": self.false_positive_rate,
            "threshold": self.threshold._asdict() if self.threshold else None,
            "answering": answering,
            "sources": list(self.sources),
        }

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Continue from a snapshot's `state`.

        Raises:
            ModelError: its scores are not comparable with those of this configuration.
        """
        if metadata["top_k"] != (top_k := self.config.scoring.top_k):
            raise ModelError(
                f"line {self.name}: scoring.top_k is {top_k}, its model was calibrated with {metadata['top_k']}; "
                "restore that, or learn anew under another line name"
            )
        self.paused, self.forgetting = metadata["paused"], metadata["forgetting"]
        self.before = metadata.get("before", "")  # none by releases before this
        self.applied_through, self.commands_through = metadata["applied_through"], metadata["commands_through"]
        self.scores_through = metadata["scores_through"]
        self.scores_since = metadata.get("scores_since", "")  # the same
        self.restore_model(tensors, metadata)

    def restore_model(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Take over what a snapshot has learned, calibrated and followed, its phase, and what answered beside it."""
        beside = (CALIBRATION_SCORES, CALIBRATION_MEANS, TRACKED_SCORES)
        learned = {n: t for n, t in tensors.items() if n not in beside and "." not in n}
        self.learner.load_state_dict(learned)
        self.calibration_scores, self.calibration_means, self.recent_scores = (tensors[n].clone() for n in beside)
        self.phase, self.rate = metadata["phase"], metadata["rate"]
        self.doubted = metadata.get("images_doubted", 0)  # the same
        # By builds before this one parts that were released were sources, too, with their ids.
        self.sources = [Source(entry, first) for entry, first, *id_ in metadata["sources"] if not any(id_)]
        self.called_normal = [(entry, id_) for entry, id_ in metadata.get("called_normal", [])]  # no older release's
        self.threshold = Threshold(**metadata["threshold"]) if metadata["threshold"] else None
        self.fitted_rate = metadata["false_positive_rate"]
        self.standing = self.monitor = None
        if metadata["answering"] is not None:
            state = {name.removeprefix(ANSWERING): t for name, t in tensors.items() if name.startswith(ANSWERING)}
            scorer = Scorer.of_state(state, self.config.scoring.top_k, self.device)
            model, threshold, provisional = metadata["answering"]
            self.standing = Serving(self.phase, model, threshold, provisional, scorer)
        if self.phase == SCORING:
            self.watch_drift()
