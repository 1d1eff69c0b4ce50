from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mhpc.core.batch import PROJECT_FROM, PROJECTED, BatchLearner
from mhpc.core.choices import PatchCoreDistance, PatchCoreFeatureReduction
from mhpc.core.whitening import ZSpace
from mhpc.evaluation.coverage import SHOWN, SHOWN_CHOSEN, cover, project
from mhpc.evaluation.options import Plane
from mhpc.evaluation.plots import Tile, _groups, draw_coverage, draw_heat_maps
from mhpc.sampler import GreedyCoresetSampler


def rows(n: int = 300, d: int = 12) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0)) ** 3


def test_coverage_is_the_distance_to_the_nearest_chosen_row() -> None:
    x = rows()
    found = cover(x, "greedy_coreset", 0.1)
    assert len(found.indices) == 30
    assert torch.equal(x[found.indices], GreedyCoresetSampler(0.1).run(x))
    expected = torch.cdist(x, x[found.indices], compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert np.allclose(found.distances, expected.numpy(), atol=1e-4)
    assert found.radius == pytest.approx(float(expected.max()), abs=1e-4)
    assert found.distances[found.worst] == found.distances.max()


@pytest.mark.parametrize("d", [PROJECTED + 1, PROJECT_FROM])
def test_the_coreset_is_the_bank_of_vanilla_projected_or_not(d: int) -> None:
    x = rows(200, d)
    as_they_are = ZSpace(PatchCoreFeatureReduction.NONE, PatchCoreDistance.EUCLIDEAN)
    vanilla = BatchLearner(0.1, space=as_they_are, seed=3).fit([x[None]])
    assert torch.equal(x[cover(x, "greedy_coreset", 0.1, seed=3).indices], vanilla.memory_)


def test_a_greedy_coreset_covers_with_a_smaller_radius_than_a_random_sample() -> None:
    assert cover(rows(), "greedy_coreset", 0.1).radius < cover(rows(), "random", 0.1).radius


@pytest.mark.parametrize("plane", list(Plane))
def test_the_chosen_and_the_worst_covered_rows_are_among_those_shown(plane: Plane) -> None:
    x = rows()
    both = (cover(x, "greedy_coreset", 0.1), cover(x, "random", 0.1))
    projection = project(x, both, plane)
    assert projection.points.shape == (300, 2)
    assert np.isfinite(projection.points).all()
    for coverage, chosen in zip(both, projection.chosen, strict=True):
        assert set(projection.shown[chosen]) == set(coverage.indices)
        assert coverage.worst in projection.shown


def test_many_rows_are_drawn_from_not_shown_all() -> None:
    x = rows(SHOWN + 3000, 3)
    both = (cover(x, "greedy_coreset", 0.2), cover(x, "random", 0.2))
    projection = project(x, both, Plane.PCA)
    assert SHOWN <= len(projection.shown) <= SHOWN + 2 * SHOWN_CHOSEN + 2
    assert [int(chosen.sum()) for chosen in projection.chosen] == [SHOWN_CHOSEN, SHOWN_CHOSEN]


def test_the_picture_of_coverage_is_drawn(tmp_path: Path) -> None:
    both = (cover(rows(), "greedy_coreset", 0.1), cover(rows(), "random", 0.1))
    draw_coverage(tmp_path / "c.png", "plates", both, project(rows(), both, Plane.PCA), Plane.PCA, 0.1)
    pixels = np.asarray(Image.open(tmp_path / "c.png").convert("RGB"))
    assert pixels.shape == (1035, 1800, 3)
    vermillion = (np.abs(pixels.astype(int) - (0xD5, 0x5E, 0x00)).max(2) < 8).sum()
    assert vermillion > 60 * 20  # two times thirty dots


def tiles(good: int, bad: int) -> list[Tile]:
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 32), bool)
    mask[4:12, 4:12] = True
    return [
        Tile(f"kind/{i}", rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), mask if i < bad else None,
             rng.random((32, 32), dtype=np.float32) + (i < bad), float(i), i < bad)
        for i in range(good + bad)
    ]  # fmt: skip


@pytest.mark.parametrize(("n", "worst", "best"), [(1, 1, 0), (2, 1, 1), (5, 3, 2), (7, 4, 3), (8, 4, 4), (20, 4, 4)])
def test_no_picture_stands_among_the_worst_and_the_best(n: int, worst: int, best: int) -> None:
    groups = {title.replace("\n", " "): [tile.score for tile in tiles] for title, tiles in _groups(tiles(n, n))}
    bad, good = [float(i) for i in range(n)], [float(n + i) for i in range(n)]
    expected = {
        "worst: defective, lowest scores": bad[:worst],
        "worst: good, highest scores": good[::-1][:worst],
        "best: defective, highest scores": bad[::-1][:best],
        "best: good, lowest scores": good[:best],
    }
    assert groups == {title: scores for title, scores in expected.items() if scores}


@pytest.mark.parametrize(("threshold", "extend"), [(None, "max"), (10.0, "neither")])
def test_the_colour_bar_is_pointed_where_maps_go_beyond_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: float | None, extend: str
) -> None:
    said, colorbar = [], Figure.colorbar

    def spy(*given: Any, **named: Any) -> Any:
        said.append(named["extend"])
        return colorbar(*given, **named)

    monkeypatch.setattr(Figure, "colorbar", spy)
    draw_heat_maps(tmp_path / "sheet.png", "plates", tiles(3, 3), threshold)
    assert said == [extend]


@pytest.mark.parametrize(("good", "bad", "threshold"), [(9, 9, 10.0), (1, 2, None)])
def test_the_sheet_is_drawn_with_few_pictures_and_without_a_threshold(
    tmp_path: Path, good: int, bad: int, threshold: float | None
) -> None:
    draw_heat_maps(tmp_path / "sheet.png", "plates", tiles(good, bad), threshold)
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 10
