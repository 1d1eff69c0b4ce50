"""MHPatchCore: images in, scores and anomaly maps out. Wiring only; the learning is in `batch` and `learner`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mhpc.core.backbones import BackboneName, backbone_label, hash_parameters, load_backbone
from mhpc.core.batch import BatchLearner
from mhpc.core.choices import (
    PatchCoreAggregation,
    PatchCoreAlgorithm,
    PatchCoreDistance,
    PatchCoreFeatureReduction,
    check_config,
    check_shape,
    plain,
)
from mhpc.core.learner import OnePassLearner
from mhpc.core.loading import BATCH, Loader, batches, joined_truth
from mhpc.core.model_file import read_model, write_model
from mhpc.core.patch_features import PatchFeatures, check_images
from mhpc.core.scoring import anomaly_maps, image_scores, patch_scores, reweighted_scores
from mhpc.core.three_passes import fit_three_passes
from mhpc.core.whitening import ZSpace
from mhpc.linalg import unchanged_on_error

__all__ = [
    "LabelledPrediction",
    "MHPatchCore",
    "PatchCoreAggregation",
    "PatchCoreAlgorithm",
    "PatchCoreDistance",
    "PatchCoreFeatureReduction",
    "Prediction",
]


class Prediction(NamedTuple):
    """Tensors on the CPU: `scores` [B], and `masks` [B, H, W], the anomaly maps at the images' size."""

    scores: Tensor
    masks: Tensor


class LabelledPrediction(NamedTuple):
    """What a loader gives: scores [N], masks [N, H, W], and the truth that the batches carried, else empty lists."""

    scores: Tensor
    masks: Tensor
    labels_gt: list[int]
    masks_gt: list[Tensor]


