"""Scores of images by the version that answers, on whichever thread."""

from collections.abc import Callable

import torch
from torch import Tensor

from mhpc.core.patch_maps import PatchMaps
from mhpc.linalg import all_finite
from worker.message import heat_maps
from worker.records import Scores, Serving, Verdict


def begin_to_score(serving: Serving, heat_map: bool, maps: PatchMaps) -> Scores:
    """Begin to score images by the maps of their features; a GPU computes while other things are done.

    Raises:
        ValueError: they are not finite; on a GPU `verdicts_of` finds that out.
    """
    B, scorer = len(maps), serving.scorer
    if scorer is None:
        return Scores(serving, B, None)
    z = scorer.whiten_maps(maps, finite=maps.device.type != "cpu")
    scores, patches = scorer.score_maps(z, serving.threshold if heat_map else None)
    heats = (patches.reshape(B, *maps.grid),) if heat_map else ()
    return Scores(serving, B, fetch(scores, z.mean(1), *heats))


def verdicts_of(scored: Scores) -> list[Verdict]:
    """Verdicts once the scores are there; the drift monitor watches, if the version had one.

    Raises:
        ValueError: the features were not finite.
    """
    if scored.arrived is None:
        return [Verdict(None, None)] * scored.images
    scores, means, *maps = scored.arrived()
    if not all_finite(means):
        raise ValueError("features hold NaN or infinite values; is the backbone's output sound?")
    if scored.serving.monitor is not None:
        scored.serving.monitor.update(scores, means)
    heats = heat_maps(maps[0].numpy()) if maps else [None] * scored.images
    return [Verdict(score, heat) for score, heat in zip(scores.tolist(), heats, strict=True)]


def fetch(*tensors: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Begin to copy tensors of one device to the CPU; what is returned waits for the copies and gives them."""
    device = tensors[0].device
    if device.type == "cpu":
        return lambda: tensors
    # Copies out of pinned memory alone run beside the CPU.
    copies = tuple(
        torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t.detach(), non_blocking=True) for t in tensors
    )
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(device))

    def wait() -> tuple[Tensor, ...]:
        arrived.synchronize()  # GPU sync
        return copies

    return wait
