import pytest
import torch
from torch import Tensor

from mhpc.core.subspace import EXTRA, LEAST_RATIO, leading_eigh
from mhpc.linalg import eigh_descending

D, KEPT = 400, 40


def covariance(seed: int) -> Tensor:
    """[D, D] of a spectrum that decays, in directions that differ by the seed."""
    random = torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    directions: Tensor = torch.linalg.qr(random).Q
    return directions @ torch.diag(0.95 ** torch.arange(D, dtype=torch.float64)) @ directions.T


def later(before: Tensor) -> Tensor:
    """The covariance of a stream that has gone on: a few directions are new."""
    return before + 0.05 * covariance(seed=1)


def leading(of: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    found = leading_eigh(of, near)
    assert found is not None
    return found


def test_rows_are_orthonormal_and_uncorrelated_and_values_are_the_variance_along_them() -> None:
    now = later(covariance(0))
    values, rows = leading(now, eigh_descending(covariance(0))[1][:KEPT])
    assert rows.shape == (KEPT + EXTRA, D)
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(rows @ now @ rows.T, torch.diag(values), rtol=0, atol=1e-12)
    assert bool((values.diff() <= 0).all())


def test_near_directions_of_a_covariance_like_it_little_variance_is_missed() -> None:
    now = later(covariance(0))
    best = eigh_descending(now)[0][:KEPT].sum()
    values, _ = leading(now, eigh_descending(covariance(0))[1][:KEPT])
    assert 0.9998 * best < values[:KEPT].sum() <= best


@pytest.mark.parametrize("near", ["far", "as float32, scaled"])
def test_what_it_begins_from_need_be_neither_good_nor_orthonormal(near: str) -> None:
    now = covariance(0)
    start = eigh_descending(now)[1][:KEPT].float() * torch.logspace(0, 3, KEPT)[:, None]
    if near == "far":
        start = eigh_descending(now)[1][-KEPT:].float()
    values, _ = leading(now, start)
    assert values[:8].sum() > 0.999 * eigh_descending(now)[0][:8].sum()


def test_the_same_is_found_again() -> None:
    now, near = covariance(0), eigh_descending(covariance(1))[1][:KEPT]
    for one, other in zip(leading(now, near), leading(now, near), strict=True):
        assert torch.equal(one, other)


def test_where_all_eigenvectors_are_as_fast_none_is_found() -> None:
    now, most = covariance(0), D // LEAST_RATIO - EXTRA
    assert leading_eigh(now, now[:most]) is not None
    assert leading_eigh(now, now[: most + 1]) is None
