"""Nearest rows of a bank, on a CPU: upper bounds by groups, and exact distances where they matter."""

from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mhpc.linalg import CPU_BLOCK, nearest_index

GROUPS = 128  # of a bank of 6,000 rows: 64 and 192 are no faster in 75 dimensions, in 380 64 are slower
LEAST_ROWS, LEAST_PATCHES = 2000, 128  # of a bank and of an image, below which brute force is as fast
ROUNDING = 16  # machine epsilons: what a product of rows may err by, in their norms' product; 10 were seen
SAMPLED = 2  # one row in so many tells where the groups are
SPARE = 8  # patches refined at first beyond twice top_k
UNLIKE = 4  # times as many rows has a group whose products stand in another matrix
PAIRS = 2**16  # rows subtracted at once: beyond one per row there are many only where rows of the bank are equal

Places: TypeAlias = NDArray[np.int64]


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
            labels = nearest_index(sample, centers)
            sizes = torch.bincount(labels, minlength=len(centers))
            sums = torch.zeros_like(centers).index_add_(0, labels, sample)
            centers = (sums / sizes[:, None])[sizes > 0]
        labels = nearest_index(rows, centers)
        sizes, by_size = torch.bincount(labels, minlength=len(centers)).sort(stable=True)
        self.centers, self.sizes = centers[by_size][sizes > 0], sizes[sizes > 0].numpy()
        self.factors_of_centers = _factors(self.centers)
        self.order = by_size.argsort()[labels].sort(stable=True).indices
        self.rows = rows[self.order]
        self.factors = _factors(self.rows)
        self.largest = float(self.rows.norm(dim=1).max())

    def __len__(self) -> int:
        return len(self.rows)

    def bounds(self, z: Tensor, probes: int = 1) -> Found:
        """Of patches z [B, P, d]: the distance to the nearest row of the `probes` groups whose centres are nearest."""
        B, P, d = z.shape
        groups = self.nearest_groups(z, probes).T.ravel()  # [probes B P]
        order = np.argsort(groups, kind="stable")
        by_group = z.reshape(B * P, d)[torch.from_numpy(order % (B * P))]
        taken = np.bincount(groups, minlength=len(self.sizes))
        distances, labels = self._closest(by_group, taken, self.sizes)
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        least, which = distances[back].reshape(-1, B, P).min(0)
        labels = labels[back].reshape(-1, B, P).gather(0, which[None])[0]
        return Found(least, labels, torch.zeros(B, P, dtype=torch.bool))

    def nearest_groups(self, z: Tensor, probes: int) -> NDArray[np.int16]:
        """[B P, probes] for patches z [B, P, d]; an image at a time, so that products are the same in every batch."""
        B, P, _ = z.shape
        products = z.new_empty(B, P, len(self.centers))
        for image, out in zip(F.pad(z, (0, 1), value=1.0), products, strict=True):
            torch.mm(image, self.factors_of_centers.T, out=out)
        by_patch = products.flatten(0, 1).numpy()
        groups = np.empty((B * P, min(probes, len(self.sizes))), np.int16)  # short: NumPy sorts those by radix
        for place, column in enumerate(groups.T):
            if place:
                by_patch[np.arange(B * P), groups[:, place - 1]] = np.inf
            column[:] = by_patch.argmin(1)
        return groups

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Distance [N] of rows x [N, d] to the nearest of all rows of the bank, and its index [N]."""
        return self._closest(x, np.array([len(x)]), np.array([len(self)]))

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

    def _closest(self, x: Tensor, taken: Places, held: Places) -> tuple[Tensor, Tensor]:
        """Distance [N] of rows x [N, d] to the nearest of those they are held against, and its index [N].

        The first taken[0] rows of x are held against the first held[0] of the bank, the next taken[1] against the next
        held[1], and so on; `held` ascends.
        """
        # Groups of like size: side by side they leave little of a matrix unused.
        band = np.floor(np.log(held[-1] / held) / np.log(UNLIKE))
        stops, ends = np.append(0, taken.cumsum()), np.append(0, held.cumsum())
        found = []
        for first, last in pairwise([*np.flatnonzero(np.diff(band, prepend=np.inf)), len(held)]):
            start, at = stops[first], ends[first]
            for block in x[start : stops[last]].split(max(1, CPU_BLOCK // int(held[last - 1]))):
                of_block = np.diff(np.clip(stops[first : last + 1], start, start + len(block)))
                found.append(self._side_by_side(block, of_block, held[first:last], at))
                start += len(block)
        distances, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        return distances, self.order[labels]

    def _side_by_side(self, x: Tensor, taken: Places, held: Places, at: int) -> tuple[Tensor, Tensor]:
        """As `_closest`, but the index is that of `rows`, of which those from `at` on are held against; by one matrix
        of products, so that what follows them is done once for all groups."""
        shape = len(x), int(held[-1])
        products = x.new_empty(shape) if len(held) == 1 else x.new_full(shape, torch.inf)
        rows, factors = F.pad(x, (0, 1), value=1.0), self.factors[at : at + held.sum()]
        split = rows.split(taken.tolist()), products.split(taken.tolist()), factors.split(held.tolist())
        for part, out, of_group in zip(*split, strict=True):
            if len(part):
                torch.mm(part, of_group.T, out=out[:, : len(of_group)])
        return self._compared(x, products.numpy(), at + np.repeat(held.cumsum() - held, taken))

    def _compared(self, x: Tensor, products: NDArray[np.float32], before: Places) -> tuple[Tensor, Tensor]:
        """Distances [N] and indices [N] of the nearest of `rows`, from the products [N, W] of x [N, d] with the W rows
        after the first `before` [N]; what rounding leaves undecided is compared anew."""
        every = np.arange(len(x))
        column = products.argmin(1)
        least = products[every, column]
        doubt = ROUNDING * torch.finfo(x.dtype).eps * self.largest * (x.norm(dim=1) + self.largest)
        limit = least + doubt.numpy()
        products[every, column] = np.inf
        second = torch.from_numpy(products).amin(1).numpy()  # on all threads, which NumPy's is not
        products[every, column] = least
        label = torch.from_numpy(column + before)
        distances = (x - self.rows[label]).norm(dim=1)
        if len(several := np.flatnonzero(second <= limit)):
            of, column = np.nonzero(products[several] <= limit[several, None])
            row, tried = several[of], torch.from_numpy(column + before[several[of]])
            apart = _distances(x, torch.from_numpy(row), self.rows, tried)
            nearest_of = _first_nearest(row, apart.numpy())
            distances[several], label[several] = apart[nearest_of], tried[nearest_of]
        return distances, label


def _factors(y: Tensor) -> Tensor:
    """(-y, ||y||^2 / 2) [K, d + 1] for rows y [K, d]: times (x, 1) that is least for the y nearest to x.

    One product does it all; to add the squares to it takes as long again, where they are few.
    """
    return torch.cat([-y, y.square().sum(1, keepdim=True) / 2], 1)


def _distances(x: Tensor, i: Tensor, y: Tensor, j: Tensor) -> Tensor:
    """||x_i - y_j|| [n] for rows i [n] of x and j [n] of y, by difference."""
    parts = [(x[a] - y[b]).norm(dim=1) for a, b in zip(i.split(PAIRS), j.split(PAIRS), strict=True)]
    return torch.cat(parts)


def _first_nearest(row: NDArray[np.int64], distances: NDArray[np.float32]) -> Tensor:
    """Where in the pairs, which ascend by row [n], each row has its smallest distance [n] first."""
    order = np.lexsort((distances, row))
    firsts = np.flatnonzero(np.diff(row, prepend=-1))
    return torch.from_numpy(order[firsts])
