from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from sklearn import covariance as sklearn_covariance
from torch import Tensor

from mhpc import CovarianceCholesky, IncrementalPCA, OnlineCovariance
from mhpc.mahalanobis import oas

Matrix = NDArray[np.float64]

rows = st.tuples(st.integers(2, 40), st.integers(1, 5)).flatmap(
    lambda shape: arrays.arrays(np.float64, shape, elements=st.floats(-10, 10, width=32))
)
offsets = st.sampled_from([0.0, 1e3, -1e5])
property_of_any_rows = settings(derandomize=True, deadline=None, max_examples=60)


def fed(x: Matrix, cuts: list[int]) -> OnlineCovariance:
    """An estimator fed x in the pieces between the cuts, empty ones left out."""
    cov = OnlineCovariance(x.shape[1], torch.float64)
    for part in np.split(x, sorted(cuts)):
        if len(part):
            cov.update(torch.from_numpy(part))
    return cov


def assert_equals_numpy(cov: OnlineCovariance, x: Matrix) -> None:
    D = x.shape[1]
    for unbiased in (True, False):
        expected = np.cov(x.T, ddof=int(unbiased)).reshape(D, D)
        np.testing.assert_allclose(cov.covariance(unbiased), expected, rtol=0, atol=1e-10 * max(1, expected.max()))
    np.testing.assert_allclose(cov.mean_, x.mean(0), rtol=1e-12, atol=1e-12)
    assert cov.n_samples_seen_ == len(x)


def correlated(N: int, D: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((N, D)) @ rng.standard_normal((D, D)) + rng.normal(0, 5, D))


@property_of_any_rows
@given(rows, offsets, st.data())
def test_covariance_equals_numpys_for_any_split_into_batches(x: Matrix, offset: float, data: st.DataObject) -> None:
    x = x + offset
    assert_equals_numpy(fed(x, data.draw(st.lists(st.integers(0, len(x))))), x)


@property_of_any_rows
@given(rows, offsets, st.data())
def test_covariance_equals_numpys_for_any_order_one_row_at_a_time(
    x: Matrix, offset: float, data: st.DataObject
) -> None:
    x = x + offset
    order = data.draw(st.permutations(range(len(x))))
    assert_equals_numpy(fed(x[order], list(range(len(x)))), x)


@property_of_any_rows
@given(rows, offsets, st.data())
def test_covariance_equals_numpys_for_any_merge(x: Matrix, offset: float, data: st.DataObject) -> None:
    x = x + offset
    cuts = data.draw(st.lists(st.integers(0, len(x)), max_size=4))
    parts = [fed(part, []) for part in np.split(x, sorted(cuts))]  # empty ones too
    merged = OnlineCovariance(x.shape[1], torch.float64)
    for part in data.draw(st.permutations(parts)):
        merged.merge(part)
    assert_equals_numpy(merged, x)


@pytest.mark.parametrize(("mine", "theirs"), [(0, 20), (20, 0), (20, 1), (1, 20), (1, 1), (20, 30)])
def test_a_merge_leaves_the_other_side_as_it_was_and_shares_nothing(mine: int, theirs: int) -> None:
    x = correlated(mine + theirs, 4)
    a, b = (OnlineCovariance(4, torch.float64) for _ in range(2))
    for side, part in ((a, x[:mine]), (b, x[mine:])):
        if len(part):
            side.update(part)
    before = [b.moments_.n, b.moments_.mean.clone(), b.moments_.scatter.clone()]
    a.merge(b)
    assert_equals_numpy(a, x.numpy())
    a.update(correlated(10, 4, seed=1))
    a.moments_.mean.zero_()
    a.moments_.scatter.zero_()
    assert b.moments_.n == before[0]
    assert torch.equal(b.moments_.mean, torch.as_tensor(before[1]))
    assert torch.equal(b.moments_.scatter, torch.as_tensor(before[2]))


def test_an_estimator_may_be_merged_with_itself() -> None:
    x = correlated(12, 3)
    cov = fed(x.numpy(), [])
    assert_equals_numpy(cov.merge(cov), torch.cat([x, x]).numpy())


def test_dimensions_behind_the_first_are_features() -> None:
    x = correlated(30, 6)
    cov = OnlineCovariance(6, torch.float64).update(x.reshape(30, 2, 3))
    assert_equals_numpy(cov, x.numpy())


