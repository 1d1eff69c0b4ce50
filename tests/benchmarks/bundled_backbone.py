"""The bundled backbone against its teacher and against resnet18: `python -m tests.benchmarks.bundled_backbone`.

Accuracy: image AUROC on rendered discs and, where they are at hand, on magnetic tiles; 200 good parts
learned, features whitened by PCA, once with a greedy bank (batch) and once in one pass; the difference from the teacher
is paired, over bootstraps of the test parts. Speed: images per second of the bare forward pass up to `layer3`,
channels-last, as a ratio to resnet18's of the same process; the medians over seven processes.
"""

import io
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mhpc.core.backbones import load_backbone
from mhpc.core.learner import OnePassLearner
from mhpc.core.patch_features import IMAGENET_DEVIATION, IMAGENET_MEAN, PatchFeatures
from mhpc.core.scoring import image_scores
from mhpc.core.whitening import ZSpace
from mhpc.linalg import batch_moments, nearest
from mhpc.sampler import farthest_first
from tests.benchmarks.learning import auroc, paired_interval
from tests.benchmarks.tiles import TILES, mobilenet_features
from worker.demo.parts import rendered_parts

LEARNED = 200
BANK = 4000
RATIOS = (0.9, 0.99)
PRECISIONS = (torch.float32, torch.bfloat16)
PROCESSES = 7
Pictures = dict[str, list[Image.Image]]  # by kind; "learn" and "good" always
PatchScores = Callable[[Tensor], Tensor]  # patch scores [images, P] of features [images, P, D]


def discs() -> Pictures:
    pictures: Pictures = {}
    for part in rendered_parts(learn=LEARNED, calibrate=0, good=80, per_kind=40, seed=7):
        kind = "learn" if part.split == "learn" else str(part.kind)
        pictures.setdefault(kind, []).append(Image.open(io.BytesIO(part.read())))
    return pictures


def tiles(root: Path) -> Pictures:
    learn = sorted((root / "train" / "good").iterdir())
    chosen = np.random.default_rng(0).permutation(len(learn))[:LEARNED]
    pictures: Pictures = {"learn": [Image.open(learn[i]) for i in chosen]}
    for folder in sorted((root / "test").iterdir()):
        pictures[folder.name] = [Image.open(path) for path in sorted(folder.iterdir())]
    return pictures


def features(extract: PatchFeatures, pictures: list[Image.Image]) -> Tensor:
    """[images, P, D]"""
    resized = [np.asarray(p.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)) for p in pictures]
    images = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
    images = (images - IMAGENET_MEAN) / IMAGENET_DEVIATION
    return torch.cat([extract(batch)[0] for batch in images.split(8)])


def batch_scores(learn: Tensor, ratio: float) -> PatchScores:
    """Batch PatchCore in whitened space."""
    rows = learn.flatten(0, 1)
    whiten = ZSpace(pca_variance_ratio=ratio).of_moments(batch_moments(rows))
    z = whiten(rows)
    bank = z[farthest_first(z, BANK).indices]
    return lambda test: torch.stack([nearest(whiten(image), bank)[0] for image in test])


def one_pass_scores(learn: Tensor, ratio: float) -> PatchScores:
    learner = OnePassLearner(BANK, ZSpace(pca_variance_ratio=ratio))
    learner.partial_fit(learn)
    learner.freeze()
    return lambda test: torch.cat([learner.score_patches(images) for images in test.split(8)])


def patch_scores(extract: PatchFeatures, pictures: Pictures) -> dict[tuple[str, float], dict[str, Tensor]]:
    """Of all test pictures by kind, [images, P] each, for both ways to learn and each share of the variance."""
    maps = {kind: features(extract, of_kind) for kind, of_kind in pictures.items()}
    learn = maps.pop("learn")
    found = {}
    for ratio in RATIOS:
        for how, learned in (("batch", batch_scores), ("one pass", one_pass_scores)):
            score = learned(learn, ratio)
            found[how, ratio] = {kind: score(m) for kind, m in maps.items()}
    return found


