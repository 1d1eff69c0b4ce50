"""How well a few patches stand for all: distances to a coreset, and a plane in which both can be looked at."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from mhpc.core.batch import projection_dimension
from mhpc.evaluation.options import Plane
from mhpc.linalg import nearest
from mhpc.sampler import make_sampler

SHOWN = 4000  # patches drawn for the picture; t-SNE's cost grows faster than their number
SHOWN_CHOSEN = 500  # of a coreset
TSNE_FEATURES = 50  # principal components that t-SNE is given, as its authors do


@dataclass(frozen=True)
class Coverage:
    """`indices` [m] of the rows that a sampler chose, and the `distances` [N] of all rows to the nearest of them."""

    sampler: str
    indices: NDArray[np.int64]
    distances: NDArray[np.float32]

    @property
    def radius(self) -> float:
        """The covering radius: the largest distance."""
        return float(self.distances.max())

    @property
    def worst(self) -> int:
        """Index of the row that is covered worst."""
        return int(self.distances.argmax())


@dataclass(frozen=True)
class Projection:
    """Points [M, 2] of the rows in `shown` [M]; of each coverage, which of them are chosen ones [M]."""

    points: NDArray[np.float32]
    shown: NDArray[np.int64]
    chosen: tuple[NDArray[np.bool_], ...]


def cover(rows: Tensor, sampler: str, percentage: float, device: str = "cpu", seed: int = 0) -> Coverage:
    """What a sampler chooses of rows [N, D], and how far all rows are from it; it projects them where VANILLA does.

    Raises:
        ValueError: an unknown sampler, or a percentage outside (0, 1).
    """
    _, D = rows.shape
    indices = make_sampler(sampler, percentage, device, seed, projection_dimension(D)).select(rows)
    distances = nearest(rows.to(device), rows[indices].to(device))[0].cpu()  # GPU sync
    return Coverage(sampler, indices.numpy(), distances.numpy())


def project(rows: Tensor, coverages: tuple[Coverage, ...], plane: Plane, seed: int = 0) -> Projection:
    """A random sample of rows [N, D], the chosen ones of each coverage and the worst covered, all in one plane.

    A coverage of more than SHOWN_CHOSEN rows is sampled, too; one with fewer is shown whole.
    """
    rng = np.random.default_rng(seed)
    N, _ = rows.shape
    sample = rng.choice(N, min(N, SHOWN), replace=False)
    chosen = [rng.choice(c.indices, min(len(c.indices), SHOWN_CHOSEN), replace=False) for c in coverages]
    shown = np.unique(np.concatenate([sample, *chosen, [c.worst for c in coverages]]))
    x = rows[torch.from_numpy(shown)].cpu().numpy()
    flags = tuple(np.isin(shown, some) for some in chosen)
    return Projection(_in_plane(x, plane, seed), shown, flags)


def _in_plane(x: NDArray[np.float32], plane: Plane, seed: int) -> NDArray[np.float32]:
    if plane is Plane.PCA:
        return np.asarray(PCA(2, random_state=seed).fit_transform(x))
    M, D = x.shape
    few = PCA(min(TSNE_FEATURES, D, M), random_state=seed).fit_transform(x)
    embedding = TSNE(perplexity=min(30.0, (M - 1) / 3), init="pca", random_state=seed)
    return np.asarray(embedding.fit_transform(few))
