"""What a line's configuration asks of the library: its learner, and the threshold that its scores give."""

import torch
from torch import Tensor

from mhpc.core.calibration import Threshold, fit_threshold, track_threshold, tracked_scores
from mhpc.core.learner import OnePassLearner
from mhpc.core.whitening import ZSpace
from worker.settings import LineConfig, ScoringSettings


def new_learner(config: LineConfig, pca_variance_ratio: float, device: torch.device, seed: int = 0) -> OnePassLearner:
    """What a line learns by, before it has learned anything."""
    space, share = ZSpace(pca_variance_ratio=pca_variance_ratio), config.learning.moments_share
    top_k = config.scoring.top_k
    return OnePassLearner(config.bank_size, space, top_k, device, seed=seed, moments_share=share)


def fitted_threshold(calibration: Tensor, recent: Tensor, rate: float, scoring: ScoringSettings) -> Threshold:
    """By calibration's scores [N], and by the recent ones [n] where it follows them."""
    calibrated = fit_threshold(calibration.numpy(), rate)
    if not scoring.track_threshold or not len(recent):
        return calibrated
    window = torch.cat([calibration, recent])[-tracked_scores(rate) :]
    return track_threshold(calibrated, window.numpy(), rate, scoring.track_bound)
