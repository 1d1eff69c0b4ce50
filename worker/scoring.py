"""Scores of images by the version that answers, on whichever thread."""

from mhpc.core.drift import DriftMonitor
from mhpc.core.patch_maps import PatchMaps
from worker.fetching import fetch
from worker.records import Scores, Serving


def begin_to_score(serving: Serving, monitor: DriftMonitor | None, heat_map: bool, maps: PatchMaps) -> Scores:
    """Begin to score images by the maps of their features; a GPU computes while other things are done.

    Args:
        monitor: that the scores are for, once they are there.

    Raises:
        ValueError: they are not finite; on a GPU `Line.verdicts` finds that out.
    """
    B, scorer = len(maps), serving.scorer
    if scorer is None:
        return Scores(serving, monitor, B, None)
    z = scorer.whiten_maps(maps, finite=maps.device.type != "cpu")
    scores, patches = scorer.score_maps(z, serving.threshold if heat_map else None)
    heats = (patches.reshape(B, *maps.grid),) if heat_map else ()
    return Scores(serving, monitor, B, fetch(scores, z.mean(1), *heats))