def test_float32_rows_come_close_under_a_large_offset() -> None:
    x = (correlated(3000, 8) + 1e4).float()
    cov = OnlineCovariance(8)
    for part in x.split(100):
        cov.update(part)
    expected = np.cov(x.double().T.numpy())
    assert cov.covariance().dtype == torch.float32
    np.testing.assert_allclose(cov.covariance(), expected, rtol=0, atol=1e-4 * expected.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_whose_squares_overflow_are_refused_and_not_learned(dtype: torch.dtype) -> None:
    x = correlated(50, 3).to(dtype)
    beyond = x * torch.finfo(dtype).max ** 0.6
    assert bool(beyond.isfinite().all())
    cov, pca = OnlineCovariance(3, dtype).update(x), IncrementalPCA().partial_fit(x)
    for learn in (cov.update, pca.partial_fit, pca.fit):
        with pytest.raises(
            ValueError, match=r"rows \[50, 3\] of up to .*e\+\d+ have squares whose sum overflows torch\.float"
        ):
            learn(beyond)
        for moments in (cov.moments_, pca.moments_):
            torch.testing.assert_close(moments.scatter / 49, x.double().T.cov(), rtol=1e-4, atol=1e-4)
    if dtype is torch.float32:
        assert bool(OnlineCovariance(3, torch.float64).update(beyond).covariance().isfinite().all())


@pytest.mark.parametrize(("n", "unbiased"), [(0, True), (1, True), (0, False)])
def test_the_covariance_of_too_few_rows_is_refused(n: int, unbiased: bool) -> None:
    cov = OnlineCovariance(3)
    if n:
        cov.update(torch.zeros(n, 3))
    with pytest.raises(ValueError, match=f"covariance of {n} rows is undefined, expected at least {1 + unbiased}"):
        cov.covariance(unbiased)


def test_merging_another_number_of_features_is_refused() -> None:
    with pytest.raises(ValueError, match="other has 4 features, expected 3"):
        OnlineCovariance(3).merge(OnlineCovariance(4))


def test_the_norm_in_z_space_is_the_mahalanobis_distance_by_cholesky() -> None:
    x = correlated(400, 9)
    cov = OnlineCovariance(9, torch.float64).update(x)
    L = CovarianceCholesky().compute(cov.covariance())
    centred = x - cov.mean_
    z = torch.linalg.solve_triangular(L, centred.T, upper=False).T
    quadratic_form = torch.einsum("nd,de,ne->n", centred, torch.linalg.inv(cov.covariance()), centred)
    np.testing.assert_allclose(z.square().sum(1), quadratic_form, rtol=1e-8, atol=1e-8)


def test_cholesky_and_principal_components_whiten_to_the_same_norm() -> None:
    x = correlated(400, 9)
    pca = IncrementalPCA(dtype=torch.float64).partial_fit(x)
    reduced = OnlineCovariance(9, torch.float64).update(pca.transform(x))
    L = CovarianceCholesky().compute(reduced.covariance())
    z = torch.linalg.solve_triangular(L, pca.transform(x).T, upper=False).T
    np.testing.assert_allclose(z.norm(dim=1), pca.whiten(x).norm(dim=1), rtol=1e-8)


@pytest.mark.parametrize("shape", [(3,), (3, 4), (2, 3, 3)])
def test_what_is_no_square_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"covariance has shape \[.*\], expected \[D, D\]"):
        CovarianceCholesky().compute(torch.zeros(shape))


def test_a_singular_covariance_is_refused_without_jitter_and_taken_with_one() -> None:
    cov = OnlineCovariance(9).update(correlated(7, 9).float())
    with pytest.raises(ValueError, match=r"covariance \[9, 9\] plus jitter 0.0 is not positive definite.*more rows"):
        CovarianceCholesky().compute(cov.covariance())
    assert bool(CovarianceCholesky(jitter=0.1).compute(cov.covariance()).isfinite().all())


def test_sums_in_float64_of_float32_products_are_no_surer_than_those() -> None:
    passed = 0
    for seed in range(30):
        _, _, scatter = OnlineCovariance(7).update(correlated(7, 7, seed).float()).moments_  # its rank is 6
        passed += int(torch.linalg.cholesky_ex(scatter).info == 0)
        with pytest.raises(ValueError, match="is not positive definite"):
            CovarianceCholesky(precision=torch.float32).compute(scatter)
    assert passed > 0  # else rounding was never put to the test


@pytest.mark.parametrize("given", [np.eye(3), np.eye(3).tolist()])
def test_what_is_no_tensor_is_refused_by_its_type(given: Any) -> None:
    for take, name in (
        (OnlineCovariance(3).update, "batch"),
        (CovarianceCholesky().compute, "covariance"),
        (lambda S: oas(S, 9), "covariance"),
    ):
        with pytest.raises(ValueError, match=rf"{name} is a (numpy\.ndarray|list), expected a torch\.Tensor"):
            take(given)