class MHPatchCore:
    """PatchCore (Roth et al., 2022, arXiv:2106.08265) with Mahalanobis distance, learned at once or online.

    Several threads may `predict` and `extract`; while one learns (`fit`, `partial_fit`, `freeze`) no other may call.

    Args:
        backbone: a BackboneName, its value, "package.module:function", or a module in which the weights are already,
            of which a copy is taken.
        embedding_layers: names of the backbone's layers; it is run up to the last of them.
        device: where features and distances are computed.
        input_shape: (H, W) of the images.
        pretrain_embed_dimension: width to which each layer's patches are pooled; None: averaged over the patch.
        target_embed_dimension: width to which the layers together are pooled; None: concatenated.
        patchsize: odd side of the neighbourhood that makes a patch.
        patchstride: cells from one patch to the next.
        algorithm, aggregation, feature_reduction, distance: the four choices.
        coreset_percentage: VANILLA: share of the patches that the bank keeps, in (0, 1).
        sampler: VANILLA + GREEDY: which sampler selects, by its name in `mhpc.sampler.SAMPLERS`.
        weights: as `load_backbone` takes them; left out where the backbone brings its own.
        pca_variance_ratio: share of the variance that PCA keeps, in (0, 1).
        jitter: added to the covariance's diagonal. None: MAHALANOBIS without PCA shrinks by OAS
            (`mhpc.mahalanobis.oas`), with PCA adds nothing.
        bank_size: ONLINE: anchors that the bank is reduced to; while it learns up to a quarter more, and 2,500 for
            1,000 to 1,999.
        anomaly_score_num_nn: a patch's score is its mean distance to so many nearest rows of the bank.
        top_k: an image's score is the mean of its top_k largest patch scores; 1 is PatchCore's maximum.
        reweighting_num_nn: neighbours of the nearest that re-weight the maximum (eq. 7; anomalib takes 9); 0: none do.
        seed: of whatever draws at random.

    Raises:
        ValueError: a value out of range, or a choice that another one rules out.
    """

    def __init__(
        self,
        backbone: BackboneName | str | nn.Module,
        embedding_layers: Sequence[str] = ("layer2", "layer3"),
        device: torch.device | str = "cpu",
        input_shape: tuple[int, int] = (224, 224),
        pretrain_embed_dimension: int | None = None,
        target_embed_dimension: int | None = None,
        patchsize: int = 3,
        patchstride: int = 1,
        algorithm: PatchCoreAlgorithm = PatchCoreAlgorithm.ONLINE,
        aggregation: PatchCoreAggregation = PatchCoreAggregation.KMEANS,
        feature_reduction: PatchCoreFeatureReduction = PatchCoreFeatureReduction.PCA,
        distance: PatchCoreDistance = PatchCoreDistance.MAHALANOBIS,
        coreset_percentage: float = 0.1,
        sampler: str = "greedy_coreset",
        weights: str | Path | None = "pretrained",
        pca_variance_ratio: float = 0.99,
        jitter: float | None = None,
        bank_size: int = 6000,
        anomaly_score_num_nn: int = 1,
        top_k: int = 1,
        reweighting_num_nn: int = 0,
        seed: int = 0,
    ) -> None:
        height, width = check_shape(input_shape)
        config: dict[str, Any] = {
            "backbone": backbone_label(backbone),
            "embedding_layers": list(embedding_layers),
            "input_shape": [height, width],
            "pretrain_embed_dimension": pretrain_embed_dimension,
            "target_embed_dimension": target_embed_dimension,
            "patchsize": patchsize,
            "patchstride": patchstride,
            "algorithm": algorithm,
            "aggregation": aggregation,
            "feature_reduction": feature_reduction,
            "distance": distance,
            "coreset_percentage": coreset_percentage,
            "sampler": sampler,
            "weights": None if weights is None else str(weights),
            "pca_variance_ratio": pca_variance_ratio,
            "jitter": jitter,
            "bank_size": bank_size,
            "anomaly_score_num_nn": anomaly_score_num_nn,
            "top_k": top_k,
            "reweighting_num_nn": reweighting_num_nn,
            "seed": seed,
        }
        self.config = {name: plain(value) for name, value in config.items()}
        check_config(self.config)
        self.input_shape = (height, width)
        self.device = torch.device(device)
        taken = ("patchsize", "patchstride", "pretrain_embed_dimension", "target_embed_dimension")
        options = {name: self.config[name] for name in taken}
        self.extractor = PatchFeatures(load_backbone(backbone, weights), embedding_layers, device=device, **options)
        self.learner_ = make_learner(self.config, self.device)

    def fit(self, loader: Loader, passes: int = 1) -> "MHPatchCore":
        """Learn from batches [B, 3, H, W] or maps with "image", normalised with ImageNet's mean and deviation.

        What was learned before is forgotten.

        Args:
            passes: 1, or with ONLINE 3 for the flow in three passes, over a loader that can be gone through again.

        Raises:
            ValueError: no batch, a wrong shape, or passes that the algorithm or the loader does not have.
        """
        if passes == 3 and iter(loader) is loader:
            raise ValueError(
                f"the loader is a {type(loader).__name__}, spent after one pass; passes=3 wants one that can be gone "
                "through again, such as a DataLoader or a list"
            )
        return self.fit_features(lambda: (self.extract(batch.images)[0] for batch in batches(loader)), passes)

    def fit_features(self, passing: Callable[[], Iterable[Tensor]], passes: int = 1) -> "MHPatchCore":
        """`fit` from patch features: each call of `passing` goes through them all, [B, P, D] at a time."""
        learner = make_learner(self.config, self.device)
        if isinstance(learner, BatchLearner):
            if passes != 1:
                raise ValueError(f"passes is {passes}, expected 1: VANILLA sees all images at once")
            learner.fit(passing())
        elif passes == 3:
            fit_three_passes(learner, passing)
        elif passes == 1:
            for features in passing():
                learner.partial_fit(features)
            if not learner.images_seen_:
                raise ValueError("the loader gave no batch, expected at least one")
            learner.freeze()
        else:
            raise ValueError(f"passes is {passes}, expected 1 or 3")
        self.learner_ = learner
        return self

    def partial_fit(self, images: Tensor) -> "MHPatchCore":
        """ONLINE: learn from images [B, 3, H, W], normalised with ImageNet's mean and deviation; none is kept.

        `predict` scores by what was learned so far; once that is all, `freeze` makes it what `fit` would have left.

        Raises:
            ValueError: another shape than [B, 3, *input_shape], or VANILLA. Whatever is raised, nothing was learned.
        """
        if isinstance(self.learner_, BatchLearner):
            raise ValueError("VANILLA learns from all images at once: call fit, or choose algorithm=ONLINE")
        check_images(images, finite=True)
        with unchanged_on_error(*self.learner_.holders()):  # whatever fails, nothing has been learned in part
            for part in images.split(BATCH):
                self.learner_.partial_fit(self.extract(part)[0])
        return self

    def freeze(self) -> "MHPatchCore":
        """ONLINE: end learning, as `fit` does: the basis is that of all that was learned, the bank is reduced to
        bank_size, and pictures that do not belong with the rest are in doubt. `partial_fit` may go on from there.

        Raises:
            ValueError: nothing was learned yet.
        """
        if isinstance(self.learner_, OnePassLearner):
            self.learner_.freeze()
        elif not self.learner_.images_learned_:
            raise ValueError("nothing was learned yet: call fit with at least one image first")
        return self

    def predict(self, images: Loader) -> Prediction | LabelledPrediction:
        """Score images [B, 3, H, W], or a loader of them (or of maps with "image", "is_anomaly"?, "mask"?).

        Raises:
            ValueError: nothing was learned, or a wrong shape.
        """
        predictions, labels, masks = [], [], []
        for batch in batches(images):
            predictions.append(self.predict_features(*self.extract(batch.images)))
            labels.append(batch.labels)
            masks.append(batch.masks)
        if not predictions:
            raise ValueError("the loader gave no batch, expected at least one")
        joined = _joined(predictions)
        if isinstance(images, Tensor):
            return joined
        return LabelledPrediction(*joined, joined_truth("is_anomaly", labels), joined_truth("mask", masks))

    def save(self, path: str | Path) -> None:
        """Write the model as one safetensors file; the backbone is named and hashed, not contained.

        The file takes its place when it is whole: one that was there stays if writing fails.
        """
        write_model(path, self.config, hash_parameters(self.extractor.backbone), self.learner_.state_dict())

    @classmethod
    def load(
        cls, path: str | Path, device: torch.device | str = "cpu", backbone: nn.Module | None = None
    ) -> "MHPatchCore":
        """The model that `save` wrote. A backbone that it names as "package.module:function" is imported and called
        before its hash is known: load only files of people you trust, or give `backbone=`, and nothing is called.

        Args:
            backbone: the module, where the model was made with one, or in place of a function that the file names.

        Raises:
            ValueError: not such a file, or the backbone's parameters are not those it was learned with.
        """
        config, expected, state = read_model(path)
        if backbone is None and "." in config["backbone"] and ":" not in config["backbone"]:
            raise ValueError(f"{path} was made with a module, {config['backbone']}; give that as backbone=")
        config["backbone"] = config["backbone"] if backbone is None else backbone
        try:
            model = cls(**config, device=device)
        except TypeError as error:
            raise ValueError(f"{path} was saved by another version of mhpc, with other options: {error}") from None
        if (found := hash_parameters(model.extractor.backbone)) != expected:
            raise ValueError(f"{path} was learned with a backbone of hash {expected}, the one given has {found}")
        model.learner_.load_state_dict(state)
        return model

    def extract(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch features [B, P, D] of images [B, 3, H, W], and the grid (h, w) of the patches."""
        if tuple(images.shape[2:]) != self.input_shape:
            H, W = self.input_shape
            raise ValueError(f"images have shape {list(images.shape)}, expected [B, 3, {H}, {W}]")
        return self.extractor(images)

    def predict_features(self, features: Tensor, grid: tuple[int, int]) -> Prediction:
        """`predict` from what `extract` gives."""
        z = self.learner_.whiten(features)
        bank, config = self.learner_.memory_, self.config
        option = max("anomaly_score_num_nn", "reweighting_num_nn", key=lambda name: int(config[name]))
        if config[option] > len(bank):
            raise ValueError(f"{option} is {config[option]}, expected at most the bank's {len(bank)} rows")
        patches = patch_scores(z, bank, config["anomaly_score_num_nn"])
        if neighbours := config["reweighting_num_nn"]:
            scores = reweighted_scores(z, patches, bank, neighbours)
        else:
            scores = image_scores(patches, config["top_k"])
        H, W = self.input_shape
        return Prediction(scores.cpu(), anomaly_maps(patches, grid, (H, W)).cpu())  # GPU sync


def make_learner(config: Mapping[str, Any], device: torch.device) -> BatchLearner | OnePassLearner:
    """The learner that a configuration of MHPatchCore asks for."""
    space = ZSpace(config["feature_reduction"], config["distance"], config["pca_variance_ratio"], config["jitter"])
    aggregation, seed = config["aggregation"], config["seed"]
    if config["algorithm"] is PatchCoreAlgorithm.VANILLA:
        return BatchLearner(config["coreset_percentage"], config["sampler"], device, space, aggregation, seed)
    return OnePassLearner(config["bank_size"], space, config["top_k"], device, aggregation, seed)


def _joined(predictions: list[Prediction]) -> Prediction:
    scores, masks = zip(*predictions, strict=True)
    return Prediction(torch.cat(scores), torch.cat(masks))
