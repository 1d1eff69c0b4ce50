import numpy as np
import pytest
import torch
from torch import Tensor

from mhpc.linalg import (
    ROWS_PER_BLOCK,
    Moments,
    all_finite,
    batch_moments,
    check_rows,
    cholesky,
    eigh_descending,
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


@pytest.mark.parametrize(
    ("value", "finite"), [(3e38, True), (torch.inf, False), (-torch.inf, False), (torch.nan, False)]
)
def test_values_whose_norm_overflows_still_count_as_finite(value: float, finite: bool) -> None:
    x = torch.full((3, 3), 3e38)
    x[1, 2] = value
    assert all_finite(x) is finite
