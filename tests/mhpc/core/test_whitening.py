import numpy as np
import pytest
import torch
from sklearn.covariance import OAS, EmpiricalCovariance
from sklearn.decomposition import PCA
from torch import Tensor

from mhpc.core.choices import PatchCoreDistance, PatchCoreFeatureReduction
from mhpc.core.whitening import Whitening, ZSpace, check_features
from mhpc.decomposition import IncrementalPCA
from mhpc.linalg import batch_moments
from mhpc.mahalanobis import CovarianceCholesky, OnlineCovariance

N, D = 600, 12
NONE, REDUCED = PatchCoreFeatureReduction.NONE, PatchCoreFeatureReduction.PCA
EUCLIDEAN, MAHALANOBIS = PatchCoreDistance.EUCLIDEAN, PatchCoreDistance.MAHALANOBIS


def rows(n: int = N, seed: int = 0) -> Tensor:
    """[n, 12] float32, correlated, of scales from 3 to 0.1, around 5."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(9)))[0]
    x: Tensor = torch.randn(n, D, generator=generator) * torch.logspace(0.5, -1, D) @ mixing + 5
    return x


def gaps(z: Tensor) -> Tensor:
    """Distances between some rows."""
    return torch.cdist(z[:40].double(), z[40:80].double())


def test_without_reduction_or_whitening_rows_stay_as_they_are() -> None:
    space = ZSpace(NONE, EUCLIDEAN)
    assert not space.needs_moments
    x = rows()
    assert space.identity(D)(x) is x


def test_pca_alone_keeps_the_share_of_the_variance_and_its_scale() -> None:
    x = rows()
    z = ZSpace(REDUCED, EUCLIDEAN, 0.9).of_moments(batch_moments(x))(x)
    expected = PCA(0.9).fit(x.numpy())
    assert z.shape[1] == expected.n_components_ < D
    np.testing.assert_allclose(z.abs().numpy(), np.abs(expected.transform(x.numpy())), atol=1e-3)


@pytest.mark.parametrize("ratio", [0.9, 0.999])
def test_the_covariance_of_whitened_components_is_the_identity(ratio: float) -> None:
    x = rows()
    z = ZSpace(pca_variance_ratio=ratio).of_moments(batch_moments(x))(x)
    torch.testing.assert_close(torch.cov(z.T.double()), torch.eye(z.shape[1]).double(), atol=1e-4, rtol=0)


WIDE = 300


def wide_rows(seed: int, shift: float = 0.0) -> Tensor:
    """Rows [2000, WIDE] of a spectrum that decays, along axes that a shift turns a little."""
    x = torch.randn(2000, WIDE, generator=torch.Generator().manual_seed(seed)) * 0.9 ** torch.arange(WIDE)
    return x + shift * x.roll(1, 1)


def test_components_near_those_before_keep_the_share_of_the_variance_and_are_whitened() -> None:
    space, moments = ZSpace(pca_variance_ratio=0.9), batch_moments(wide_rows(1, 0.2))
    near = space.of_moments(moments, space.of_moments(batch_moments(wide_rows(0))))
    exact = space.of_moments(moments)
    assert near.projection is not None
    assert exact.projection is not None
    assert not torch.equal(near.projection, exact.projection)
    assert len(exact.projection) <= len(near.projection) <= len(exact.projection) + 1
    assert near.turned_from(exact) < 0.02
    z = near(wide_rows(1, 0.2))
    torch.testing.assert_close(torch.cov(z.T.double()), torch.eye(z.shape[1]).double(), atol=1e-4, rtol=0)
    along = near.projection / near.projection.norm(dim=1, keepdim=True)
    covariance = moments.scatter / (moments.n - 1)
    assert torch.trace(along.double() @ covariance @ along.double().T) >= 0.9 * covariance.trace()


def test_where_those_before_keep_too_little_components_are_looked_for_among_all() -> None:
    space = ZSpace(pca_variance_ratio=0.9)
    few = space.of_moments(batch_moments(wide_rows(0) * 0.1 ** torch.arange(WIDE)))
    flat = batch_moments(torch.randn(2000, WIDE, generator=torch.Generator().manual_seed(2)))
    near, exact = space.of_moments(flat, few), space.of_moments(flat)
    assert near.projection is not None
    assert exact.projection is not None
    assert torch.equal(near.projection, exact.projection)


def test_all_directions_are_whitened_as_scikit_learns_oas_has_it() -> None:
    x = rows(30)
    z = ZSpace(NONE, MAHALANOBIS).of_moments(batch_moments(x))(x)
    expected = OAS().fit(x.double().numpy()).mahalanobis(x.double().numpy())  # squared
    np.testing.assert_allclose(z.square().sum(1), expected, rtol=1e-4)


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_jitter_takes_the_place_of_shrinkage(jitter: float) -> None:
    x = rows()
    z = ZSpace(NONE, MAHALANOBIS, jitter=jitter).of_moments(batch_moments(x))(x)
    centred = (x - x.mean(0)).double()
    covariance = torch.cov(x.double().T) + jitter * torch.eye(D)
    expected = (centred @ torch.linalg.inv(covariance) * centred).sum(1)
    torch.testing.assert_close(z.double().square().sum(1), expected, rtol=1e-3, atol=1e-3)
    if jitter == 0:
        exact = EmpiricalCovariance().fit(x.double().numpy()).mahalanobis(x.double().numpy()) * (N - 1) / N
        np.testing.assert_allclose(z.square().sum(1), exact, rtol=1e-3)


def test_jitter_damps_small_components() -> None:
    x = rows()
    bare, damped = (ZSpace(jitter=jitter).of_moments(batch_moments(x))(x).var(0) for jitter in (None, 1.0))
    variance = IncrementalPCA(0.99).partial_fit(x).explained_variance_
    torch.testing.assert_close(damped, variance / (variance + 1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(bare, torch.ones_like(bare), rtol=1e-3, atol=1e-3)


def test_a_singular_covariance_without_jitter_is_refused_with_the_remedy() -> None:
    x = rows()
    x[:, 3] = x[:, 2]
    with pytest.raises(ValueError, match=r"covariance \[12, 12\] plus jitter 0.0 is not positive definite.* jitter"):
        ZSpace(NONE, MAHALANOBIS, jitter=0.0).of_moments(batch_moments(x))
    for jitter in (None, 1e-3):  # shrinkage, jitter
        assert ZSpace(NONE, MAHALANOBIS, jitter=jitter).of_moments(batch_moments(x))(x).isfinite().all()


def test_fewer_rows_than_features_are_shrunk() -> None:
    x = rows(D // 2)
    assert ZSpace(NONE, MAHALANOBIS).of_moments(batch_moments(x))(x).isfinite().all()


def test_from_all_rows_it_is_scikit_learns_pca() -> None:
    x = rows()
    expected = PCA(0.95, whiten=True, svd_solver="full").fit(x.numpy())
    z = ZSpace(pca_variance_ratio=0.95).of_rows(x.numpy().copy())(x)
    np.testing.assert_allclose(z, expected.transform(x.numpy()), atol=1e-4)


@pytest.mark.parametrize("N", [N, D - 4])  # by the covariance, by the SVD
def test_from_all_rows_far_from_the_origin_it_keeps_its_digits(N: int) -> None:
    x = rows(N) + 1000
    whitening = ZSpace(pca_variance_ratio=0.95).of_rows(x.numpy().copy())
    exact = PCA(0.95, whiten=True, svd_solver="full").fit_transform(x.double().numpy())
    found = torch.pdist(whitening(x).double())
    torch.testing.assert_close(found, torch.pdist(torch.from_numpy(exact)), rtol=1e-4, atol=1e-4)


def test_rows_whose_squares_overflow_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"rows \[600, 12\] of up to .* have squares whose sum overflows torch\.float32"
    ):
        ZSpace().of_rows((rows() * 1e19).numpy())


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning")  # scikit-learn's
def test_rows_that_are_all_equal_stay_finite() -> None:
    x = torch.full((20, D), 7.0)
    for whitening in (ZSpace().of_moments(batch_moments(x)), ZSpace().of_rows(x.numpy().copy())):
        assert whitening(rows()).isfinite().all()


@pytest.mark.parametrize("reduction", [NONE, REDUCED])
@pytest.mark.parametrize("distance", [EUCLIDEAN, MAHALANOBIS])
def test_one_row_is_whitened_as_two_that_are_equal(
    reduction: PatchCoreFeatureReduction, distance: PatchCoreDistance
) -> None:
    space, x = ZSpace(reduction, distance), rows(1)
    one, two = space.of_moments(batch_moments(x)), space.of_moments(batch_moments(x.repeat(2, 1)))
    assert one(rows()).isfinite().all()
    assert torch.equal(one(rows()), two(rows()))


def test_three_passes_end_in_the_same_distances_as_one() -> None:
    x = rows()
    space = ZSpace(pca_variance_ratio=0.95)
    pca = IncrementalPCA(0.95).partial_fit(x)
    projected = OnlineCovariance(pca.n_components_).update(pca.transform(x))
    three, one = space.of_projected(pca, projected.moments_), space.of_moments(batch_moments(x))
    torch.testing.assert_close(gaps(three(x)), gaps(one(x)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(three(x).mean(0), torch.zeros(pca.n_components_), atol=1e-3, rtol=0)


@pytest.mark.parametrize("projection", [None, torch.ones(2, D)])
def test_state_goes_round(projection: Tensor | None) -> None:
    whitening = Whitening(torch.arange(D).float(), projection)
    again = Whitening.of_state(whitening.state_dict())
    assert torch.equal(again(rows()), whitening(rows()))
    moved = whitening.to(torch.device("meta")).state_dict()
    assert {tensor.device.type for tensor in moved.values()} == {"meta"}


@pytest.mark.parametrize("shape", [(3, 4), (0, 4, 5), (2, 0, 5), (2, 4, 6)])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[B, P, 5\] with B, P >= 1") as caught:
        check_features(torch.zeros(shape), 5)
    assert f"features have shape {list(shape)}" in str(caught.value)


def test_whitening_is_the_inverse_cholesky_factor_of_the_projected_covariance() -> None:
    x = rows(400).double()
    pca = IncrementalPCA(4, torch.float64).partial_fit(x)
    L = CovarianceCholesky().compute(OnlineCovariance(4, torch.float64).update(pca.transform(x)).covariance())
    whitening = ZSpace().of_components(pca.mean_, pca.components_, pca.deviations_)
    expected = torch.linalg.solve_triangular(L, pca.components_, upper=False)
    torch.testing.assert_close(whitening.projection, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(whitening(x), pca.whiten(x))
