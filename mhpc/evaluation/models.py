"""From options to MHPatchCore: what its arguments are, and which options would have no effect."""

from dataclasses import replace
from typing import Any

from mhpc.core.backbones import BackboneName, default_layers
from mhpc.core.choices import PatchCoreAggregation, PatchCoreAlgorithm, PatchCoreDistance, PatchCoreFeatureReduction
from mhpc.evaluation.options import Bounds, Choices, Features, SamplerName, Sampling, Scoring


def settled(choices: Choices, sampling: Sampling) -> Choices:
    """The choices, with those that were not given: a coreset is vanilla's, and vanilla's bank is a coreset."""
    coreset = sampling.sampler is not None or sampling.percentage is not None
    algorithm = choices.algorithm or (PatchCoreAlgorithm.VANILLA if coreset else PatchCoreAlgorithm.ONLINE)
    vanilla = algorithm is PatchCoreAlgorithm.VANILLA
    aggregation = choices.aggregation or (PatchCoreAggregation.GREEDY if vanilla else PatchCoreAggregation.KMEANS)
    return replace(choices, algorithm=algorithm, aggregation=aggregation)


def check_used(choices: Choices, bounds: Bounds, sampling: Sampling) -> None:
    """Refuse options that the algorithm chosen would ignore, so that nobody compares what does not differ.

    Raises:
        ValueError: such an option was given; the text says what it belongs to.
    """
    online = choices.algorithm is PatchCoreAlgorithm.ONLINE
    greedy = choices.aggregation is PatchCoreAggregation.GREEDY
    bound = "online is bounded by --bank-size"
    ignored = [
        (online and sampling.sampler is not None, "--sampler", "--algorithm vanilla --aggregation greedy", bound),
        (online and sampling.percentage is not None, "--percentage", "--algorithm vanilla", bound),
        (not online and bounds.bank_size is not None, "--bank-size", "--algorithm online", "vanilla has --percentage"),
        (not online and choices.passes == 3, "--passes 3", "--algorithm online", "vanilla takes all features at once"),
        (not greedy and sampling.sampler is not None, "--sampler", "--aggregation greedy", ""),
        (choices.aggregation is PatchCoreAggregation.NONE and sampling.percentage is not None, "--percentage",
         "--aggregation greedy or kmeans", "none keeps every patch"),
        (sampling.sampler is SamplerName.identity and sampling.percentage is not None, "--percentage",
         "another --sampler", "identity keeps every patch"),
        (choices.reduction is PatchCoreFeatureReduction.NONE and bounds.pca_variance_ratio is not None,
         "--pca-variance-ratio", "--reduction pca", ""),
        (choices.distance is PatchCoreDistance.EUCLIDEAN and sampling.jitter is not None, "--jitter",
         "--distance mahalanobis", "no covariance is inverted for the Euclidean"),
    ]  # fmt: skip
    for applies, option, needs, why in ignored:
        if applies:
            raise ValueError(f"{option} would have no effect: it is for {needs}{f'; {why}' if why else ''}")
    if choices.passes not in (None, 1, 3):
        raise ValueError(f"--passes is {choices.passes}, expected 1 or 3")


def model_arguments(
    bounds: Bounds, features: Features, scoring: Scoring, sampling: Sampling, choices: Choices | None = None
) -> dict[str, Any]:
    """MHPatchCore's arguments but for `device` and `seed`; what was not given is left to its own defaults.

    Raises:
        ValueError: weights for a backbone that brings its own.
    """
    given: dict[str, Any] = {
        "coreset_percentage": sampling.percentage,
        "sampler": None if sampling.sampler is None else sampling.sampler.value,
        "bank_size": bounds.bank_size,
        "pca_variance_ratio": bounds.pca_variance_ratio,
        "jitter": sampling.jitter,
        "pretrain_embed_dimension": features.pretrain_dimension,
        "target_embed_dimension": features.target_dimension,
    }
    if choices is not None:
        given |= {
            "algorithm": choices.algorithm,
            "aggregation": choices.aggregation,
            "feature_reduction": choices.reduction,
            "distance": choices.distance,
        }
    return {
        "backbone": features.backbone,
        "weights": _weights(features),
        "embedding_layers": _layers(features),
        "input_shape": features.input_shape,
        "patchsize": features.patchsize,
        "patchstride": features.patchstride,
        "anomaly_score_num_nn": scoring.num_nn,
        "top_k": scoring.top_k,
        "reweighting_num_nn": scoring.reweight,
    } | {name: value for name, value in given.items() if value is not None}


def _weights(features: Features) -> str | None:
    if ":" in features.backbone:
        if features.weights is not None:
            raise ValueError(
                f"--weights {features.weights} would have no effect: backbone {features.backbone!r} brings its own"
            )
        return None
    return features.weights or ("bundled" if features.backbone == BackboneName.tiny.value else "pretrained")


def _layers(features: Features) -> list[str]:
    if features.layers is None:
        return list(default_layers(features.backbone))
    return [name.strip() for name in features.layers.split(",") if name.strip()]
