from typing import Any

import numpy as np
import pytest
import sklearn.cluster
import torch
from numpy.typing import NDArray
from torch import Tensor

from mhpc import MiniBatchKMeans
from mhpc.cluster import move_centers_
from mhpc.sampler import farthest_first


def blobs(N: int = 600, D: int = 4, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(0, 4, (6, D))[rng.integers(0, 6, N)] + rng.standard_normal((N, D)))


def test_centers_and_inertia_are_scikit_learns_from_the_same_start() -> None:
    x = blobs()
    start = x[:9]
    ours = MiniBatchKMeans(9, init=start)
    theirs = sklearn.cluster.MiniBatchKMeans(9, init=start.numpy(), n_init=1, reassignment_ratio=0)
    for i, batch in enumerate(x.split(100)):
        inertia = float(torch.cdist(batch, start).amin(1).square().sum()) if i == 0 else -theirs.score(batch.numpy())
        ours.partial_fit(batch)
        theirs.partial_fit(batch.numpy())
        np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-9)
        np.testing.assert_allclose(ours.inertia_, inertia, rtol=1e-9)
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x.numpy()))
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x.numpy()), atol=1e-9)


def test_a_center_is_the_mean_of_all_rows_it_ever_took() -> None:
    x = blobs()
    kmeans = MiniBatchKMeans(5)
    taken: list[list[Tensor]] = [[] for _ in range(5)]
    for batch in x.split(60):
        labels = kmeans.predict(batch) if hasattr(kmeans, "cluster_centers_") else None
        kmeans.partial_fit(batch)
        if labels is None:  # the first batch also seeds
            labels = torch.cdist(batch, batch[farthest_first(batch, 5).indices]).argmin(1)
        for row, label in zip(batch, labels.tolist(), strict=True):
            taken[label].append(row)
    assert kmeans.counts_.tolist() == [len(rows) for rows in taken]
    assert int(kmeans.counts_.sum()) == len(x)
    torch.testing.assert_close(kmeans.cluster_centers_, torch.stack([torch.stack(rows).mean(0) for rows in taken]))


def test_a_center_that_takes_no_row_stays_where_it_is() -> None:
    far = torch.full((1, 4), 1e3, dtype=torch.float64)
    kmeans = MiniBatchKMeans(3, init=torch.cat([blobs()[:2], far])).partial_fit(blobs())
    assert torch.equal(kmeans.cluster_centers_[2:], far)
    assert kmeans.counts_[2] == 0


def test_the_centers_given_are_not_changed() -> None:
    start = blobs()[:4].clone()
    before = start.clone()
    MiniBatchKMeans(4, init=start).partial_fit(blobs()).partial_fit(blobs(seed=1))
    assert torch.equal(start, before)


def moved(centers: Tensor, *given: Tensor) -> Tensor:
    centers = centers.clone()
    move_centers_(centers, *given)
    return centers


def test_centers_move_towards_the_mean_of_their_rows_and_stay_where_counts_are_infinite() -> None:
    centers, x, counts = blobs()[:4], blobs(20, seed=1), torch.tensor([40, 40, 40, torch.inf])
    expected = centers + (x.reshape(5, 4, 4) - centers).sum(0) / counts[:, None]
    found = moved(centers, counts, x, torch.arange(20) % 4)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[3], centers[3])


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_counts_may_be_whole_numbers_or_not(dtype: torch.dtype) -> None:
    centers, x, labels = blobs()[:4], blobs(20, seed=1), torch.arange(20) % 4
    counts = torch.full((4,), 40, dtype=dtype)
    weights = torch.ones(20, dtype=torch.float64)
    assert torch.equal(moved(centers, counts, x, labels), moved(centers, counts.double(), x, labels, weights))


def blobs_given_by_weight() -> tuple[Tensor, Tensor, Tensor]:
    """Rows, whole weights of 0 to 3, and the rows given as often as they weigh."""
    x = blobs(200)
    weights = torch.from_numpy(np.random.default_rng(1).integers(0, 4, 200)).double()
    return x, weights, x.repeat_interleave(weights.long(), 0)


@pytest.mark.parametrize("init", ["k-center", blobs(5, seed=7)])
def test_a_row_that_weighs_two_equals_one_given_twice(init: str | Tensor) -> None:
    x, weights, repeated = blobs_given_by_weight()
    by_weight = MiniBatchKMeans(5, init).partial_fit(x, sample_weight=weights)
    by_rows = MiniBatchKMeans(5, init).partial_fit(repeated)
    for _ in range(2):
        torch.testing.assert_close(by_weight.cluster_centers_, by_rows.cluster_centers_)
        assert torch.equal(by_weight.counts_, by_rows.counts_)
        np.testing.assert_allclose(by_weight.inertia_, by_rows.inertia_)
        np.testing.assert_allclose(by_weight.score(x, sample_weight=weights), by_rows.score(repeated))
        by_weight.fit(x, sample_weight=weights)  # one batch an epoch
        by_rows.fit(repeated)


