from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mhpc.linalg import (
    CPU_BLOCK,
    LEAST_ROWS,
    ROWS_PER_BLOCK,
    Moments,
    all_finite,
    all_or_nothing,
    batch_moments,
    blocks,
    check_rows,
    cholesky,
    eigh_descending,
    k_nearest,
    merge_moments,
    nearest,
)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_float32_moments_keep_their_digits_under_a_large_offset() -> None:
    x = (0.01 * normal(4000, 5) + torch.tensor([0.0, 10.0, -300.0, 1e3, 1e4])).float()  # 1e4 has steps of 0.001
    _, mean, scatter = batch_moments(x)
    expected = np.cov(x.double().T.numpy(), bias=True) * 4000
    np.testing.assert_allclose(mean, x.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(scatter, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_merging_two_empty_sides_gives_an_empty_one_of_its_own() -> None:
    empty = Moments(0, torch.zeros(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64))
    merged = merge_moments(empty, empty)
    merged.mean.add_(1)
    merged.scatter.add_(1)
    assert merged.n == 0
    assert float(empty.mean.abs().sum() + empty.scatter.abs().sum()) == 0


def test_eigenvectors_come_largest_first_and_rebuild_the_matrix() -> None:
    a = normal(30, 6).T.cov()
    values, rows = eigh_descending(a)
    assert torch.equal(values, values.sort(descending=True).values)
    torch.testing.assert_close(rows.T @ torch.diag(values) @ rows, a)
    assert bool((rows.gather(1, rows.abs().argmax(1, keepdim=True)) > 0).all())


def test_eigenvalues_are_never_negative() -> None:
    singular = normal(3, 8).T.cov()  # rank 2: rounding makes some of the others negative
    assert float(torch.linalg.eigvalsh(singular).min()) < 0
    assert float(eigh_descending(singular)[0].min()) >= 0


def test_a_cholesky_factor_with_jitter_rebuilds_the_shifted_matrix() -> None:
    singular = normal(3, 5).T.cov()
    L = cholesky(singular, jitter=0.5)
    torch.testing.assert_close(L @ L.T, singular + 0.5 * torch.eye(5, dtype=torch.float64))
    assert torch.equal(L, L.tril())


def test_a_singular_matrix_without_jitter_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"covariance \[5, 5\] plus jitter 0.0 .*raise the jitter"):
        cholesky(-torch.eye(5), jitter=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("N", "D"), [(2, 2), (3, 3), (5, 6), (8, 10), (40, 40)])
def test_a_covariance_of_too_few_rows_is_refused_even_where_rounding_makes_it_pass(
    N: int, D: int, dtype: torch.dtype
) -> None:
    passed = 0
    for seed in range(100):
        singular = normal(N, D, seed=seed, dtype=dtype).T.cov()  # its rank is N - 1
        passed += int(torch.linalg.cholesky_ex(singular).info == 0)
        with pytest.raises(ValueError, match="is not positive definite"):
            cholesky(singular, jitter=0.0)
        assert bool(cholesky(singular, jitter=0.01).isfinite().all())
    assert passed > 0  # else rounding was never put to the test


def test_small_variances_beside_large_ones_are_not_taken_for_rounding() -> None:
    units = torch.tensor([1.0, 1e-9, 1e9, 1e-5, 1.0], dtype=torch.float64)
    covariance = normal(200, 5).T.cov()
    torch.testing.assert_close(
        cholesky(covariance * torch.outer(units, units), jitter=0.0), units[:, None] * cholesky(covariance, jitter=0.0)
    )


def test_a_pivot_below_the_precision_of_the_rows_is_refused_where_that_is_told() -> None:
    covariance = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-8]], dtype=torch.float64)
    assert cholesky(covariance, jitter=0.0).shape == (2, 2)
    with pytest.raises(ValueError, match=r"leading minor 2"):
        cholesky(covariance, jitter=0.0, precision=torch.float32)


@pytest.mark.parametrize("N", [1, 7, ROWS_PER_BLOCK, ROWS_PER_BLOCK + 3])
def test_nearest_equals_the_full_distance_matrix(N: int) -> None:
    x, centers = normal(N, 6), normal(11, 6, seed=1)
    expected, index = torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    distances, found = nearest(x, centers)
    assert torch.equal(found, index)
    torch.testing.assert_close(distances, expected)


def test_equal_rows_are_at_distance_zero_even_in_float32() -> None:
    x = normal(500, 64, dtype=torch.float32) + 30
    distances, index = nearest(x, x)
    assert float(distances.abs().max()) == 0
    assert torch.equal(index, torch.arange(500))