@pytest.mark.parametrize("num_features", [0, -1, 2.0, True, "3"])
def test_a_number_of_features_that_cannot_be_is_refused(num_features: Any) -> None:
    with pytest.raises(ValueError, match=rf"num_features is '?{num_features}'?, expected an int of 1 or more"):
        OnlineCovariance(num_features)
    with pytest.raises(ValueError, match=r"dtype is torch\.int64, expected a floating type"):
        OnlineCovariance(3, torch.int64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_factored_in_float32(dtype: torch.dtype) -> None:
    S = torch.tensor([[4.0, 1.0], [1.0, 9.0]])
    for factor in (CovarianceCholesky().compute(S.to(dtype)), CovarianceCholesky(0.0, torch.float32).compute(S)):
        assert factor.dtype == torch.float32
        torch.testing.assert_close(factor @ factor.T, S)
    assert oas(S.to(dtype), 20).dtype == torch.float32
    close = torch.tensor([[1.0, 1.0], [1.0, 1.0 + torch.finfo(dtype).eps]])  # a pivot of one unit in the last place
    with pytest.raises(ValueError, match="is not positive definite"):
        CovarianceCholesky().compute(close.to(dtype))
    assert CovarianceCholesky().compute(close).shape == (2, 2)


def test_half_precision_rows_are_multiplied_in_float32() -> None:
    x = (300 * correlated(50, 3)).half()  # their squares are beyond float16
    cov = OnlineCovariance(3, torch.float16).update(x)
    np.testing.assert_allclose(cov.moments_.scatter / 49, np.cov(x.double().T.numpy()), rtol=1e-5)
    assert cov.mean_.dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e6])
def test_an_asymmetric_matrix_is_refused_with_how_much_it_is(dtype: torch.dtype, unit: float) -> None:
    S = torch.tensor([[4.0, 1.0, 0.0], [1.0, 9.0, 2.0], [0.0, 2.5, 16.0]], dtype=dtype) * unit
    assert torch.linalg.cholesky_ex(S).info == 0  # its lower triangle alone is fine
    for jitter in (0.0, 0.1 * unit):
        with pytest.raises(ValueError, match=r"covariance \[3, 3\] is asymmetric: \[1, 2\] is 2\S*, \[2, 1\] is 2\.5"):
            CovarianceCholesky(jitter).compute(S)
    assert CovarianceCholesky().compute((S + S.T) / 2).shape == (3, 3)
    L = CovarianceCholesky().compute((S + S.T) / 2)
    with pytest.raises(ValueError, match="is asymmetric"):
        CovarianceCholesky(jitter=unit).compute(L)  # the factor by mistake for the covariance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_asymmetry_of_float32_rounding_is_no_matter_in_any_units(dtype: torch.dtype) -> None:
    units = torch.tensor([1.0, 1e-6, 1e6, 1.0], dtype=torch.float64)
    S = correlated(5000, 4).T.cov()
    S = S * (1 + 1e-5 * torch.rand(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert float((S - S.T).abs().max()) > 0
    S = (S * torch.outer(units, units)).to(dtype)
    assert bool(CovarianceCholesky().compute(S).isfinite().all())


def test_a_covariance_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"covariance \[2, 2\] holds NaN"):
        CovarianceCholesky().compute(torch.full((2, 2), torch.nan))


@pytest.mark.parametrize(("N", "D"), [(400, 9), (12, 9), (5, 9), (2, 30), (1000, 2), (40, 1)])
def test_shrinkage_is_scikit_learns(N: int, D: int) -> None:
    x = correlated(N, D)
    expected, _ = sklearn_covariance.oas(x.numpy())
    shrunk = oas(OnlineCovariance(D, torch.float64).update(x).covariance(unbiased=False), N)
    np.testing.assert_allclose(shrunk, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("scale", [1e-22, 1e-19, 1e19, 1e30])
def test_shrinkage_of_float32_knows_no_scale(scale: float) -> None:
    S = OnlineCovariance(9).update(correlated(12, 9).float()).covariance(unbiased=False)
    S /= S.diagonal().mean()
    torch.testing.assert_close(oas(S * scale, 12) / scale, oas(S, 12))


@pytest.mark.parametrize("S", [torch.eye(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)])
def test_a_multiple_of_the_identity_shrinks_to_itself(S: Tensor) -> None:
    torch.testing.assert_close(oas(S, 20), S)


def test_shrinkage_makes_a_covariance_of_too_few_rows_positive_definite_and_leaves_it_as_it_was() -> None:
    S = OnlineCovariance(30, torch.float64).update(correlated(6, 30)).covariance(unbiased=False)
    before = S.clone()
    assert bool(CovarianceCholesky().compute(oas(S, 6)).isfinite().all())
    assert torch.equal(S, before)


def test_shrinkage_of_no_square_matrix_or_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"covariance has shape \[3, 4\], expected \[D, D\]"):
        oas(torch.zeros(3, 4), 10)
    with pytest.raises(ValueError, match="n is 0, expected the number of rows"):
        oas(torch.eye(3), 0)


def test_a_state_of_another_number_of_features_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the state's mean has shape \[4\], expected \[3\]"):
        OnlineCovariance(3).load_state_dict(OnlineCovariance(4).state_dict())
