"""Exact image scores by groups, bounds and refinement against brute force, in one process on the same patches.

Features are MobileNet v1's of magnetic tiles where ../shared/data is at hand, else the bundled backbone's of rendered
discs; a bank of 6,000 is learned of 80 parts. Work is counted in distances; 1 is every patch against every row.
"""

import io
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from mhpc.core.backbones import load_backbone
from mhpc.core.learner import OnePassLearner
from mhpc.core.neighbours import Neighbours
from mhpc.core.patch_features import PatchFeatures
from mhpc.core.scoring import image_scores, patch_scores
from mhpc.core.whitening import ZSpace
from tests.benchmarks.bundled_backbone import features
from tests.benchmarks.coreset import seconds
from tests.benchmarks.tiles import TILES, mobilenet_features, tile_features
from worker.demo.parts import rendered_parts

LEARNED, BANK, B = 80, 6000, 8
RATIOS = (0.9, 0.99)
TOP_KS = (1, 20)
REPEATS = 7


def parts() -> tuple[Tensor, dict[str, Tensor]]:
    """Features to learn [LEARNED, P, D], and B of each kind to score."""
    extract = mobilenet_features()
    if extract is not None:
        folders = {"good": TILES / "test" / "good", "break": TILES / "test" / "break"}
        learn = tile_features(extract, TILES / "train" / "good", LEARNED)
        return learn, {kind: tile_features(extract, folder, B) for kind, folder in folders.items()}
    print("rendered discs, bundled backbone:")
    extract = PatchFeatures(load_backbone("tiny", "bundled"), ["layer2", "layer3"])
    pictures: dict[str, list[Image.Image]] = {}
    for part in rendered_parts(learn=LEARNED, calibrate=0, good=B, per_kind=B, seed=7):
        kind = "learn" if part.split == "learn" else str(part.kind)
        pictures.setdefault(kind, []).append(Image.open(io.BytesIO(part.read())))
    learn = features(extract, pictures.pop("learn"))
    return learn, {kind: features(extract, images) for kind, images in list(pictures.items())[:2]}


def in_turns(*calls: Callable[[], object]) -> list[float]:
    """Seconds of the fastest of each call; in turns, so that all meet the same machine."""
    rounds = [[seconds(call) for call in calls] for _ in range(REPEATS)]
    return [min(column) for column in zip(*rounds, strict=True)]


def bounds_share(index: Neighbours, z: Tensor) -> float:
    """Distances that bounds take, in those of brute force: every patch to the centres and to one group's rows."""
    sizes = torch.from_numpy(index.sizes)
    groups = torch.from_numpy(index.nearest_groups(z, 1)).long()
    return (len(sizes) + float(sizes[groups].double().mean())) / len(index)


def bfloat16_products(z: Tensor, memory: Tensor) -> Callable[[], object]:
    """The products alone, as a lower limit of what candidates by bfloat16 cost; their reduction comes on top."""
    rows, columns = z.flatten(0, 1).bfloat16(), memory.bfloat16().T.contiguous()
    return lambda: [block @ columns for block in rows.split(512)]


def report(index: Neighbours, z: Tensor, memory: Tensor, kind: str) -> None:
    exact = torch.cat([torch.cdist(image[None].double(), memory.double()[None]).amin(2) for image in z])
    brute, products = in_turns(lambda: patch_scores(z, memory), bfloat16_products(z, memory))
    print(f"  {kind}: bfloat16 products alone {products / brute:.2f} of brute force's time ({1000 * brute:.0f} ms)")
    for top_k in TOP_KS:
        found = index.refine(z, index.bounds(z), top_k)
        error = (image_scores(found.distances, top_k) - image_scores(exact, top_k)).abs().max()
        brute, ours = in_turns(
            lambda: image_scores(patch_scores(z, memory), top_k),  # noqa: B023 - called at once
            lambda: index.refine(z, index.bounds(z), top_k),  # noqa: B023 - the same
        )
        work = bounds_share(index, z), float(found.exact.float().mean())
        print(
            f"  {kind}, top {top_k}: {ours / brute:.2f} of the time, {sum(work):.2f} of the work "
            f"(bounds {work[0]:.2f}, refined {work[1]:.2f}); scores within {float(error):.0e} of float64's"
        )


def main() -> None:
    learn, test = parts()
    for ratio in RATIOS:
        learner = OnePassLearner(BANK, ZSpace(pca_variance_ratio=ratio))
        learner.partial_fit(learn)
        learner.freeze()
        memory = learner.memory_
        build = seconds(lambda memory=memory: Neighbours(memory), 3)  # type: ignore[misc]  # mypy sees no default's type
        index = Neighbours(memory)
        print(f"{len(memory)} x {memory.shape[1]}, {B} images; {len(index.sizes)} groups made in {1000 * build:.0f} ms")
        for kind, x in test.items():
            report(index, learner.whiten(x), memory, kind)
