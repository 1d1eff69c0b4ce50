"""Backbones beside one another on the demo's own parts: how fast they are here, and how well they rank the parts."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from worker.errors import WorkerError, one_line
from worker.metrics import Metrics
from worker.settings import ModelSettings, ScoringSettings

PEERS = (BackboneName.tiny, BackboneName.resnet18, BackboneName.wideresnet50)
LEARNED, TESTED = 120, 200  # parts
BATCH = 8
TIMED = 3  # batches; what else the machine does only adds, so the fastest counts


@dataclass(frozen=True)
class BackboneFigures:
    """`images_per_second` of features; where there is no `auroc`, or neither, `missing` says why."""

    backbone: str
    weights: str | None
    images_per_second: float | None
    auroc: float | None
    missing: str = ""


def compare_backbones(own: ModelSettings, parts: Sequence[Part]) -> list[BackboneFigures]:
    """The demo's own backbone, then those of PEERS; without weights at hand, as nothing is downloaded, speed alone."""
    own = own.model_copy(update={"max_batch": BATCH})
    peers = [name for name in PEERS if name.value != own.backbone]
    return [_figures(own, parts), *(_peer_figures(name, parts) for name in peers)]


def backbones_table(figures: Sequence[BackboneFigures]) -> Table:
    """One line a backbone, for a terminal of 80 columns."""
    title = f"Backbones on these parts (at most {LEARNED} learned, {TESTED} scored)"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("Backbone")
    table.add_column("Images per second", justify="right")
    table.add_column("AUROC", overflow="fold")
    for row in figures:
        speed = "" if row.images_per_second is None else f"{row.images_per_second:.1f}"
        table.add_row(row.backbone, speed, row.missing if row.auroc is None else f"{row.auroc:.4f}")
    return table


def _peer_figures(name: BackboneName, parts: Sequence[Part]) -> BackboneFigures:
    """A peer that cannot be had, or is too large for the device, costs the demo one cell."""
    at_hand = name is BackboneName.tiny or pretrained_file(name).is_file()
    settings = ModelSettings(backbone=name.value, weights=None if at_hand else "random:0", max_batch=BATCH)
    try:
        found = _figures(settings, parts)
    except (WorkerError, RuntimeError) as error:
        return BackboneFigures(name.value, settings.weights_source, None, None, one_line(str(error)))
    return found if at_hand else replace(found, missing="no weights at hand")


def _figures(settings: ModelSettings, parts: Sequence[Part]) -> BackboneFigures:
    engine = Engine(settings, pick_device("auto"), Metrics())
    weights = settings.weights_source
    speed = _images_per_second(engine)
    if weights is not None and weights.startswith("random:"):
        return BackboneFigures(settings.backbone, weights, speed, None, "untrained")
    auroc = _auroc(engine, parts)
    return BackboneFigures(settings.backbone, weights, speed, auroc, "" if auroc is not None else "truth not known")


def _images_per_second(engine: Engine) -> float:
    images = torch.zeros(BATCH, 3, *engine.settings.input_shape, dtype=torch.uint8)
    seconds = []
    for _ in range(TIMED):
        start = time.perf_counter()
        for features in engine.batches(images):
            features.cpu()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return BATCH / min(seconds)


def _auroc(engine: Engine, parts: Sequence[Part]) -> float | None:
    """Of good and of defective test parts, after learning from the first LEARNED as the worker does by default."""
    good, defective = ([p for p in parts if p.split == "test" and p.defective is kind] for kind in (False, True))
    if not good or not defective:
        return None
    test = [*good[: TESTED // 2], *defective[: TESTED // 2]]
    truth = [bool(part.defective) for part in test]
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
