"""MHPatchCore: images in, scores and anomaly maps out. Wiring only; the learning is in `learner`."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mhpc.core.backbones import BackboneName, backbone_label, hash_parameters, load_backbone
from mhpc.core.learner import OnePassLearner
from mhpc.core.patch_features import PatchFeatures
from mhpc.core.scoring import anomaly_maps, image_scores


class PatchCoreAlgorithm(Enum):
    """How the model is learned. ONLINE: one pass, no image kept, bounded by `bank_size`."""

    ONLINE = "online"


class PatchCoreAggregation(Enum):
    """How the bank is formed. KMEANS: mini-batch k-means with k-center seeding."""

    KMEANS = "kmeans"


class PatchCoreFeatureReduction(Enum):
    """PCA: the components that explain `pca_variance_ratio` of the variance."""

    PCA = "pca"


class PatchCoreDistance(Enum):
    """MAHALANOBIS: Euclidean in the whitened space."""

    MAHALANOBIS = "mahalanobis"


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
    """PatchCore (Roth et al., 2022, arXiv:2106.08265) with Mahalanobis distance, learned online.

    Args:
        backbone: a BackboneName, its value, "package.module:function", or a module in which the weights are already.
        embedding_layers: names of the backbone's layers.
        device: where features and distances are computed.
        input_shape: (H, W) of the images.
        patchsize: odd side of the neighbourhood over which patch features are averaged.
        weights: as `load_backbone` takes them; left out where the backbone brings its own.
        bank_size: anchors that the memory bank is reduced to; while it learns it holds up to a quarter more.
        top_k: an image's score is the mean of its top_k largest patch scores; 1 is PatchCore's maximum.
    """

    def __init__(
        self,
        backbone: BackboneName | str | nn.Module,
        embedding_layers: Sequence[str] = ("layer2", "layer3"),
        device: torch.device | str = "cpu",
        input_shape: tuple[int, int] = (224, 224),
        patchsize: int = 3,
        algorithm: PatchCoreAlgorithm = PatchCoreAlgorithm.ONLINE,
        aggregation: PatchCoreAggregation = PatchCoreAggregation.KMEANS,
        feature_reduction: PatchCoreFeatureReduction = PatchCoreFeatureReduction.PCA,
        distance: PatchCoreDistance = PatchCoreDistance.MAHALANOBIS,
        weights: str | Path | None = "pretrained",
        pca_variance_ratio: float = 0.99,
        bank_size: int = 6000,
        top_k: int = 1,
    ) -> None:
        self.config: dict[str, Any] = {
            "backbone": backbone_label(backbone),
            "embedding_layers": list(embedding_layers),
            "input_shape": list(input_shape),
            "patchsize": patchsize,
            "algorithm": algorithm.name,
            "aggregation": aggregation.name,
            "feature_reduction": feature_reduction.name,
            "distance": distance.name,
            "weights": None if weights is None else str(weights),
            "pca_variance_ratio": pca_variance_ratio,
            "bank_size": bank_size,
            "top_k": top_k,
        }
        self.input_shape = tuple(input_shape)
        self.extractor = PatchFeatures(load_backbone(backbone, weights), embedding_layers, patchsize, device)
        self.learner_ = OnePassLearner(bank_size, pca_variance_ratio, top_k, device)

    def partial_fit(self, images: Tensor) -> "MHPatchCore":
        """Learn from images [B, 3, H, W], normalised with ImageNet's mean and deviation; none is kept.

        Raises:
            ValueError: another shape than [B, 3, *input_shape].
        """
        self.learner_.partial_fit(self._features(images)[0])
        return self

    def fit(self, loader: Iterable[Tensor | Mapping[str, Any]]) -> "MHPatchCore":
        """One pass over batches [B, 3, H, W], or over maps with "image"; then the bank is reduced to bank_size."""
        for images, _ in _batches(loader):
            self.partial_fit(images)
        self.learner_.freeze()
        return self

    def predict(self, images: Tensor | Iterable[Tensor | Mapping[str, Any]]) -> Prediction | LabelledPrediction:
        """Score images [B, 3, H, W], or a loader of them (or of maps with "image", "is_anomaly"?, "mask"?).

        Raises:
            ValueError: nothing was learned, or a wrong shape.
        """
        if isinstance(images, Tensor):
            return self._predict(images)
        predictions, labels, masks = [], [], []
        for batch, truth in _batches(images):
            predictions.append(self._predict(batch))
            labels += [int(v) for v in truth.get("is_anomaly", ())]
            masks += list(truth.get("mask", ()))
        if not predictions:
            raise ValueError("the loader gave no batch, expected at least one")
        scores, maps = (torch.cat(part) for part in zip(*predictions, strict=True))
        return LabelledPrediction(scores, maps, labels, masks)

    def save(self, path: str | Path) -> None:
        """Write the model as one safetensors file; the backbone is named and hashed, not contained."""
        config = {**self.config, "backbone_hash": hash_parameters(self.extractor.backbone)}
        save_file(self.learner_.state_dict(), path, {"mhpc": json.dumps(config)})

    @classmethod
    def load(
        cls, path: str | Path, device: torch.device | str = "cpu", backbone: nn.Module | None = None
    ) -> "MHPatchCore":
        """The model that `save` wrote.

        Args:
            backbone: the module, where the model was made with one.

        Raises:
            ValueError: not such a file, or the backbone's parameters are not those it was learned with.
        """
        try:
            with safe_open(path, framework="pt") as file:
                config = json.loads((file.metadata() or {})["mhpc"])
                expected = config.pop("backbone_hash")
                enums: dict[str, Any] = {
                    "algorithm": PatchCoreAlgorithm[config.pop("algorithm")],
                    "aggregation": PatchCoreAggregation[config.pop("aggregation")],
                    "feature_reduction": PatchCoreFeatureReduction[config.pop("feature_reduction")],
                    "distance": PatchCoreDistance[config.pop("distance")],
                }
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a model that MHPatchCore.save wrote: {error!r}") from None
        if backbone is None and "." in config["backbone"] and ":" not in config["backbone"]:
            raise ValueError(f"{path} was made with a module, {config['backbone']}; give that as backbone=")
        config["backbone"] = config["backbone"] if backbone is None else backbone
        model = cls(**config, **enums, device=device)
        if (found := hash_parameters(model.extractor.backbone)) != expected:
            raise ValueError(f"{path} was learned with a backbone of hash {expected}, the one given has {found}")
        model.learner_.load_state_dict(state)
        return model

    def _features(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if tuple(images.shape[2:]) != self.input_shape:
            H, W = self.input_shape
            raise ValueError(f"images have shape {list(images.shape)}, expected [B, 3, {H}, {W}]")
        return self.extractor(images)

    def _predict(self, images: Tensor) -> Prediction:
        features, grid = self._features(images)
        patches = self.learner_.score_patches(features)
        H, W = self.input_shape
        masks = anomaly_maps(patches, grid, (H, W))
        return Prediction(image_scores(patches, self.learner_.top_k).cpu(), masks.cpu())  # GPU sync


def _batches(loader: Iterable[Tensor | Mapping[str, Any]]) -> Iterator[tuple[Tensor, Mapping[str, Any]]]:
    for batch in loader:
        if isinstance(batch, Tensor):
            yield batch, {}
        elif isinstance(batch, Mapping) and isinstance(batch.get("image"), Tensor):
            yield batch["image"], batch
        else:
            raise ValueError(f'a batch is a {type(batch).__name__}, expected [B, 3, H, W] or a map with "image"')
