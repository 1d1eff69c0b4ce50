"""`mhpc coverage`: from a category and a model to the two pictures."""

from pathlib import Path

import torch

from mhpc.core.mh_patch_core import MHPatchCore
from mhpc.evaluation.coverage import cover, project
from mhpc.evaluation.evaluate import Run, evaluate_model, split_category
from mhpc.evaluation.mvtec import Category, MVTecDataset, denormalised
from mhpc.evaluation.options import Plane, Protocol
from mhpc.evaluation.patches import PatchSource
from mhpc.evaluation.plots import Tile, draw_coverage, draw_heat_maps

COMPARED = ("greedy_coreset", "random")


def draw_category(
    model: MHPatchCore,
    category: Category,
    folder: Path,
    protocol: Protocol,
    percentage: float,
    plane: Plane,
    passes: int = 1,
) -> list[Path]:
    """Write CATEGORY-coverage.png and CATEGORY-heatmaps.png to the folder, and return their paths.

    Raises:
        ValueError: a percentage outside (0, 1), or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be made: {error.strerror}; give another --output") from None
    H, W = model.input_shape
    split = split_category(category, (H, W), model.extract, protocol, keep=True)
    split.learn.load()
    rows = torch.cat([features.flatten(0, 1) for features in split.learn])
    coverages = tuple(cover(rows, name, percentage, protocol.device, protocol.seed) for name in COMPARED)
    projection = project(rows, coverages, plane, protocol.seed)
    paths = [folder / f"{category.name}-coverage.png", folder / f"{category.name}-heatmaps.png"]
    draw_coverage(paths[0], category.name, coverages, projection, plane, percentage)
    del rows
    _, run = evaluate_model(model, category, split, protocol, passes)
    draw_heat_maps(paths[1], category.name, _tiles(split.test, run, (H, W)), run.threshold)
    return paths


def _tiles(test: PatchSource, run: Run, input_shape: tuple[int, int]) -> list[Tile]:
    dataset = MVTecDataset(test.samples, input_shape)
    return [
        Tile(
            name=f"{sample.kind}/{sample.path.stem}",
            pixels=denormalised(dataset[i]["image"]),
            mask=test.masks[i],
            heat=run.maps[i],
            score=float(run.scores[i]),
            is_anomaly=sample.is_anomaly,
        )
        for i, sample in enumerate(test.samples)
    ]