def test_weights_move_centers_as_scikit_learns_do() -> None:
    x, weights, _ = blobs_given_by_weight()
    start = blobs(6, seed=7)
    ours = MiniBatchKMeans(6, init=start)
    theirs = sklearn.cluster.MiniBatchKMeans(6, init=start.numpy(), n_init=1, reassignment_ratio=0)
    for part, w in zip(x.split(50), weights.split(50), strict=True):
        ours.partial_fit(part, sample_weight=w)
        theirs.partial_fit(part.numpy(), sample_weight=w.numpy())
        np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-9)
    assert float(ours.counts_.sum()) == float(weights.sum())


def test_a_center_whose_rows_weigh_nothing_stays_where_it_is() -> None:
    start = torch.tensor([[0.0], [10.0]])
    kmeans = MiniBatchKMeans(2, start).partial_fit(torch.tensor([[1.0], [9.0]]), sample_weight=torch.tensor([1.0, 0.0]))
    assert kmeans.cluster_centers_.tolist() == [[1.0], [10.0]]


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (torch.ones(7), r"sample_weight has shape \[7\], expected \[600\], one for each row"),
        (torch.ones(600, 1), r"sample_weight has shape \[600, 1\]"),
        (torch.zeros(600), "expected finite numbers >= 0 that are not all zero"),
        (torch.linspace(-1, 1, 600), "has minimum -1.0 and sum"),
        (torch.full((600,), torch.nan), "has minimum nan"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights: Tensor, text: str) -> None:
    for learn in (MiniBatchKMeans(5).fit, MiniBatchKMeans(5).partial_fit):
        with pytest.raises(ValueError, match=text):
            learn(blobs(), sample_weight=weights)


@pytest.mark.parametrize("init", ["k-center", "k-means++", "random", blobs(50, seed=3), blobs(50, seed=3).numpy()])
def test_fit_comes_as_near_as_scikit_learns(init: str | Tensor | NDArray[np.float64]) -> None:
    x = blobs(3000)
    ours = MiniBatchKMeans(50, init, batch_size=256).fit(x)
    start = {"k-center": "k-means++"}.get(init, init) if isinstance(init, str) else np.asarray(init)
    theirs = sklearn.cluster.MiniBatchKMeans(
        50, init=start, n_init=1, batch_size=256, random_state=0, reassignment_ratio=0
    ).fit(x.numpy())
    assert ours.inertia_ <= 1.05 * theirs.inertia_
    assert 1 < ours.n_iter_ < 100
    assert torch.equal(ours.labels_, ours.predict(x))
    np.testing.assert_allclose(ours.inertia_, -ours.score(x))
    np.testing.assert_allclose(ours.inertia_, ours.transform(x).amin(1).square().sum())


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_what_is_drawn_follows_from_the_random_state(init: str) -> None:
    first, same, other = (MiniBatchKMeans(20, init, random_state=seed).fit(blobs()) for seed in (3, 3, 4))
    assert torch.equal(first.cluster_centers_, same.cluster_centers_)
    assert not torch.equal(first.cluster_centers_, other.cluster_centers_)


def test_more_epochs_than_asked_for_are_not_taken() -> None:
    kmeans = MiniBatchKMeans(20, max_iter=2, tol=0).fit(blobs())
    assert kmeans.n_iter_ == 2
    assert float(kmeans.counts_.sum()) == 1200  # every row once an epoch


