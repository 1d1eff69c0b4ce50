"""What a line's configuration asks of the library: its learner, and the threshold that its scores give."""

from collections import deque
from collections.abc import Callable, Iterable
from itertools import accumulate, chain, islice
from typing import NamedTuple

import torch
from torch import Tensor

from mhpc.core.calibration import Threshold, fit_threshold, track_threshold, tracked_scores
from mhpc.core.learner import STEP, OnePassLearner
from mhpc.core.whitening import ZSpace
from worker.settings import LineConfig, ScoringSettings


def new_learner(config: LineConfig, pca_variance_ratio: float, device: torch.device, seed: int = 0) -> OnePassLearner:
    """What a line learns by, before it has learned anything."""
    space, share = ZSpace(pca_variance_ratio=pca_variance_ratio), config.learning.moments_share
    top_k = config.scoring.top_k
    return OnePassLearner(config.bank_size, space, top_k, device, seed=seed, moments_share=share)


class Lesson(NamedTuple):
    """What was learned of an entry: the number of its first image, and which of its images were learned."""

    entry: str
    first: int
    learned: list[bool]


def learn_entries(
    learner: OnePassLearner,
    entries: deque[tuple[str, Iterable[Tensor]]],
    wanted: int,
    kept: Callable[[int], float],
) -> list[Lesson]:
    """Learn from entries, taken from the left until as many images are learned from as are wanted, at least from one.

    Each is given as chunks [B, P, D]. A step is of at most STEP images of one entry, or, where the learner takes long
    ones, of as many entries as it takes.

    Args:
        kept: the share of all that was learned before that so many images leave to it.
    """
    first, learned, waiting = learner.images_seen_, list[bool](), list[Tensor]()
    names, counts = list[str](), list[int]()

    def learn() -> None:
        features = torch.cat(waiting) if len(waiting) > 1 else waiting[0]
        waiting.clear()
        learner.forget(kept(len(features)))
        learned.extend(_learned(learner, features))

    while entries and (not names or sum(counts) < wanted):
        name, features = entries.popleft()
        names.append(name)
        counts.append(0)
        for images in chain.from_iterable(chunk.split(STEP) for chunk in features):
            if waiting and sum(map(len, waiting)) + len(images) > learner.step:
                learn()
            waiting.append(images)
            counts[-1] += len(images)
        if waiting and not learner.takes_long_steps:
            learn()
    if waiting:
        learn()
    starts, flags = accumulate(counts, initial=first), iter(learned)
    return [Lesson(*of) for of in zip(names, starts, (list(islice(flags, n)) for n in counts), strict=False)]


def _learned(learner: OnePassLearner, features: Tensor) -> list[bool]:
    """Learn from features [B, P, D], by halves where the device has no memory for all; which images were learned."""
    try:
        learned: list[bool] = learner.partial_fit(features).learned.tolist()
        return learned
    except torch.OutOfMemoryError:
        if len(features) <= STEP:
            raise
    half = len(features) // 2
    return [flag for part in features.split([half, len(features) - half]) for flag in _learned(learner, part)]


def fitted_threshold(calibration: Tensor, recent: Tensor, rate: float, scoring: ScoringSettings) -> Threshold:
    """By calibration's scores [N], and by the recent ones [n] where it follows them."""
    calibrated = fit_threshold(calibration.numpy(), rate)
    if not scoring.track_threshold or not len(recent):
        return calibrated
    window = torch.cat([calibration, recent])[-tracked_scores(rate) :]
    return track_threshold(calibrated, window.numpy(), rate, scoring.track_bound)
