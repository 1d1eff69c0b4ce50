import numpy as np
import pytest
import sklearn.cluster
import torch
from torch import Tensor

from mhpc import MiniBatchKMeans
from mhpc.cluster import move_centers
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


def test_moving_centers_gives_new_ones() -> None:
    centers, x = blobs()[:4].clone(), blobs(20, seed=1)
    moved = move_centers(centers, torch.full((4,), 40), x, torch.arange(20) % 4)
    assert torch.equal(centers, blobs()[:4])
    torch.testing.assert_close(moved, centers + (x.reshape(5, 4, 4) - centers).sum(0) / 40)


@pytest.mark.parametrize(
    ("kmeans", "batch", "text"),
    [
        (MiniBatchKMeans(5), blobs(4), "first batch has 4 rows, expected at least n_clusters = 5"),
        (MiniBatchKMeans(5), torch.ones(9, 4), "first batch has 1 distinct rows, expected at least n_clusters = 5"),
        (MiniBatchKMeans(5, init=torch.zeros(5, 3)), blobs(), r"init has shape \[5, 3\], expected \[5, 4\]"),
        (MiniBatchKMeans(5, init="random"), blobs(), r"init is 'random', expected \"k-center\" or centres \[5, 4\]"),
    ],
)
def test_a_start_that_cannot_be_made_is_refused(kmeans: MiniBatchKMeans, batch: Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        kmeans.partial_fit(batch)
