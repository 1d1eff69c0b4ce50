"""Small models and pictures of made-up parts."""

from typing import Any

import torch
from torch import Tensor

from mhpc.core.backbones import BackboneName
from mhpc.core.learner import OnePassLearner
from mhpc.core.mh_patch_core import (
    MHPatchCore,
    PatchCoreAggregation,
    PatchCoreAlgorithm,
    PatchCoreDistance,
    PatchCoreFeatureReduction,
    Prediction,
)

SIDE = 64
VANILLA = {
    "algorithm": PatchCoreAlgorithm.VANILLA,
    "aggregation": PatchCoreAggregation.GREEDY,
    "feature_reduction": PatchCoreFeatureReduction.NONE,
    "distance": PatchCoreDistance.EUCLIDEAN,
}


def made(**options: Any) -> MHPatchCore:
    small: dict[str, Any] = {"input_shape": (SIDE, SIDE), "embedding_layers": ["layer2"], "bank_size": 100}
    return MHPatchCore(**{"backbone": BackboneName.resnet18, "weights": "random:0", **small, **options})


def parts(B: int, seed: int = 0) -> Tensor:
    """Pictures [B, 3, 64, 64] of one and the same part, with some noise."""
    ramp = torch.linspace(-1, 1, SIDE)
    part = torch.stack([ramp[:, None] + ramp, ramp[:, None] * ramp, (8 * ramp).sin().expand(SIDE, SIDE)])
    return part + 0.05 * torch.randn(B, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def defective(B: int, seed: int = 0) -> Tensor:
    """The same, each with a dark square from (40, 8) to (52, 20)."""
    images = parts(B, seed)
    images[:, :, 40:52, 8:20] = -2
    return images


def online(model: MHPatchCore) -> OnePassLearner:
    assert isinstance(model.learner_, OnePassLearner)
    return model.learner_


def predicted(model: MHPatchCore, images: Tensor) -> Prediction:
    prediction = model.predict(images)
    assert isinstance(prediction, Prediction)
    return prediction
