"""What bfloat16 does to accuracy: the same parts learned and scored in float32, in bfloat16, and one after the other.

"mixed" learned in one precision and scores in the other: what a worker is spared, since a line keeps to the precision
that it was learned in.
"""

from itertools import product

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mhpc.core.backbones import load_backbone
from mhpc.core.learner import OnePassLearner
from mhpc.core.patch_features import PatchFeatures
from mhpc.core.whitening import ZSpace
from tests.benchmarks.bundled_backbone import Pictures, discs, features, tiles
from tests.benchmarks.learning import auroc
from tests.benchmarks.tiles import TILES, mobilenet_features

PRECISIONS = (torch.float32, torch.bfloat16)
BANK, RATIO, TOP_K = 6000, 0.9, 20  # the worker's


def in_precision(extract: PatchFeatures, pictures: Pictures, dtype: torch.dtype) -> dict[str, Tensor]:
    """Features [N, P, D] in float32, by kind, of a backbone that computes in `dtype`, as the worker's does."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return {kind: features(extract, of_kind).float() for kind, of_kind in pictures.items()}


def scored(learned: Tensor, tests: dict[str, Tensor]) -> dict[str, Tensor]:
    learner = OnePassLearner(BANK, ZSpace(pca_variance_ratio=RATIO), top_k=TOP_K)
    learner.partial_fit(learned)
    learner.freeze()
    return {kind: torch.cat([learner.score(x) for x in maps.split(8)]) for kind, maps in tests.items()}


def report(part: str, name: str, extract: PatchFeatures, pictures: Pictures, table: Table) -> None:
    found = {dtype: in_precision(extract, pictures, dtype) for dtype in PRECISIONS}
    fine, coarse = (found[dtype]["learn"] for dtype in PRECISIONS)
    apart = float((fine - coarse).norm() / fine.norm())
    alone = dict[torch.dtype, float]()
    for scoring, learned in sorted(product(PRECISIONS, PRECISIONS), key=lambda pair: pair[0] is not pair[1]):
        tests = {kind: maps for kind, maps in found[scoring].items() if kind != "learn"}
        scores = scored(found[learned]["learn"], tests)
        good = float(scores["good"].mean())
        shift = good / alone.setdefault(learned, good)
        names = (str(dtype).removeprefix("torch.") for dtype in (learned, scoring))
        area = auroc({kind: of_kind.numpy() for kind, of_kind in scores.items()})
        table.add_row(part, name, *names, f"{area:.4f}", f"{apart:.3f}", f"{shift:.3f}")


@torch.inference_mode()
def main() -> None:
    table = Table(
        "parts", "backbone", "learned in", "scored in", "image AUROC", "features apart", "good scores, to unmixed"
    )
    tiny = PatchFeatures(load_backbone("tiny", "bundled"), ["layer2", "layer3"])
    report("discs", "tiny", tiny, discs(), table)
    teacher = mobilenet_features()
    if teacher is not None:
        for name, extract in (("tiny", tiny), ("mobilenet_v1", teacher)):
            report("tiles", name, extract, tiles(TILES), table)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