def report(part: str, found: dict[str, dict[tuple[str, float], dict[str, Tensor]]]) -> Table:
    """A row for each way to learn and image score; with a teacher, the paired difference from it."""
    kinds = [kind for kind in next(iter(found["tiny"].values())) if kind != "good"]
    table = Table(
        "learned", "PCA", "score", "tiny", *kinds, "teacher", "less teacher (95 %)", title=f"{part}, image AUROC"
    )
    for (how, ratio), tiny in found["tiny"].items():
        for top_k in (1, 20):
            runs = [tiny, found["mobilenet_v1"][how, ratio]] if "mobilenet_v1" in found else [tiny]
            ours, *theirs = [{kind: image_scores(s, top_k).numpy() for kind, s in run.items()} for run in runs]
            by_kind = [f"{auroc({k: ours[k] for k in ('good', kind)}):.4f}" for kind in kinds]
            cells = [f"{auroc(scores):.4f}" for scores in (ours, *theirs)]
            for other in theirs:
                low, high = paired_interval([(ours, other)])
                cells.append(f"{auroc(ours) - auroc(other):+.4f} ({low:+.4f} to {high:+.4f})")
            row = [how, f"{ratio}", "max" if top_k == 1 else f"top {top_k}", cells[0], *by_kind, *cells[1:]]
            table.add_row(*row)
    return table


@torch.inference_mode()
def images_per_second(networks: list[nn.Module], precision: torch.dtype, repeats: int = 60) -> list[float]:
    """Of the fastest batch of 8: what else the machine does only adds. The networks take turns, so it strikes both."""
    images = torch.randn(8, 3, 224, 224).to(memory_format=torch.channels_last)
    seconds: list[list[float]] = [[] for _ in networks]
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        for _ in range(repeats):
            for network, taken in zip(networks, seconds, strict=True):
                start = time.perf_counter()
                network(images)
                taken.append(time.perf_counter() - start)
    return [8 / min(taken) for taken in seconds]


def speeds(_: int) -> list[list[float]]:
    """Images per second [precision][tiny, resnet18], of a process of its own: memory lies otherwise in each."""
    tiny = load_backbone("tiny", weights="bundled")
    resnet18 = nn.Sequential(*list(torchvision.models.resnet18(weights=None).children())[:7])  # conv1 ... layer3
    networks = [network.eval().to(memory_format=torch.channels_last) for network in (tiny, resnet18)]
    return [images_per_second(networks, precision) for precision in PRECISIONS]


def speed() -> Table:
    table = Table("precision", "tiny, images/s", "resnet18 to layer3, images/s", "ratio", "lowest", "highest")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        measured = np.array(list(processes.map(speeds, range(PROCESSES))))  # [processes, precisions, 2]
    for i, precision in enumerate(PRECISIONS):
        ratios = measured[:, i, 0] / measured[:, i, 1]
        ours, theirs = np.median(measured[:, i], axis=0)
        figures = (f"{r:.2f}" for r in (np.median(ratios), ratios.min(), ratios.max()))
        table.add_row(str(precision).removeprefix("torch."), f"{ours:.0f}", f"{theirs:.0f}", *figures)
    return table


def main() -> None:
    console = Console(width=130)
    tiny = load_backbone("tiny", weights="bundled")
    console.print(speed())
    extractors = {"tiny": PatchFeatures(tiny, ["layer2", "layer3"])}
    parts = {"discs": discs()}
    teacher = mobilenet_features()
    if teacher is not None:
        extractors["mobilenet_v1"] = teacher
        parts["tiles"] = tiles(TILES)
    for part, pictures in parts.items():
        console.print(report(part, {name: patch_scores(extract, pictures) for name, extract in extractors.items()}))


if __name__ == "__main__":
    main()