@pytest.mark.parametrize(("init", "rows"), [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_centers_take_the_first_rows_type_and_later_rows_take_theirs(init: torch.dtype, rows: torch.dtype) -> None:
    kmeans = MiniBatchKMeans(5, blobs(5, seed=3).to(init)).partial_fit(blobs().to(rows))
    assert kmeans.cluster_centers_.dtype == rows
    kmeans.partial_fit(blobs(seed=1).to(init))
    assert kmeans.cluster_centers_.dtype == kmeans.transform(blobs().to(init)).dtype == rows
    assert MiniBatchKMeans(5).partial_fit(blobs().half()).cluster_centers_.dtype == torch.float32


@pytest.mark.parametrize(
    ("kmeans", "batch", "text"),
    [
        (MiniBatchKMeans(5), blobs(4), r"X has 4 rows .*, expected at least n_clusters = 5"),
        (MiniBatchKMeans(5), torch.ones(9, 4), r"X has 1 distinct rows"),
        (MiniBatchKMeans(5, init=torch.zeros(5, 3)), blobs(), r"init has shape \[5, 3\], expected \[5, 4\]"),
        (MiniBatchKMeans(5, init=torch.full((5, 4), torch.inf)), blobs(), r"init \[5, 4\] holds NaN or infinite"),
        (MiniBatchKMeans(5, init="grid"), blobs(), r"init is 'grid', expected .* or centres \[5, 4\]"),
        (MiniBatchKMeans(0), blobs(), "n_clusters is 0, expected an int of 1 or more"),
    ],
)
def test_a_start_that_cannot_be_made_is_refused(kmeans: MiniBatchKMeans, batch: Tensor, text: str) -> None:
    for learn in (kmeans.partial_fit, kmeans.fit):
        with pytest.raises(ValueError, match=text):
            learn(batch)


@pytest.mark.parametrize(
    ("init", "text"),
    [
        (lambda x, k, random_state: x[:k], r"init is <function .*, expected .* or centres \[5, D\]"),
        (None, r"init is None, expected .* or centres \[5, D\]"),
        ({"a": 1}, r"init is {'a': 1}, expected .* or centres \[5, D\]"),
        (3, r"init has shape \[\], expected \[5, 4\]"),
    ],
)
def test_what_are_no_centers_is_refused(init: Any, text: str) -> None:
    test_a_start_that_cannot_be_made_is_refused(MiniBatchKMeans(5, init), blobs(), text)


def test_fit_refuses_fewer_rows_than_clusters_even_where_centers_are_given() -> None:
    kmeans = MiniBatchKMeans(5, init=blobs(5))
    with pytest.raises(ValueError, match=r"X has 4 rows .*, expected at least n_clusters = 5"):
        kmeans.fit(blobs(4))
    assert float(kmeans.partial_fit(blobs(4)).counts_.sum()) == 4  # of a stream more may come


@pytest.mark.parametrize("asked", [3, 8])
def test_another_number_of_clusters_is_for_the_next_fit_and_until_then_the_centers_are_those_that_began(
    asked: int,
) -> None:
    x = blobs()
    ours, same = (MiniBatchKMeans(5, init=x[:5]).partial_fit(x[:300]) for _ in range(2))
    theirs = sklearn.cluster.MiniBatchKMeans(5, init=x[:5].numpy(), n_init=1).partial_fit(x[:300].numpy())
    for one in (ours, theirs):
        one.set_params(n_clusters=asked).partial_fit(x[300:].numpy())
        assert one.transform(x.numpy()).shape == (600, 5)
        assert len(one.get_feature_names_out()) == 5
    assert torch.equal(ours.cluster_centers_, same.partial_fit(x[300:]).cluster_centers_)
    assert float(ours.counts_.sum()) == 600
    assert len(ours.set_params(init="k-center").fit(x).get_feature_names_out()) == asked


def test_a_state_of_another_number_of_clusters_is_refused() -> None:
    state = MiniBatchKMeans(5).fit(blobs()).state_dict()
    with pytest.raises(ValueError, match=r"the state's cluster_centers has shape \[5, 4\], expected \[6, D\]"):
        MiniBatchKMeans(6).load_state_dict(state)


@pytest.mark.parametrize("row", [[1e39, 0, 0, 0], [2e19, 0, 0, 0]])
def test_rows_whose_squares_overflow_are_refused_and_not_learned(row: list[float]) -> None:
    """The first is finite in its own type, but not in the centres'."""
    kmeans = MiniBatchKMeans(3).partial_fit(blobs().float())
    before = kmeans.state_dict()
    with pytest.raises(ValueError, match=r"rows \[1, 4\] torch.float32 reach .*, whose square overflows"):
        kmeans.partial_fit(torch.tensor([row], dtype=torch.float64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in kmeans.state_dict().items())


@pytest.mark.parametrize("init", ["k-center", "random", blobs()[:3] * 1e20])
def test_first_rows_whose_squares_overflow_are_refused_however_centers_begin(init: Any) -> None:
    for learn in ("fit", "partial_fit"):
        with pytest.raises(ValueError, match=r"rows \[600, 4\] torch.float32 reach .*e\+2\d, whose square overflows"):
            getattr(MiniBatchKMeans(3, init=init), learn)(blobs().float() * 1e20)


def test_far_from_the_origin_labels_and_inertia_are_those_of_the_distances() -> None:
    x = (blobs(2000) + 1e4).float()
    kmeans = MiniBatchKMeans(50, max_iter=3).fit(x)
    distances = torch.cdist(x.double(), kmeans.cluster_centers_.double())
    assert kmeans.inertia_ == pytest.approx(float(distances.amin(1).square().sum()), rel=1e-4)
    assert kmeans.score(x) == pytest.approx(-kmeans.inertia_)
    for labels in (kmeans.predict(x), kmeans.labels_):
        chosen = distances.gather(1, labels[:, None])[:, 0]
        torch.testing.assert_close(chosen, distances.amin(1), rtol=0, atol=1e-2)  # float32 has steps of 0.001 there