def test_small_distances_keep_their_digits_in_float32() -> None:
    x = normal(500, 64, dtype=torch.float32) + 30
    near = x + 1e-3 * normal(500, 64, seed=1, dtype=torch.float32)
    torch.testing.assert_close(
        nearest(near, x)[0].double(), (near.double() - x.double()).norm(dim=1), rtol=1e-5, atol=0
    )


def test_of_equally_near_centers_the_lowest_index_wins() -> None:
    centers = torch.tensor([[2.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert nearest(torch.zeros(3, 2), centers)[1].tolist() == [1, 1, 1]


@pytest.mark.parametrize(("N", "K", "k"), [(1, 11, 3), (7, 11, 11), (ROWS_PER_BLOCK + 3, 11, 2), (5, 1, 1), (9, 11, 1)])
def test_the_k_nearest_equal_the_sorted_distance_matrix(N: int, K: int, k: int) -> None:
    x, centers = normal(N, 6), normal(K, 6, seed=1)
    expected, index = torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist").sort(1)
    distances, found = k_nearest(x, centers, k)
    assert torch.equal(found, index[:, :k])
    torch.testing.assert_close(distances, expected[:, :k])


def test_the_first_of_the_k_nearest_is_the_nearest() -> None:
    x, centers = normal(300, 64, dtype=torch.float32) + 30, normal(50, 64, seed=1, dtype=torch.float32) + 30
    distance, index = nearest(x, centers)
    distances, indices = k_nearest(x, centers, 4)
    assert torch.equal(distances[:, 0], distance)
    assert torch.equal(indices[:, 0], index)
    assert bool((distances.diff(dim=1) >= 0).all())


def test_the_k_nearest_are_in_order_of_index_where_they_are_equally_near() -> None:
    centers = torch.tensor([[2.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    distances, index = k_nearest(torch.zeros(2, 2), centers, 4)
    assert index.tolist() == [[1, 2, 3, 0]] * 2
    assert distances.tolist() == [[1.0, 1.0, 1.0, 2.0]] * 2


@pytest.mark.parametrize("k", [0, 5])
def test_more_neighbours_than_there_are_centers_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k is {k}, expected 1\.\.4, since there are 4 centers"):
        k_nearest(torch.zeros(2, 2), torch.zeros(4, 2), k)


@pytest.mark.parametrize("columns", [0, 100, 6000, 10**7])
def test_blocks_are_smaller_where_they_make_long_rows_and_leave_nothing_out(columns: int) -> None:
    x = normal(10_000, 1)
    parts = blocks(x, columns)
    assert torch.equal(torch.cat(parts), x)
    assert len(parts[0]) == (ROWS_PER_BLOCK if columns < 1000 else max(LEAST_ROWS, CPU_BLOCK // columns))


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (torch.zeros(4), r"X has shape \[4\], expected \[N, 3\] with N >= 1"),
        (torch.zeros(0, 3), r"X has shape \[0, 3\], expected \[N, 3\]"),
        (torch.zeros(2, 4), r"X has shape \[2, 4\], expected \[N, 3\]"),
        (torch.zeros(2, 3, dtype=torch.int64), r"X is torch.int64, expected a floating type"),
        (torch.full((2, 3), torch.nan), r"X \[2, 3\] holds NaN or infinite"),
    ],
)
def test_unusable_rows_are_refused_with_what_came(x: Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_rows(x, 3)


@pytest.mark.parametrize(("x", "came"), [(np.zeros((2, 3)), "numpy.ndarray"), ([[0.0]], "list"), (None, "NoneType")])
def test_rows_that_are_no_tensor_are_refused_by_their_type(x: Any, came: str) -> None:
    with pytest.raises(ValueError, match=f"X is a {came}, expected a torch.Tensor: convert it by torch.as_tensor"):
        check_rows(x)


class Counter:
    def __init__(self) -> None:
        self.n = 1

    @all_or_nothing
    def learn(self, n: int, *, error: type[BaseException] | None = None) -> int:
        """Doc."""
        self.n, self.seen = n, True
        if error:
            raise error
        return n


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_half_way_leaves_every_attribute_as_it_was(error: type[BaseException]) -> None:
    counter = Counter()
    with pytest.raises(error):
        counter.learn(2, error=error)
    assert vars(counter) == {"n": 1}
    assert counter.learn(n=3) == 3
    assert vars(counter) == {"n": 3, "seen": True}
    assert Counter.learn.__doc__ == "Doc."


@pytest.mark.parametrize(
    ("value", "finite"), [(3e38, True), (torch.inf, False), (-torch.inf, False), (torch.nan, False)]
)
def test_values_whose_norm_overflows_still_count_as_finite(value: float, finite: bool) -> None:
    x = torch.full((3, 3), 3e38)
    x[1, 2] = value
    assert all_finite(x) is finite
