"""A batch predicted, from decoded pictures to scores, beside anomalib's PatchCore.

Both on the same pictures, backbone and weights, with a bank of the same rows; anomalib's own predict path as published:
float32, exact neighbours, re-weighting by nine, anomaly maps. Ours twice: mhpc set to the same method, whose scores are
held against theirs, and as a worker scores by default (whitened, mean of the top k, bfloat16 where a trial prefers it).
"""

import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from mhpc.core.backbones import BackboneName, load_backbone
from mhpc.core.mh_patch_core import (
    MHPatchCore,
    PatchCoreAggregation,
    PatchCoreAlgorithm,
    PatchCoreDistance,
    PatchCoreFeatureReduction,
)
from mhpc.core.patch_features import IMAGENET_DEVIATION, IMAGENET_MEAN
from tests.benchmarks.neighbours import in_turns
from worker.bench.pictures import as_images, jpeg_parts
from worker.configuration import load_settings
from worker.engine import Engine, pick_device
from worker.line import Line
from worker.message import decode_pixels
from worker.metrics import Metrics
from worker.scoring import verdicts_of
from worker.settings import LimitSettings, line_configs

BACKBONES = (BackboneName.resnet18, BackboneName.wideresnet50)
LAYERS = ("layer2", "layer3")
LEARNED, BANK, B = 64, 6000, 8
NEIGHBOURS = 9


def published(backbone: nn.Module, bank: Tensor, name: str) -> Any:
    """anomalib's model with our weights and bank [K, D]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

        model: Any = PatchcoreModel(LAYERS, name, pre_trained=False, num_neighbors=NEIGHBOURS)
    extractor = model.feature_extractor.feature_extractor
    missing = extractor.load_state_dict(backbone.state_dict(), strict=False).missing_keys
    if missing:
        raise SystemExit(f"anomalib's {name} has other names: {', '.join(missing[:3])}")
    model.memory_bank = bank
    return model.eval()


def same_method(backbone: nn.Module, pictures: Tensor) -> MHPatchCore:
    rows = len(pictures) * 28 * 28
    return MHPatchCore(
        backbone,
        LAYERS,
        algorithm=PatchCoreAlgorithm.VANILLA,
        aggregation=PatchCoreAggregation.GREEDY,
        feature_reduction=PatchCoreFeatureReduction.NONE,
        distance=PatchCoreDistance.EUCLIDEAN,
        coreset_percentage=BANK / rows,
        reweighting_num_nn=NEIGHBOURS,
        weights=None,
    ).fit([pictures])


def as_a_worker_scores(name: str, learned: list[Any], pixels: list[Any]) -> Any:
    """A call that judges the batch as a worker does, once a line has learned."""
    settings = load_settings(None, {
        "model": {"backbone": name, "weights": "random:0", "layers": LAYERS, "bank_size": BANK},
        "learning": {"images": LEARNED // 2, "converge": False}, "calibration": {"images": LEARNED // 2},
        "lines": [{"name": "press-3"}],
    }, environ={})  # fmt: skip
    engine = Engine(settings.model, pick_device("cpu"), Metrics())
    line = Line(line_configs(settings)[0], settings.model.pca_variance_ratio, engine.device)
    for start in range(0, len(learned), B):
        line.apply(f"{start + 1}-0", [engine.forward([engine.prepare(x) for x in learned[start : start + B]])])
    line.serving = line.served_by("0-0")
    ready = [engine.prepare(x) for x in pixels]
    print(f"  the worker: {str(engine.precision).removeprefix('torch.')}, phase {line.phase}")
    return lambda: verdicts_of(line.scores_by()(engine.maps(ready)))


def report(name: BackboneName) -> None:
    pixels = [decode_pixels(image, LimitSettings()) for image in as_images(jpeg_parts(LEARNED + B))]
    pictures = torch.stack([torch.from_numpy(x).permute(2, 0, 1) for x in pixels]).float() / 255
    pictures = (pictures - IMAGENET_MEAN) / IMAGENET_DEVIATION
    backbone = load_backbone(name, weights="random:0")
    ours = same_method(backbone, pictures[:LEARNED])
    theirs, batch = published(backbone, ours.learner_.memory_, name.value), pictures[LEARNED:]
    worker = as_a_worker_scores(name.value, pixels[:LEARNED], pixels[LEARNED:])
    with torch.inference_mode():
        apart = (theirs(batch).pred_score.flatten() / ours.predict(batch).scores - 1).abs().max()
        seconds = in_turns(lambda: theirs(batch), lambda: ours.predict(batch), worker)
    for who, took in zip(("anomalib", "mhpc, the same method", "a worker's scoring"), seconds, strict=True):
        print(f"  {who}: {B / took:.1f} images/s, {seconds[0] / took:.2f} times anomalib's")
    print(f"  scores of the same method differ by {float(apart):.0e} at most, relative")


def main() -> None:
    if importlib.util.find_spec("anomalib") is None:
        print("  anomalib is not installed: pip install -c constraints.txt -e '.[bench]'")
        return
    for name in BACKBONES:
        print(f"{name.value}, batches of {B}, bank of {BANK}:")
        report(name)


if __name__ == "__main__":
    main()
