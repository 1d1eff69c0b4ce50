from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mhpc.sampler import GreedyCoresetSampler, farthest_first

Matrix = NDArray[np.float64]


def textbook(x: Matrix, n: int, distances: Matrix | None = None, radius: float = 0.0) -> tuple[list[int], Matrix]:
    """Gonzalez's loop, word for word: the rows chosen, and the distances that they leave."""
    chosen: list[int] = []
    d = distances
    if d is None:
        chosen = [int(np.linalg.norm(x - x.mean(0), axis=1).argmax())]
        d = np.linalg.norm(x - x[chosen[0]], axis=1)
    while len(chosen) < n and d.max() > radius:
        chosen.append(int(d.argmax()))
        d = np.minimum(d, np.linalg.norm(x - x[chosen[-1]], axis=1))
    return chosen, d


def heavy_tailed(N: int, D: int, seed: int = 0) -> Matrix:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((N, D)) * rng.gamma(2, 1, (N, 1)) + rng.normal(0, 3, D)


@pytest.mark.parametrize("candidates", [1, 7, 64, 2048])
@pytest.mark.parametrize(("N", "D", "n"), [(2, 3, 2), (100, 1, 30), (400, 5, 120), (150, 64, 150), (5000, 16, 80)])
def test_the_selection_is_the_textbook_loops(N: int, D: int, n: int, candidates: int) -> None:
    x = heavy_tailed(N, D)
    indices, distances = textbook(x, n)
    found = farthest_first(torch.from_numpy(x), n, candidates=candidates)
    assert found.indices.tolist() == indices
    np.testing.assert_allclose(found.radius, distances.max(), atol=1e-6)


@pytest.mark.parametrize("candidates", [1, 10, 2048])
def test_distances_to_a_covered_set_and_a_radius_are_those_of_the_textbook_loop(candidates: int) -> None:
    x, covered = heavy_tailed(500, 6), heavy_tailed(20, 6, seed=1)
    distances = np.linalg.norm(x[:, None] - covered, axis=2).min(1)
    radius = float(np.quantile(distances, 0.6))
    indices, left = textbook(x, 500, distances, radius)
    found = farthest_first(torch.from_numpy(x), 500, torch.from_numpy(distances), radius, candidates)
    assert found.indices.tolist() == indices
    assert 0 < len(indices) < 500
    np.testing.assert_allclose(found.radius, left.max(), atol=1e-6)
    assert found.radius <= radius


def test_no_row_is_chosen_when_all_are_covered() -> None:
    x = torch.from_numpy(heavy_tailed(30, 4))
    found = farthest_first(x, 10, torch.full((30,), 0.5, dtype=torch.float64), radius=0.5)
    assert found.indices.tolist() == []
    assert found.radius == 0.5


def test_without_anything_covered_the_lowest_index_comes_first() -> None:
    x = torch.from_numpy(heavy_tailed(30, 4))
    found = farthest_first(x, 10, torch.full((30,), torch.inf, dtype=torch.float64), candidates=4)
    assert found.indices[0] == 0
    assert len(found.indices) == 10


@pytest.mark.parametrize("candidates", [1, 5, 2048])
def test_ties_go_to_the_lowest_index(candidates: int) -> None:
    rng = np.random.default_rng(0)
    half = rng.integers(-3, 4, (60, 3)).astype(np.float64)
    lattice = np.concatenate([half, -half])  # squares are whole numbers, so the loop's ties are exact
    indices, _ = textbook(lattice, 40)
    assert farthest_first(torch.from_numpy(lattice), 40, candidates=candidates).indices.tolist() == indices


@pytest.mark.parametrize("candidates", [40, 2048])
@pytest.mark.parametrize(("N", "D"), [(37, 33), (333, 16), (333, 128)])
def test_of_equal_rows_the_first_is_chosen(N: int, D: int, candidates: int) -> None:
    for seed in range(3):
        x = np.concatenate([heavy_tailed(N, D)] * 3)[np.random.default_rng(seed).permutation(3 * N)]
        indices, _ = textbook(x, N)
        assert farthest_first(torch.from_numpy(x), N, candidates=candidates).indices.tolist() == indices


def test_rows_that_are_all_equal_are_covered_by_one() -> None:
    found = farthest_first(torch.full((50, 8), 0.1, dtype=torch.float64), 10)
    assert found.indices.tolist() == [0]
    assert found.radius == 0


def test_float32_covers_as_well_as_the_textbook_loop() -> None:
    x = heavy_tailed(3000, 32)
    _, distances = textbook(x, 100)
    found = farthest_first(torch.from_numpy(x).float(), 100, candidates=50)
    covered = torch.cdist(torch.from_numpy(x), torch.from_numpy(x)[found.indices]).amin(1).max()
    np.testing.assert_allclose(covered, distances.max(), rtol=1e-4)
    np.testing.assert_allclose(found.radius, covered, rtol=1e-3)


@pytest.mark.parametrize("percentage", [0, 1, -0.1, 1.5, float("nan")])
def test_a_percentage_outside_0_to_1_is_refused(percentage: float) -> None:
    with pytest.raises(ValueError, match=r"^Percentage value not in \(0, 1\)\.$"):
        GreedyCoresetSampler(percentage)


def test_the_rows_come_back_unprojected_in_the_order_of_selection() -> None:
    x = heavy_tailed(300, 24)
    chosen = GreedyCoresetSampler(0.1, dimension_to_project_features_to=8).run(x)
    projected = GreedyCoresetSampler(0.1, dimension_to_project_features_to=8)._projected(torch.from_numpy(x))
    np.testing.assert_array_equal(chosen, x[textbook(projected.numpy(), 30)[0]])


def test_without_projection_the_rows_are_the_textbook_loops() -> None:
    x = heavy_tailed(300, 24)
    chosen = GreedyCoresetSampler(0.1).run(torch.from_numpy(x))
    np.testing.assert_array_equal(chosen, x[textbook(x, 30)[0]])


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.float32, torch.float64])
def test_tensors_give_tensors_and_arrays_give_arrays_of_the_same_type(kind: Any) -> None:
    x = heavy_tailed(200, 10)
    features: Any = torch.from_numpy(x).to(kind) if isinstance(kind, torch.dtype) else x.astype(kind)
    before = features.clone() if isinstance(features, Tensor) else features.copy()
    chosen = GreedyCoresetSampler(0.25, dimension_to_project_features_to=4).run(features)
    assert type(chosen) is type(features)
    assert chosen.dtype == features.dtype
    assert chosen.shape == (50, 10)
    assert bool((features == before).all())


@pytest.mark.parametrize(("N", "percentage", "n"), [(7, 0.1, 1), (1231, 1000 / 1231, 1000), (10, 0.99, 9)])
def test_the_share_is_rounded_down_to_one_at_least(N: int, percentage: float, n: int) -> None:
    assert len(GreedyCoresetSampler(percentage).run(heavy_tailed(N, 3))) == n


@pytest.mark.parametrize("shape", [(5,), (0, 3), (2, 3, 4)])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"features has shape \[.*\], expected \[N, D\]"):
        GreedyCoresetSampler(0.5).run(torch.zeros(shape))
