"""Pictures, by matplotlib (extra `plots`): coreset coverage, and a sheet of heat maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mhpc.evaluation.coverage import Coverage, Projection
from mhpc.evaluation.options import Plane

# Okabe & Ito (2008), told apart by all common kinds of colour vision; the maps grow steadily in lightness.
VERMILLION, BLUE, YELLOW = "#D55E00", "#0072B2", "#F0E442"
DISTANCES, HEAT = "viridis", "inferno"
DPI = 150
PER_GROUP = 4  # test pictures of a group on the sheet
NAME_LENGTH = 22  # characters of a picture's name that a tile has room for
PLANES = {Plane.TSNE: "t-SNE", Plane.PCA: "PCA"}
SAMPLERS = {"greedy_coreset": "Greedy coreset", "random": "Random sample"}


@dataclass(frozen=True)
class Tile:
    """A test picture on the sheet: pixels [H, W, 3], its mask [H, W] if one is known, its anomaly map [H, W]."""

    name: str
    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None
    heat: NDArray[np.float32]
    score: float
    is_anomaly: bool


def draw_coverage(
    path: Path, name: str, coverages: Sequence[Coverage], projection: Projection, plane: Plane, percentage: float
) -> None:
    """Side by side, each coverage in the same plane: patches by their distance to the nearest chosen one."""
    figure = Figure(figsize=(12, 6.9), dpi=DPI, layout="constrained")
    axes: Any = figure.subplots(1, len(coverages), sharex=True, sharey=True, squeeze=False)[0]
    nearest = min(float(np.quantile(coverage.distances, 0.05)) for coverage in coverages)
    norm = Normalize(nearest, max(coverage.radius for coverage in coverages))
    for axis, coverage, chosen in zip(axes, coverages, projection.chosen, strict=True):
        points = _draw_plane(axis, coverage, projection, chosen, norm)
        axis.set_title(
            f"{SAMPLERS.get(coverage.sampler, coverage.sampler)}\n"
            f"covering radius {coverage.radius:.3g}, mean distance {coverage.distances.mean():.3g}",
            fontsize=13,
        )
    bar = figure.colorbar(points, ax=list(axes), shrink=0.9, pad=0.01, extend="min")
    bar.set_label("distance to the nearest chosen patch", fontsize=12)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=12, frameon=False)
    n, N = len(coverages[0].indices), len(coverages[0].distances)
    figure.suptitle(
        f"{name}: {n:,} of {N:,} patches chosen ({100 * percentage:g} %), "
        f"{len(projection.shown):,} of all shown in a {PLANES[plane]} plane",
        fontsize=15,
    )
    figure.savefig(path)


def _draw_plane(
    axis: Axes, coverage: Coverage, projection: Projection, chosen: NDArray[np.bool_], norm: Normalize
) -> Any:
    distances = coverage.distances[projection.shown]
    others = np.flatnonzero(~chosen)
    order = others[np.argsort(distances[others])]  # the farthest on top: holes are what one looks for
    x, y = projection.points[order].T
    points = axis.scatter(x, y, c=distances[order], cmap=DISTANCES, norm=norm, s=10, linewidths=0, label="patch")
    x, y = projection.points[chosen].T
    axis.scatter(x, y, s=22, c=VERMILLION, edgecolors="white", linewidths=0.5, label="chosen patch")
    x, y = projection.points[projection.shown == coverage.worst].T
    axis.scatter(x, y, s=160, c="none", edgecolors="black", linewidths=1.8, label="patch at the covering radius")
    axis.set_xticks([])
    axis.set_yticks([])
    return points


def draw_heat_maps(path: Path, name: str, tiles: Sequence[Tile], threshold: float | None) -> None:
    """The worst and the best test pictures: each with its mask's outline, and its anomaly map over it."""
    groups = _groups(tiles)
    columns = 2 * PER_GROUP
    figure = Figure(figsize=(1.85 * columns, 2.05 * len(groups) + 1.2), dpi=DPI, layout="constrained")
    axes: Any = figure.subplots(len(groups), columns, squeeze=False)
    lowest, highest = _heat_range(tiles, threshold)
    norm = Normalize(lowest, highest)
    for row, (title, members) in zip(axes, groups, strict=True):
        for axis in row:
            axis.axis("off")
        row[0].text(-0.12, 0.5, title, transform=row[0].transAxes, rotation=90, ha="center", va="center", fontsize=12)
        for i, tile in enumerate(members):
            heat = _draw_tile(row[2 * i], row[2 * i + 1], tile, threshold, norm)
    saturated = max(float(tile.heat.max()) for _, members in groups for tile in members) > highest
    extend = "max" if saturated else "neither"
    bar = figure.colorbar(heat, ax=list(axes.flat), shrink=0.6, pad=0.01, extend=extend)
    line = "" if threshold is None else f" (line: the image score's threshold, {threshold:.3g})"
    bar.set_label(f"anomaly map{line}", fontsize=12)
    if threshold is not None:
        bar.ax.axhline(threshold, color="white", linewidth=2)
    figure.suptitle(f"{name}: the worst and the best of {len(tiles)} test pictures", fontsize=16)
    figure.supxlabel(
        "Left of each pair: the picture, the mask of its defect outlined. Right: the anomaly map over it. Above: the "
        "image's score" + (", and what the threshold makes of it." if threshold is not None else "; no threshold."),
        fontsize=11,
    )
    figure.savefig(path)


