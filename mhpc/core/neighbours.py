"""Nearest rows of a bank, on a CPU: upper bounds by groups, and exact distances where they matter."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mhpc.linalg import blocks, nearest

GROUPS = 128  # of a bank of 6,000 rows: 64 and 192 are no faster in 75 dimensions, in 380 64 are slower
LEAST_ROWS, LEAST_PATCHES = 2000, 128  # of a bank and of an image, below which brute force is as fast
ROUNDING = 16  # machine epsilons: what a product of rows may err by, in their norms' product; 0.8 were seen
SAMPLED = 2  # one row in so many tells where the groups are
SPARE = 8  # patches refined at first beyond twice top_k
PAIRS = 2**16  # rows subtracted at once: beyond one per row there are many only where rows of the bank are equal


class Found(NamedTuple):
    """For patches [B, P]: `distances`, an upper bound or, where `exact`, the distance itself; `labels`, whose it is."""

    distances: Tensor
    labels: Tensor
    exact: Tensor


def groups_pay(rows: Tensor, P: int) -> bool:
    """Whether groups of a bank's rows [K, d] pay for images of P patches, however many these are."""
    return rows.device.type == "cpu" and len(rows) >= LEAST_ROWS and P >= LEAST_PATCHES


class Neighbours:
    """A bank's rows [K, d] in groups, each contiguous, for search on a CPU; a function of the rows alone.

    Only an image's largest patch distances make its score. The nearest row of the nearest group gives an upper bound
    on each; `refine` then searches all rows, largest bound first, until no bound exceeds the top_k-th distance. That is
    exact, as the lazy greedy choice of Minoux (1978) is, and takes a twentieth to a fifth of the brute-force work.
    Lower bounds by the triangle inequality would rule out a hundredth of the rows (75 dimensions or 380), so there are
    none.

    Every distance is computed by difference, and every row that a product's rounding leaves in question is tried: it
    depends on the two rows alone, not on what else is searched.
    """

    def __init__(self, rows: Tensor, rounds: int = 4) -> None:
        """Group rows [K, d] by `rounds` of k-means (Lloyd, 1982) on a sample, seeded by every (K / GROUPS)-th.

        A bank's rows come farthest first: seeds spread over that order lie as densely as the rows, so that groups are
        of similar size. The first rows alone, the outliers, would leave most others in one group.
        """
        K, _ = rows.shape
        centers = rows[torch.arange(0, K, max(1, K // GROUPS))]
        sample = rows[::SAMPLED]
        for _ in range(rounds):
            labels = nearest(sample, centers)[1]
            sizes = torch.bincount(labels, minlength=len(centers))
            sums = torch.zeros_like(centers).index_add_(0, labels, sample)
            centers = (sums / sizes[:, None])[sizes > 0]
        labels = nearest(rows, centers)[1]
        sizes = torch.bincount(labels, minlength=len(centers))
        self.centers, sizes = centers[sizes > 0], sizes[sizes > 0]
        self.order = labels.sort(stable=True).indices
        self.rows = rows[self.order]
        self.half_squares = self.rows.square().sum(1) / 2
        self.largest = float(self.rows.norm(dim=1).max())
        self.ends = sizes.cumsum(0).tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def bounds(self, z: Tensor, probes: int = 1) -> Found:
        """Of patches z [B, P, d]: the distance to the nearest row of the `probes` groups whose centres are nearest."""
        B, P, d = z.shape
        groups = np.concatenate([self.nearest_groups(image, probes) for image in z]).T.ravel()  # [probes B P]
        order = np.argsort(groups, kind="stable")
        by_group = z.reshape(B * P, d)[torch.from_numpy(order % (B * P))]
        stops = np.bincount(groups, minlength=len(self.ends)).cumsum().tolist()
        distances, labels = self._closest(by_group, [0, *stops], [0, *self.ends])
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        least, which = distances[back].reshape(-1, B, P).min(0)
        labels = labels[back].reshape(-1, B, P).gather(0, which[None])[0]
        return Found(least, labels, torch.zeros(B, P, dtype=torch.bool))

    def nearest_groups(self, x: Tensor, probes: int) -> NDArray[np.int16]:
        """[N, probes] for rows x [N, d]; an image at a time, so that products are the same in every batch."""
        products = torch.addmm(self.centers.square().sum(1) / 2, x, self.centers.T, alpha=-1).numpy()
        groups = np.empty((len(x), min(probes, len(self.ends))), np.int16)  # short, since NumPy sorts those by radix
        for column in groups.T:
            column[:] = products.argmin(1)
            products[np.arange(len(x)), column] = np.inf
        return groups

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Distance [N] of rows x [N, d] to the nearest of all rows of the bank, and its index [N]."""
        found = [self._closest(block, [0, len(block)], [0, len(self)]) for block in blocks(x, len(self))]
        distances, labels = zip(*found, strict=True)
        return torch.cat(distances), torch.cat(labels)

    def refine(self, z: Tensor, found: Found, top_k: int, exact_above: float | None = None) -> Found:
        """Make exact, for patches z [B, P, d], the top_k largest distances of each image.

        The patches searched in a round are the same whichever images share the batch.

        Args:
            exact_above: a distance; every patch farther than it is made exact, too.
        """
        _, P, d = z.shape
        distances, labels, exact = (t.clone() for t in found)
        least = torch.inf if exact_above is None else exact_above
        most = min(P, 2 * top_k + SPARE)
        while True:
            floor = distances.where(exact, -torch.inf).topk(min(top_k, P), dim=1).values[:, -1:]
            open_ = distances.where(~exact & (distances > floor), -torch.inf)
            bounds, at = open_.topk(most, dim=1)
            chosen = torch.zeros_like(exact).scatter_(1, at, bounds > -torch.inf) | (~exact & (distances > least))
            rows = chosen.flatten().nonzero()[:, 0]
            if not len(rows):
                return Found(distances, labels, exact)
            distances.view(-1)[rows], labels.view(-1)[rows] = self.nearest(z.reshape(-1, d)[rows])
            exact |= chosen

    def _closest(self, x: Tensor, starts: list[int], begins: list[int]) -> tuple[Tensor, Tensor]:
        """Distance [N] of rows x [N, d] to the nearest of those they are held against, and its index [N].

        Rows starts[i] to starts[i + 1] of x are held against rows begins[i] to begins[i + 1] of the bank.
        """
        eps = torch.finfo(x.dtype).eps
        doubt = (ROUNDING * eps * self.largest * (x.norm(dim=1) + self.largest)).numpy()[:, None]
        found = []
        for (start, stop), (begin, end) in zip(pairwise(starts), pairwise(begins), strict=True):
            if stop > start:
                held = self.rows[begin:end]
                products = torch.addmm(self.half_squares[begin:end], x[start:stop], held.T, alpha=-1).numpy()
                close = products <= products.min(1, keepdims=True) + doubt[start:stop]
                row, column = np.divmod(np.flatnonzero(close), end - begin)
                found.append((row + start, column + begin))
        row, column = (np.concatenate(indices) for indices in zip(*found, strict=True))
        tried = torch.from_numpy(column)
        distances = _distances(x, torch.from_numpy(row), self.rows, tried)
        if len(row) > len(x):
            first = _first_nearest(row, distances.numpy())
            distances, tried = distances[first], tried[first]
        return distances, self.order[tried]


def _distances(x: Tensor, i: Tensor, y: Tensor, j: Tensor) -> Tensor:
    """||x_i - y_j|| [n] for rows i [n] of x and j [n] of y, by difference."""
    parts = [(x[a] - y[b]).norm(dim=1) for a, b in zip(i.split(PAIRS), j.split(PAIRS), strict=True)]
    return torch.cat(parts)


def _first_nearest(row: NDArray[np.int64], distances: NDArray[np.float32]) -> Tensor:
    """Where in the pairs, which ascend by row [n], each row has its smallest distance [n] first."""
    order = np.lexsort((distances, row))
    firsts = np.flatnonzero(np.diff(row, prepend=-1))
    return torch.from_numpy(order[firsts])
