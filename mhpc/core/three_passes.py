"""The flow in three passes, with a basis that stands still."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mhpc.core.learner import STEP, OnePassLearner
from mhpc.core.whitening import Whitening
from mhpc.mahalanobis import OnlineCovariance


def fit_three_passes(learner: OnePassLearner, batches: Callable[[], Iterable[Tensor]]) -> None:
    """Let a new learner learn from features [B, P, D] that can be gone through again and again.

    1. IncrementalPCA.
    2. OnlineCovariance of the projected rows, and its Cholesky factor.
    3. The bank, in the fixed Z-space, reduced to bank_size.

    A pass is left out where the space has no use for it: EUCLIDEAN needs no second, and without PCA the first
    finds the covariance already. No image is set aside.

    Raises:
        ValueError: the passes differ, or as by `partial_fit`.
    """
    for features in batches() if learner.space.needs_moments else ():
        learner.pca_.partial_fit(learner.checked(features).flatten(0, 1))
    if learner.space.needs_moments:
        _check_count(learner.pca_.n_samples_seen_)
    whitening = _whitening(learner, batches)
    for features in batches():
        for part in learner.checked(features).split(STEP):
            _fill_bank(learner, part, whitening)
    if learner.space.needs_moments and learner.rows_seen_ != learner.pca_.n_samples_seen_:
        raise ValueError(
            f"the last pass gave {learner.rows_seen_} patches, the first {learner.pca_.n_samples_seen_}: the loader "
            "cannot be gone through again, or is another each time"
        )
    _check_count(learner.rows_seen_)
    learner.rows_at_refresh_ = learner.rows_seen_
    learner._bank().reduce()


def _check_count(rows: int) -> None:
    if not rows:
        raise ValueError("the loader gave no batch, expected at least one")
    if rows < 2:
        raise ValueError("the loader gave a single patch, expected at least 2")


def _fill_bank(learner: OnePassLearner, features: Tensor, whitening: Whitening | None) -> None:
    """Take features [B, P, D] into the bank, in a space that stands still."""
    B, P, D = features.shape
    x = features.reshape(B * P, D)
    if learner.bank_ is None:
        learner.bank_ = learner._new_bank(D)
        learner.bank_.refresh(whitening or learner.space.identity(D).to(learner.device))
    first = learner.images_learned_
    pictures = torch.arange(first, first + B, device=x.device).repeat_interleave(P)
    learner.bank_.learn(x, learner._nearest(x, P), pictures)
    learner.rows_seen_ += B * P
    learner.images_learned_ += B


def _whitening(learner: OnePassLearner, batches: Callable[[], Iterable[Tensor]]) -> Whitening | None:
    """Of the moments of the first pass and, where there is one, the second."""
    space, pca = learner.space, learner.pca_
    if not (space.reduces and space.whitens):
        return space.of_moments(pca.moments_) if space.needs_moments else None
    projected = OnlineCovariance(pca.n_components_, device=torch.device(learner.device))
    for features in batches():
        projected.update(pca.transform(learner.checked(features).flatten(0, 1)))
    if projected.n_samples_seen_ == 0:
        raise ValueError("the second pass gave no patches: the loader cannot be gone through again")
    return space.of_projected(pca, projected.moments_)
