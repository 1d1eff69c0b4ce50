from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mhpc.evaluation.coverage import SHOWN, SHOWN_CHOSEN, cover, project
from mhpc.evaluation.options import Plane
from mhpc.evaluation.plots import Tile, draw_coverage, draw_heat_maps
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


@pytest.mark.parametrize(("good", "bad", "threshold"), [(9, 9, 10.0), (1, 2, None)])
def test_the_sheet_is_drawn_with_few_pictures_and_without_a_threshold(
    tmp_path: Path, good: int, bad: int, threshold: float | None
) -> None:
    draw_heat_maps(tmp_path / "sheet.png", "plates", tiles(good, bad), threshold)
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 10
