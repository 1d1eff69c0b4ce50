"""The four choices that make a PatchCore, every one of whose 24 combinations runs, and what rules what out."""

from collections.abc import Mapping, Sequence
from enum import Enum
from numbers import Integral, Real
from typing import Any

from mhpc.core.patch_features import MIN_SIDE
from mhpc.sampler import SAMPLERS


class PatchCoreAlgorithm(Enum):
    """How the model is learned.

    VANILLA: from the patch features of all images at once, as published (Roth et al., 2022).
    ONLINE: from a stream, in one pass or three; no image is kept, memory is bounded by `bank_size`.
    """

    VANILLA = "vanilla"
    ONLINE = "online"


class PatchCoreAggregation(Enum):
    """How the memory bank is formed.

    GREEDY: farthest-first selection; on a stream, rows beyond a covering radius, reduced when there are too many.
    KMEANS: mini-batch k-means; on a stream seeded by GREEDY.
    NONE: all rows; on a stream, a uniform sample of them.
    """

    GREEDY = "greedy"
    KMEANS = "kmeans"
    NONE = "none"


class PatchCoreFeatureReduction(Enum):
    """PCA keeps the components that explain `pca_variance_ratio` of the variance; NONE all features."""

    NONE = "none"
    PCA = "pca"


class PatchCoreDistance(Enum):
    """EUCLIDEAN between features; MAHALANOBIS: Euclidean in the whitened Z-space."""

    EUCLIDEAN = "euclidean"
    MAHALANOBIS = "mahalanobis"


CHOICES: dict[str, type[Enum]] = {
    "algorithm": PatchCoreAlgorithm,
    "aggregation": PatchCoreAggregation,
    "feature_reduction": PatchCoreFeatureReduction,
    "distance": PatchCoreDistance,
}

LEAST = {"bank_size": 1, "anomaly_score_num_nn": 1, "top_k": 1, "reweighting_num_nn": 0, "seed": 0}
SEEDS = 2**32  # as many as scikit-learn takes


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_shape(input_shape: Any) -> tuple[int, int]:
    """(H, W) as whole numbers; raises ValueError for anything else."""
    given = tuple(input_shape) if isinstance(input_shape, Sequence) else ()
    if len(given) != 2 or not all(_whole(side) and side >= MIN_SIDE for side in given):
        raise ValueError(f"input_shape is {input_shape!r}, expected (H, W), each a whole number >= {MIN_SIDE}")
    return int(given[0]), int(given[1])


def plain(value: Any) -> Any:
    """A number of NumPy's as Python's own, which JSON takes; anything else as it is."""
    if _whole(value):
        return int(value)
    return float(value) if _real(value) else value


def check_choices(given: Mapping[str, Any]) -> None:
    """Raise ValueError for one of the four choices, or for a count, that is none; those that are not given are not
    looked at."""
    for name, choice in CHOICES.items():
        if name in given and not isinstance(given[name], choice):
            known = ", ".join(f"{choice.__name__}.{member.name}" for member in choice)
            raise ValueError(f"{name} is {given[name]!r}, expected one of {known}")
    for name, least in LEAST.items():
        if name in given and (not _whole(given[name]) or given[name] < least):
            raise ValueError(f"{name} is {given[name]!r}, expected a whole number >= {least}")
    if given.get("seed", 0) >= SEEDS:
        raise ValueError(f"seed is {given['seed']}, expected a whole number below {SEEDS} (2**32)")


def check_config(config: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument of MHPatchCore that is out of range, or that a choice rules out."""
    check_choices(config)
    ratio, jitter = config["pca_variance_ratio"], config["jitter"]
    if not _real(ratio) or not 0 < ratio < 1:
        raise ValueError(f"pca_variance_ratio is {ratio!r}, expected a share in (0, 1)")
    if jitter is not None and (not _real(jitter) or not 0 <= jitter < float("inf")):
        raise ValueError(f"jitter is {jitter!r}, expected a number >= 0, or None for shrinkage (with PCA for nothing)")
    if config["reweighting_num_nn"] == 1:
        raise ValueError("reweighting_num_nn is 1, with which every score is 0; expected 0 for none, or at least 2")
    if config["reweighting_num_nn"] and config["top_k"] > 1:
        raise ValueError(f"top_k is {config['top_k']} beside re-weighting, which is defined for the maximum: top_k=1")
    percentage = config["coreset_percentage"]
    if not _real(percentage) or not 0 < percentage < 1:
        raise ValueError("Percentage value not in (0, 1).")
    vanilla_greedy = (PatchCoreAlgorithm.VANILLA, PatchCoreAggregation.GREEDY)
    if not isinstance(config["sampler"], str) or config["sampler"] not in SAMPLERS:
        raise ValueError(f"sampler is {config['sampler']!r}, expected one of {', '.join(SAMPLERS)}")
    if config["sampler"] != "greedy_coreset" and (config["algorithm"], config["aggregation"]) != vanilla_greedy:
        raise ValueError(f"sampler {config['sampler']!r} is for VANILLA + GREEDY alone; leave it out")