def _groups(tiles: Sequence[Tile]) -> list[tuple[str, list[Tile]]]:
    """The rows of the sheet. None stands in two: of few pictures, the better half at most is the best."""
    by_score = sorted(tiles, key=lambda tile: tile.score)
    bad, good = [t for t in by_score if t.is_anomaly], [t for t in by_score if not t.is_anomaly]
    n_bad, n_good = len(bad) // 2, len(good) // 2  # the best
    groups = [
        ("worst: defective,\nlowest scores", bad[: len(bad) - n_bad][:PER_GROUP]),
        ("worst: good,\nhighest scores", good[n_good:][::-1][:PER_GROUP]),
        ("best: defective,\nhighest scores", bad[len(bad) - n_bad :][::-1][:PER_GROUP]),
        ("best: good,\nlowest scores", good[:n_good][:PER_GROUP]),
    ]
    return [(title, members) for title, members in groups if members]


def _heat_range(tiles: Sequence[Tile], threshold: float | None) -> tuple[float, float]:
    """From what is usual on good pictures to a fifth above the threshold, or to what the defective reach at most."""
    usual = float(np.median([tile.heat for tile in tiles if not tile.is_anomaly]))
    top = float(np.median([tile.heat.max() for tile in tiles if tile.is_anomaly]))
    return usual, max(top, 1.2 * threshold if threshold is not None else top, usual * 1.01)


def _draw_tile(left: Axes, right: Axes, tile: Tile, threshold: float | None, norm: Normalize) -> Any:
    left.imshow(tile.pixels)
    if tile.mask is not None and tile.mask.any():
        for color, width in (("black", 2.6), (YELLOW, 1.3)):  # readable on light and dark
            left.contour(tile.mask, [0.5], colors=color, linewidths=width)
    grey = tile.pixels.mean(2) / 255
    right.imshow(grey, cmap="gray", vmin=0, vmax=1)
    heat = right.imshow(tile.heat, cmap=HEAT, norm=norm, alpha=np.clip(norm(tile.heat), 0, 0.8))  # cold: see through
    left.set_title(_shortened(tile.name), fontsize=8, loc="left")
    verdict, right_one = _verdict(tile, threshold)
    color = "black" if threshold is None else BLUE if right_one else VERMILLION
    right.set_title(f"{tile.score:#.3g} {verdict}", fontsize=10, loc="left", color=color)
    return heat


def _verdict(tile: Tile, threshold: float | None) -> tuple[str, bool]:
    """What the threshold makes of a picture, and whether that is right."""
    if threshold is None:
        return "", True
    called = tile.score > threshold
    words = ("missed", "found") if tile.is_anomaly else ("passed", "false alarm")
    return words[called], called == tile.is_anomaly


def _shortened(name: str) -> str:
    if len(name) <= NAME_LENGTH:
        return name
    half = (NAME_LENGTH - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
