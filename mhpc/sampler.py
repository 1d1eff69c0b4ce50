"""Exact greedy coresets: farthest-first selection, blocked and lazy."""

from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mhpc.linalg import blocks, check_rows

Rows = TypeVar("Rows", Tensor, NDArray[np.floating])

CANDIDATES = 2048  # rows kept exact while choosing among them
TIE = 16  # machine epsilons of the squares that a distance is made of: what rounding sets equal rows apart by


class Selection(NamedTuple):
    """Rows chosen [m], in the order of selection, and the covering radius that they leave."""

    indices: Tensor
    radius: float


def farthest_first(
    x: Tensor, n: int, distances: Tensor | None = None, radius: float = 0.0, candidates: int = CANDIDATES
) -> Selection:
    """Choose up to n rows of x [N, D], each the farthest from those chosen before; ties go to the lowest index.

    Gonzalez (1985), "Clustering to minimize the maximum intercluster distance": a covering radius at most twice the
    best. The textbook loop updates N distances for every choice. But a row's distance to the chosen set only ever
    shrinks, so an old distance is an upper bound:

    1. Take the M rows with the largest bounds; the next bound is what no other row exceeds.
    2. Choose among those M, kept exact, until the best of them falls to that bound.
    3. Bring all N up to date with every row chosen since, in one matrix product.

    The same rows as the textbook loop (but for near-ties in float32), in O(N) memory beside x.

    Args:
        distances: [N] to a set that is already covered; without it the first choice is the row farthest from the mean.
        radius: stop once no row is farther than this.
    """
    N, _ = x.shape
    rows = x - x.mean(0)  # smaller numbers, so the expanded square loses fewer digits; distances stay the same
    squares = rows.square().sum(1)
    chosen: list[NDArray[np.int64]] = []
    count, stop = 0, radius * radius
    if distances is None:
        bounds = torch.full_like(squares, torch.inf)
        chosen, count = [_lowest_tied(squares, squares).cpu().numpy()], 1
        bounds = _shrunk(bounds, rows, squares, chosen[0])
    else:
        bounds = distances.square()
    while count < min(n, N):
        fresh = _choose(rows, squares, bounds, min(n, N) - count, stop, candidates)
        if not len(fresh):
            break
        chosen.append(fresh)
        count += len(fresh)
        bounds = _shrunk(bounds, rows, squares, fresh)
    indices = torch.from_numpy(np.concatenate(chosen) if chosen else np.empty(0, np.int64)).to(x.device)
    return Selection(indices, float(bounds.max().clamp_min(0).sqrt()))  # GPU sync


def _choose(rows: Tensor, squares: Tensor, bounds: Tensor, n: int, stop: float, candidates: int) -> NDArray[np.int64]:
    """Steps 1 and 2; on the CPU, where a choice costs microseconds and not a GPU sync."""
    M = min(candidates, len(bounds))
    top = bounds.topk(min(M + 1, len(bounds)))
    outside = float(top.values[-1]) if len(bounds) > M else -1.0  # GPU sync
    members = torch.cat([top.indices[:M], _lowest_tied(bounds, squares)]).unique()  # ascending: argmax takes the lowest
    block = rows[members].cpu().numpy()
    block_squares = squares[members].cpu().numpy()
    exact = bounds[members].cpu().numpy().copy()
    slack = TIE * np.finfo(block.dtype).eps
    chosen: list[int] = []
    while len(chosen) < n:
        farthest = int(exact.argmax())
        tied = exact[farthest] * (1 - slack) - slack * block_squares[farthest]
        # A tied row outside may have the lower index; the first choice is the lowest of all.
        if exact[farthest] <= stop or exact[farthest] < 0 or (chosen and tied <= outside):
            break
        i = int((exact >= max(tied, 0)).argmax())
        chosen.append(i)
        np.minimum(exact, block_squares + block_squares[i] - 2 * (block @ block[i]), out=exact)
        exact[i] = -1  # chosen once
    indices: NDArray[np.int64] = members.cpu().numpy()[chosen]
    return indices


def _lowest_tied(values: Tensor, squares: Tensor) -> Tensor:
    """Index [1] of the first of values [N] that equals the largest within rounding."""
    largest = values.argmax()
    slack = TIE * torch.finfo(values.dtype).eps
    tied = values[largest] * (1 - slack) - slack * squares[largest]
    return (values >= tied).to(torch.uint8).argmax().reshape(1)


def _shrunk(bounds: Tensor, rows: Tensor, squares: Tensor, fresh: NDArray[np.int64]) -> Tensor:
    """Step 3: bounds [N] after the rows `fresh` were chosen; a chosen row's own is -1, below all others."""
    centers = torch.from_numpy(fresh).to(rows.device)
    added, added_squares = rows[centers], squares[centers]
    products = [torch.addmm(added_squares, block, added.T, alpha=-2).amin(1) for block in blocks(rows)]
    shrunk = torch.minimum(bounds, squares + torch.cat(products))
    shrunk[centers] = -1
    return shrunk


class GreedyCoresetSampler:
    """PatchCore's coreset (Roth et al., 2022, algorithm 1), exact and fast.

    Args:
        percentage: share of the rows to keep, in (0, 1).
        device: where distances are computed.
        dimension_to_project_features_to: wider rows are projected to it by a Gaussian matrix before distances are
            taken (Johnson & Lindenstrauss, 1984); the rows returned are the original ones.
        seed: of that projection.
    """

    def __init__(
        self,
        percentage: float,
        device: torch.device | str = "cpu",
        dimension_to_project_features_to: int = 128,
        seed: int = 0,
    ) -> None:
        if not 0 < percentage < 1:
            raise ValueError("Percentage value not in (0, 1).")
        self.percentage = percentage
        self.device = device
        self.dimension_to_project_features_to = dimension_to_project_features_to
        self.seed = seed

    def run(self, features: Rows) -> Rows:
        """The chosen rows of features [N, D], unprojected and in the order of selection; tensor or array, as given.

        Fewer than the percentage where fewer rows are distinct.

        Raises:
            ValueError: not [N, D], not floating, or not finite.
        """
        given = torch.as_tensor(features)
        x = check_rows(given, name="features").to(self.device)
        n = max(1, int(len(x) * self.percentage + 1e-9))  # 1000 / N * N may fall a hair short of 1000
        indices = farthest_first(self._projected(x), n).indices.cpu()
        if isinstance(features, Tensor):
            return features[indices.to(features.device)]
        rows: Rows = features[indices.numpy()]
        return rows

    def _projected(self, x: Tensor) -> Tensor:
        _, D = x.shape
        d = self.dimension_to_project_features_to
        if d >= D:
            return x
        generator = torch.Generator().manual_seed(self.seed)
        projection = torch.randn(D, d, generator=generator, dtype=x.dtype) / d**0.5
        projected: Tensor = x @ projection.to(x.device)
        return projected
