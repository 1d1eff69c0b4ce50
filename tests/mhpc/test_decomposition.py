from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.decomposition import PCA
from sklearn.utils.extmath import svd_flip
from torch import Tensor

from mhpc import IncrementalPCA
from mhpc.decomposition import deviations
from mhpc.linalg import ROWS_PER_BLOCK


def parts_with_spread(N: int = 500, D: int = 12, seed: int = 0) -> Tensor:
    """Rows whose eigenvalues are apart: deviations 1, 0.8, 0.64, ... along turned axes, off the origin."""
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(rng.standard_normal((D, D)))[0]
    return torch.from_numpy(rng.standard_normal((N, D)) * 0.8 ** np.arange(D) @ turned + rng.normal(0, 20, D))


def fed(pca: IncrementalPCA, x: Tensor, batch: int) -> IncrementalPCA:
    for part in x.split(batch):
        pca.partial_fit(part)
    return pca


@pytest.mark.parametrize("n_components", [None, 1, 7, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("batch", [1, 33, 500])
def test_it_equals_scikit_learns_pca_on_all_rows_up_to_sign(n_components: int | float | None, batch: int) -> None:
    x = parts_with_spread()
    expected = PCA(n_components, svd_solver="full").fit(x.numpy())
    pca = fed(IncrementalPCA(n_components, torch.float64), x, batch)
    assert pca.n_components_ == expected.n_components_
    assert pca.n_samples_seen_ == 500
    sign = np.sign((pca.components_.numpy() * expected.components_).sum(1, keepdims=True))
    np.testing.assert_allclose(pca.components_.numpy() * sign, expected.components_, atol=1e-6)
    np.testing.assert_allclose(pca.transform(x).numpy() * sign.T, expected.transform(x.numpy()), atol=1e-6)
    for name in ("mean_", "explained_variance_", "explained_variance_ratio_", "singular_values_", "noise_variance_"):
        np.testing.assert_allclose(getattr(pca, name), getattr(expected, name), atol=1e-6, err_msg=name)


def test_the_sign_of_components_does_not_depend_on_the_batches() -> None:
    x = parts_with_spread()
    one, many = (fed(IncrementalPCA(5, torch.float64), x, batch).components_ for batch in (500, 7))
    torch.testing.assert_close(one, many, rtol=0, atol=1e-9)


def test_merged_halves_equal_the_whole() -> None:
    x = parts_with_spread()
    halves = [fed(IncrementalPCA(5, torch.float64), half, 50) for half in (x[:170], x[170:])]
    merged = IncrementalPCA(5, torch.float64).merge(halves[0]).merge(IncrementalPCA(5)).merge(halves[1])
    whole = IncrementalPCA(5, torch.float64).partial_fit(x)
    torch.testing.assert_close(merged.components_, whole.components_, rtol=0, atol=1e-9)
    assert [half.n_samples_seen_ for half in halves] == [170, 330]


def test_what_is_read_follows_the_next_batch() -> None:
    x = parts_with_spread()
    pca = IncrementalPCA(3, torch.float64).partial_fit(x[:100])
    assert pca.components_.shape == (3, 12)  # the decomposition is cached from here on
    pca.partial_fit(x[100:])
    torch.testing.assert_close(pca.components_, IncrementalPCA(3, torch.float64).partial_fit(x).components_)


def test_all_components_give_the_rows_back() -> None:
    x = parts_with_spread()
    pca = IncrementalPCA(dtype=torch.float64).partial_fit(x)
    torch.testing.assert_close(pca.inverse_transform(pca.transform(x)), x)
    np.testing.assert_allclose(pca.inverse_transform(pca.transform(x.numpy())), x.numpy())
    with pytest.raises(ValueError, match=r"Z has shape \[500, 3\], expected \[N, 12\]"):
        pca.inverse_transform(x[:, :3])


def test_whole_numbers_are_taken_by_all_methods_as_scikit_learn_takes_them() -> None:
    x = (10 * parts_with_spread(D=3)).round().long().numpy()
    pca = IncrementalPCA(3).fit(x)
    coordinates = pca.transform(x).round().astype(int)
    expected = pca.inverse_transform(coordinates.astype(float))
    np.testing.assert_array_equal(pca.inverse_transform(coordinates), expected)
    np.testing.assert_array_equal(pca.inverse_transform(coordinates.tolist()), expected)
    np.testing.assert_allclose(expected, x, atol=2)
    with pytest.raises(ValueError, match=r"Z has shape \[500, 2\], expected \[N, 3\]"):
        pca.inverse_transform(coordinates[:, :2])
    with pytest.raises(ValueError, match=r"Z is torch\.int64, expected a floating type"):
        pca.inverse_transform(torch.from_numpy(coordinates))


def test_the_norm_of_whitened_rows_is_the_mahalanobis_distance() -> None:
    x = parts_with_spread()
    pca = fed(IncrementalPCA(dtype=torch.float64), x, 64)
    centred = x.numpy() - x.numpy().mean(0)
    quadratic_form = np.einsum("nd,de,ne->n", centred, np.linalg.inv(np.cov(x.T.numpy())), centred)
    np.testing.assert_allclose(pca.whiten(x).square().sum(1), quadratic_form, rtol=1e-8, atol=1e-8)


def test_whitened_rows_have_unit_covariance() -> None:
    x = parts_with_spread()
    z = IncrementalPCA(6, torch.float64).partial_fit(x).whiten(x)
    np.testing.assert_allclose(np.cov(z.T.numpy()), np.eye(6), atol=1e-9)


def test_directions_without_variance_are_left_out() -> None:
    x = parts_with_spread(D=6)
    pca = IncrementalPCA(dtype=torch.float64).partial_fit(torch.cat([x, x[:, :3]], 1))
    assert pca.n_components_ == 6
    assert bool(pca.whiten(torch.cat([x, x[:, :3]], 1)).isfinite().all())


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
def test_rows_that_are_all_equal_whiten_to_zero_and_others_stay_finite(value: float) -> None:
    same = torch.full((40, 5), value)
    pca = fed(IncrementalPCA(0.99), same, 7)
    assert float(pca.whiten(same).abs().max()) == 0
    assert bool(pca.whiten(same + 1).isfinite().all())


def test_float32_rows_far_off_the_origin_give_float32_components() -> None:
    x = (parts_with_spread() + 1e3).float()
    pca = fed(IncrementalPCA(4), x, 50)
    expected = PCA(4).fit(x.double().numpy())
    assert pca.components_.dtype == torch.float32
    agreement = np.abs((pca.components_.numpy() * expected.components_).sum(1))
    np.testing.assert_allclose(agreement, 1, atol=1e-4)


@pytest.mark.parametrize("n_components", [0, 13, -1, 0.0, 1.0, 1.5, True, "all"])
def test_a_number_of_components_that_rows_cannot_give_is_refused(n_components: int) -> None:
    with pytest.raises(ValueError, match=r"n_components is .*, expected an int in 1..12, a share in \(0, 1\), or None"):
        IncrementalPCA(n_components).partial_fit(parts_with_spread())


def test_reading_before_two_rows_says_to_fit_first() -> None:
    with pytest.raises(ValueError, match=r"has seen 0 rows .*, expected at least 2: partial_fit first"):
        _ = IncrementalPCA().mean_
    with pytest.raises(ValueError, match="has seen 1 rows"):
        _ = IncrementalPCA().partial_fit(torch.zeros(1, 3)).components_


def test_moments_are_there_from_the_first_row_on() -> None:
    n, mean, scatter = IncrementalPCA().partial_fit(torch.full((1, 3), 2.0)).moments_
    assert (n, mean.tolist(), bool(scatter.any())) == (1, [2.0] * 3, False)
    with pytest.raises(ValueError, match="has seen 0 rows"):
        _ = IncrementalPCA().moments_


def test_more_components_than_rows_are_refused_when_they_are_read() -> None:
    x = parts_with_spread()
    pca = IncrementalPCA(7).partial_fit(x[:6])
    for read in (lambda: pca.components_, lambda: pca.transform(x), lambda: IncrementalPCA(7).fit(x[:6])):
        with pytest.raises(ValueError, match="n_components is 7, but IncrementalPCA has seen only 6 rows"):
            read()
    assert pca.partial_fit(x[6:7]).components_.shape == (7, 12)
    assert IncrementalPCA(0.999).partial_fit(x[:3]).n_components_ == 2  # a share begins with what there is


@pytest.mark.parametrize("N", [8, 5])
def test_an_int_asks_for_just_so_many_components_as_scikit_learn_gives(N: int) -> None:
    x = parts_with_spread(N)
    expected = PCA(5, svd_solver="full").fit(x.numpy())
    pca = IncrementalPCA(5).fit(x)
    assert pca.n_components_ == 5
    np.testing.assert_allclose(pca.explained_variance_, expected.explained_variance_, atol=1e-9)
    np.testing.assert_allclose(pca.noise_variance_, expected.noise_variance_, atol=1e-9)
    np.testing.assert_allclose(pca.inverse_transform(pca.transform(x)), x, atol=10 if N > 5 else 1e-9)


def test_components_without_variance_that_were_asked_for_whiten_to_next_to_nothing() -> None:
    x = parts_with_spread(D=6)
    twice = torch.cat([x, x[:, :3]], 1)
    z = IncrementalPCA(9).fit(twice).whiten(twice)
    assert float(z[:, 6:].abs().max()) < 1e-9
    np.testing.assert_allclose(np.cov(z[:, :6].T.numpy()), np.eye(6), atol=1e-9)


def test_components_have_the_sign_that_scikit_learn_gives_them() -> None:
    x = parts_with_spread()
    expected = svd_flip(None, PCA(svd_solver="full").fit(x.numpy()).components_, u_based_decision=False)[1]
    np.testing.assert_allclose(IncrementalPCA().fit(x).components_, expected, atol=1e-6)


@pytest.mark.parametrize(("rows", "read"), [(torch.float32, torch.float32), (torch.float16, torch.float32)])
def test_what_is_read_is_of_the_first_rows_type_or_of_the_one_asked_for(rows: torch.dtype, read: torch.dtype) -> None:
    x = parts_with_spread().to(rows)
    assert IncrementalPCA().partial_fit(x).components_.dtype == read
    double = IncrementalPCA(dtype=torch.float64).partial_fit(x)
    assert double.components_.dtype == double.transform(x).dtype == torch.float64
    assert IncrementalPCA().load_state_dict(double.state_dict()).mean_.dtype == torch.float64


def test_fitting_in_blocks_equals_one_batch() -> None:
    x = parts_with_spread(N=ROWS_PER_BLOCK + 50)
    torch.testing.assert_close(
        IncrementalPCA().fit(x).explained_variance_, IncrementalPCA().partial_fit(x).explained_variance_
    )


@pytest.mark.parametrize("n_components", [0, 13, -1, 0.0, 1.0, 1.5, True, "all"])
def test_a_number_of_components_that_cannot_be_is_refused(n_components: Any) -> None:
    with pytest.raises(
        ValueError, match=r"n_components is .*, expected an int in 1\.\.12, a share in \(0, 1\), or None"
    ):
        IncrementalPCA(n_components).partial_fit(parts_with_spread())


def test_deviations_of_no_more_than_rounding_count_as_one() -> None:
    variance = torch.tensor([4.0, 1e-3, 1e-9, 0.0])
    torch.testing.assert_close(deviations(variance, torch.zeros(50)), torch.tensor([2.0, 1e-3**0.5, 1.0, 1.0]))
    torch.testing.assert_close(deviations(variance, torch.full((50,), 1e6)), torch.tensor([2.0, 1.0, 1.0, 1.0]))


@pytest.mark.parametrize("n_components", [None, 0.99, 0.999999])
@pytest.mark.parametrize("table", [load_wine, load_breast_cancer])
def test_features_of_very_different_scale_are_all_components(table: Any, n_components: float | None) -> None:
    rows = table().data
    pca, expected = IncrementalPCA(n_components).fit(rows), PCA(n_components, svd_solver="full").fit(rows)
    assert pca.n_components_ == expected.n_components_
    np.testing.assert_allclose(pca.explained_variance_, expected.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose(pca.whiten(rows).std(0, ddof=1), 1, rtol=1e-6)


def test_a_share_is_explained_whatever_the_tail_of_the_spectrum() -> None:
    variance = np.arange(1, 401) ** -1.3
    rows = np.random.default_rng(0).standard_normal((4000, 400), np.float32) * np.sqrt(variance).astype(np.float32)
    pca = IncrementalPCA(0.99).fit(rows)
    assert pca.n_components_ == PCA(0.99, svd_solver="full").fit(rows).n_components_
    np.testing.assert_allclose(pca.whiten(rows).std(0), 1, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_what_rounding_leaves_is_no_component(dtype: torch.dtype, offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    low, wide = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((9000, 40), (40, 600)))
    pca = fed(IncrementalPCA(), (low @ wide + offset).to(dtype), 3000)
    assert pca.n_components_ == 40


@pytest.mark.parametrize("name", ["mean_", "components_", "explained_variance_"])
def test_what_was_read_is_the_callers(name: str) -> None:
    pca = IncrementalPCA().fit(parts_with_spread())
    before = getattr(pca, name).clone()
    getattr(pca, name).zero_()
    torch.testing.assert_close(getattr(pca, name), before)


def test_half_precision_explains_the_share_that_was_asked_for() -> None:
    rows = torch.randn(4000, 60, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 0.05, 60)
    assert IncrementalPCA(0.99, torch.bfloat16).fit(rows).n_components_ == IncrementalPCA(0.99).fit(rows).n_components_
