import resource
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor

from mhpc import farthest
from mhpc.farthest import farthest_first

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


def clustered(N: int, D: int, seed: int = 0) -> Matrix:
    rng = np.random.default_rng(seed)
    centers = rng.normal(0, 5, (20, D))
    return centers[rng.integers(0, 20, N)] + rng.normal(0, 0.3, (N, D))


def far_from_the_origin(N: int, D: int, seed: int = 0) -> Matrix:
    return 1000 + np.random.default_rng(seed).random((N, D))


@pytest.mark.parametrize("candidates", [1, 7, 64, 2048])
@pytest.mark.parametrize(("N", "D", "n"), [(2, 3, 2), (100, 1, 30), (400, 5, 120), (150, 64, 150), (5000, 16, 80)])
def test_the_selection_is_the_textbook_loops(N: int, D: int, n: int, candidates: int) -> None:
    x = heavy_tailed(N, D)
    indices, distances = textbook(x, n)
    found = farthest_first(torch.from_numpy(x), n, candidates=candidates)
    assert found.indices.tolist() == indices
    np.testing.assert_allclose(found.radius, distances.max(), atol=1e-6)


@pytest.mark.parametrize("stretch", [1.0, 1.1, 3.0])
def test_upper_bounds_choose_the_same_rows_and_are_made_exact_for_few(stretch: float) -> None:
    x, covered = torch.from_numpy(heavy_tailed(3000, 6)), torch.from_numpy(heavy_tailed(200, 6, seed=1))
    distances = torch.cdist(x, covered).amin(1)
    radius = float(distances.quantile(0.8))
    bounds = distances * (1 + (stretch - 1) * torch.rand(3000, generator=torch.Generator().manual_seed(0)))
    asked: list[int] = []

    def exactly(index: Tensor) -> Tensor:
        asked.extend(index.tolist())
        return distances[index]

    expected = farthest_first(x, len(x), distances, radius)
    found = farthest_first(x, len(x), bounds, radius, exactly=exactly)
    assert torch.equal(found.indices, expected.indices)
    assert expected.radius * (1 - 1e-9) <= found.radius <= radius * (1 + 1e-9)
    assert len(asked) == len(set(asked))
    assert len(asked) < int((bounds > radius).sum())


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_equal_rows_one_is_chosen_whatever_rounding_says(dtype: torch.dtype) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        distinct = torch.randn(95, 20, generator=generator, dtype=dtype)
        x = distinct.repeat(8, 1)[torch.randperm(760, generator=generator)]
        found = farthest_first(x, 382)
        assert len(found.indices) == len(x[found.indices].unique(dim=0)) == 95
        assert found.radius == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize("covered", [0, 5])
@pytest.mark.parametrize("seed", range(6))
def test_with_a_radius_it_stops_where_the_textbook_loop_does(seed: int, covered: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(farthest, "KNOWN", 5)  # so that bounds above the radius go out of date
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3000, 8, generator=generator, dtype=torch.float64)
    distances = torch.cdist(x, x[:covered]).amin(1) if covered else torch.full((3000,), torch.inf, dtype=x.dtype)
    for radius in (1.0, 1.5, 2.0, 2.5):
        expected, left = [], distances.clone()
        while float(left.max()) > radius:
            expected.append(int(left.argmax()))
            left = torch.minimum(left, (x - x[expected[-1]]).norm(dim=1))
        found = farthest_first(x, len(x), distances, radius)
        assert found.indices.tolist() == expected
        assert found.radius == pytest.approx(float(left.max()), abs=1e-6)


def test_rows_whose_squares_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows \[20, 4\] torch.float32 reach .*e\+2\d, whose square overflows"):
        farthest_first(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) * 1e20, 5)


@pytest.mark.parametrize("make", [heavy_tailed, clustered, far_from_the_origin])
@pytest.mark.parametrize("members", [1, 50, 2000])
def test_looking_at_few_rows_in_a_round_changes_nothing(make: Any, members: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(farthest, "MEMBERS", members)
    monkeypatch.setattr(farthest, "FIRST", 2)
    monkeypatch.setattr(farthest, "MOST", 7)
    monkeypatch.setattr(farthest, "BLOCK", 300)
    x = make(3000, 12)
    indices, distances = textbook(x, 400)
    found = farthest_first(torch.from_numpy(x), 400, candidates=30)
    assert found.indices.tolist() == indices
    np.testing.assert_allclose(found.radius, distances.max(), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.int64, st.tuples(st.integers(1, 40), st.integers(1, 4)), elements=st.integers(-3, 3)),
    st.integers(1, 45),
    st.integers(1, 12),
)
def test_on_whole_numbers_rows_and_radius_are_the_textbook_loops(x: Any, n: int, candidates: int) -> None:
    # Scaled so that the mean is whole, too: then every square is exact, and so are the ties.
    whole = (x * len(x)).astype(np.float64)
    indices, distances = textbook(whole, n)
    found = farthest_first(torch.from_numpy(whole), n, candidates=candidates)
    assert found.indices.tolist() == indices
    np.testing.assert_allclose(found.radius, distances.max(), atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 17, 300, 999, 1000])
def test_the_radius_is_the_largest_distance_to_the_chosen(n: int) -> None:
    x = torch.from_numpy(clustered(1000, 8))
    found = farthest_first(x, n)
    covered = torch.cdist(x, x[found.indices], compute_mode="donot_use_mm_for_euclid_dist").amin(1).max()
    np.testing.assert_allclose(found.radius, covered, atol=1e-6)


def test_the_radius_counts_what_was_covered_before() -> None:
    x = torch.tensor([[0.0], [10.0], [20.0]], dtype=torch.float64)
    found = farthest_first(x, 1, torch.tensor([3.0, 9.0, 15.0], dtype=torch.float64))
    assert found.indices.tolist() == [2]
    np.testing.assert_allclose(found.radius, 9)


def test_rows_are_left_as_they_were() -> None:
    x, distances = torch.from_numpy(heavy_tailed(200, 5)), torch.rand(200, dtype=torch.float64)
    before = x.clone(), distances.clone()
    farthest_first(x, 50)
    farthest_first(x, 50, distances)
    assert torch.equal(x, before[0])
    assert torch.equal(distances, before[1])


def test_rows_without_order_in_memory_give_the_same_selection() -> None:
    x = torch.from_numpy(heavy_tailed(500, 6))
    strided = x.T.contiguous().T
    assert torch.equal(farthest_first(strided, 80).indices, farthest_first(x, 80).indices)


def test_float32_far_from_the_origin_covers_as_well() -> None:
    x = far_from_the_origin(3000, 16)
    _, distances = textbook(x, 100)
    chosen = torch.from_numpy(x)[farthest_first(torch.from_numpy(x).float(), 100).indices]
    covered = torch.cdist(torch.from_numpy(x), chosen, compute_mode="donot_use_mm_for_euclid_dist").amin(1).max()
    assert covered <= 1.02 * distances.max()


def test_memory_grows_with_the_rows_and_not_with_their_square() -> None:
    x = torch.from_numpy(heavy_tailed(400_000, 2)).float()  # N x N distances would take 640 GB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(farthest_first(x, 500).indices) == 500
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 100 * x.nbytes  # 320 MB


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_a_gpu_chooses_the_same_rows_wherever_they_lie(where: str) -> None:
    x = torch.from_numpy(heavy_tailed(5000, 16))
    found = farthest_first(x.to(where), 300, device="cuda")
    assert found.indices.device.type == where
    assert found.indices.tolist() == textbook(x.numpy(), 300)[0]
