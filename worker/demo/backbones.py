"""Backbones beside one another on the demo's own parts: how fast they are here, and how well they rank the parts."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from rich import box
from rich.table import Table
from sklearn.metrics import roc_auc_score

from mhpc.core.backbones import BackboneName, pretrained_file
from mhpc.core.learner import OnePassLearner
from mhpc.core.whitening import ZSpace
from worker.demo.parts import Part
from worker.engine import Engine, pick_device
from worker.metrics import Metrics
from worker.settings import ModelSettings, ScoringSettings

PEERS = (BackboneName.tiny, BackboneName.resnet18, BackboneName.wideresnet50)
LEARNED = 120  # parts
BATCH = 8
TIMED = 3  # batches; what else the machine does only adds, so the fastest counts


@dataclass(frozen=True)
class BackboneFigures:
    """`images_per_second` of features of 224 x 224 pixels; `auroc` is None without weights, or where nobody knows."""

    backbone: str
    weights: str | None
    images_per_second: float
    auroc: float | None


def compare_backbones(own: ModelSettings, parts: Sequence[Part]) -> list[BackboneFigures]:
    """The demo's own backbone, then those of PEERS; without weights at hand, as nothing is downloaded, speed alone."""
    own = own.model_copy(update={"max_batch": BATCH})
    peers = [_settings(name) for name in PEERS if name.value != own.backbone]
    return [_figures(settings, parts) for settings in (own, *peers)]


def backbones_table(figures: Sequence[BackboneFigures]) -> Table:
    """One line a backbone, for a terminal of 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, title=f"Backbones on these parts ({LEARNED} learned)", title_justify="left")
    table.add_column("Backbone")
    table.add_column("Images per second", justify="right")
    table.add_column("AUROC")
    for row in figures:
        missing = "no weights at hand" if row.weights == "random:0" else "not known"
        auroc = missing if row.auroc is None else f"{row.auroc:.4f}"
        table.add_row(row.backbone, f"{row.images_per_second:.1f}", auroc)
    return table


def _settings(name: BackboneName) -> ModelSettings:
    at_hand = name is BackboneName.tiny or pretrained_file(name).is_file()
    return ModelSettings(backbone=name.value, weights=None if at_hand else "random:0", max_batch=BATCH)


def _figures(settings: ModelSettings, parts: Sequence[Part]) -> BackboneFigures:
    engine = Engine(settings, pick_device("auto"), Metrics())
    weights = settings.weights_source
    auroc = None if weights is not None and weights.startswith("random:") else _auroc(engine, parts)
    return BackboneFigures(settings.backbone, weights, _images_per_second(engine), auroc)


def _images_per_second(engine: Engine) -> float:
    images = torch.zeros(BATCH, 3, *engine.settings.input_shape)
    seconds = []
    for _ in range(TIMED):
        start = time.perf_counter()
        for features in engine.batches(images):
            features.cpu()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return BATCH / min(seconds)


def _auroc(engine: Engine, parts: Sequence[Part]) -> float | None:
    """Of all test parts whose truth is known, after learning from the first LEARNED as the worker does by default."""
    test = [part for part in parts if part.split == "test" and part.defective is not None]
    truth = [bool(part.defective) for part in test]
    if len(set(truth)) < 2:
        return None
    settings = engine.settings
    space = ZSpace(pca_variance_ratio=settings.pca_variance_ratio)
    learner = OnePassLearner(settings.bank_size, space, ScoringSettings().top_k, engine.device)
    for features in engine.batches(_image(engine, part) for part in [p for p in parts if p.split == "learn"][:LEARNED]):
        learner.partial_fit(features)
    learner.freeze()
    scores = [learner.score(features).cpu() for features in engine.batches(_image(engine, part) for part in test)]
    return float(roc_auc_score(truth, torch.cat(scores).numpy()))


def _image(engine: Engine, part: Part) -> torch.Tensor:
    with Image.open(io.BytesIO(part.read())) as picture:
        return engine.prepare(np.array(picture.convert("RGB")))
