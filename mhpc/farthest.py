"""Farthest-first selection, exact, blocked and lazy."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

Floats = NDArray[np.floating]
Indices = NDArray[np.int64]

CANDIDATES = 2048  # rows kept exact while choosing among them, at most
ACTIVE = 5  # one row in so many has its bound looked into in a round
SAMPLE = 256  # of the active rows, to tell which chosen ones cover most of them
FIRST, MOST = 16, 512  # chosen rows that the active ones are held against at first, doubled up to this many
BLOCK = 2048  # rows gathered at once: what fits a core's cache
TIE = 16  # machine epsilons: what rounding sets equal rows apart by


class Selection(NamedTuple):
    """Rows chosen [m], in the order of selection, and the covering radius that they leave."""

    indices: Tensor
    radius: float


def farthest_first(
    x: Tensor,
    n: int,
    distances: Tensor | None = None,
    radius: float = 0.0,
    candidates: int = CANDIDATES,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Selection:
    """Choose up to n rows of x [N, D], each the farthest from those chosen before; ties go to the lowest index.

    Gonzalez (1985), "Clustering to minimize the maximum intercluster distance": a covering radius at most twice the
    best. The textbook loop updates N distances for every choice. But a row's distance to the chosen set only ever
    shrinks, so an old distance is an upper bound that needs no update while it is not among the largest (Minoux, 1978,
    "Accelerated greedy algorithms for maximizing submodular set functions"). In rounds:

    1. Set a level that a fifth of the bounds reach.
    2. Hold those rows against the chosen ones, and let go of a row as soon as its bound falls below the level. Few
       chosen rows cover most of the others; those come first, as a sample tells, so most rows are let go of after 16.
       What stays at or above the level has met every chosen row: its bound is its distance.
    3. Choose among those, kept exact, until the best of them falls below the level.

    The same rows as the textbook loop (but for near-ties in float32), in O(N) memory beside x: neither a centred nor a
    sorted copy of it.

    Args:
        distances: [N] to a set that is already covered; without it the first choice is the row farthest from the mean.
        radius: stop once no row is farther than this.
        device: where distances are computed, block by block; by default where x lies.
        progress: show a bar on a terminal, once it takes 2 s.
    """
    search = _Search(x, n, radius, distances, x.device if device is None else torch.device(device))
    with tqdm(total=len(search.chosen), desc="coreset", delay=2, disable=None if progress else True) as bar:
        while search.unfinished():
            members, outside = search.exact(max(candidates, len(x) // ACTIVE))  # 1, 2
            if len(members):
                search.choose(*search.largest(members, outside, candidates))  # 3
            bar.update(search.count - bar.n)
    indices = torch.from_numpy(search.chosen[: search.count]).to(x.device)
    return Selection(indices, search.radius(max(candidates, len(x) // ACTIVE)))


class _Search:
    """Rows x [N, D], those chosen, and squared upper bounds on all distances to them.

    Bookkeeping is the CPU's, where a choice costs microseconds and not a GPU sync; `device` multiplies matrices.
    With m the mean, x' = x - m and c' = c - m: ||x - c||^2 = ||x'||^2 + (||c'||^2 + 2 m.c') - 2 x.c'. Its rounding
    error is some ||x|| ||c'|| eps, no more than rounding x itself costs, and x needs no centred copy.

    Attributes:
        squares [N]: ||x'||^2.
        bounds [N]: squared; -1 for a chosen row, below all others.
        current [N]: whether a bound is known to be the distance to all chosen so far.
        centers [n, D]: c' of the `count` rows chosen so far, and constants [n] = ||c'||^2 + 2 m.c'.
        floor: largest squared distance among the last candidates; the covering radius is no less.
    """

    def __init__(self, x: Tensor, n: int, radius: float, distances: Tensor | None, device: torch.device) -> None:
        N, D = x.shape
        self.x, self.device = x, device
        self.block = torch.empty(min(BLOCK, N), D, dtype=x.dtype, device=x.device)  # reused: fresh memory is slow
        self.chosen = np.empty(min(n, N), np.int64)
        self.count = 0
        self.current = np.zeros(N, bool)
        self.mean = x.mean(0)
        self.offset = float(self.mean.norm())  # GPU sync
        self.squares = self._squares()
        self.centers = torch.empty(len(self.chosen), D, dtype=x.dtype, device=device)
        self.constants = torch.empty(len(self.chosen), dtype=x.dtype, device=device)
        self.slack = TIE * torch.finfo(x.dtype).eps
        self.stop, self.floor = radius * radius, 0.0
        if distances is not None:
            self.bounds: Floats = distances.square().cpu().numpy()
            return
        self.bounds = self.squares
        first = int((self.bounds >= self._tied(np.arange(N))).argmax())
        self._add(np.array([first]))
        self.bounds = self.squares + self._nearest(np.arange(N), torch.zeros(1, dtype=torch.int64))
        self.bounds[first] = -1

    def _squares(self) -> Floats:
        squares = torch.empty(len(self.x), dtype=self.x.dtype, device=self.x.device)
        for rows, out in zip(self.x.split(BLOCK), squares.split(BLOCK), strict=True):
            centred = torch.sub(rows, self.mean, out=self.block[: len(rows)])
            torch.linalg.vecdot(centred, centred, out=out)
        array: Floats = squares.cpu().numpy()
        return array

    def unfinished(self) -> bool:
        return self.count < len(self.chosen) and bool(self.bounds.max() > self.stop)

    def exact(self, n: int) -> tuple[Indices, float]:
        """Steps 1 and 2: rows whose bounds are exact, ascending, and what no bound outside of them exceeds.

        None may be left where all of some n with the largest bounds turn out to be closer; the next call looks deeper.
        """
        level = self._level(n, self.stop)
        members = self._lowered(level)
        if len(members) and (tied := self._tied(members)) < level:
            # A tied row outside may have the lower index.
            tied = max(tied, self._level(len(self.bounds), self.stop))
            members, level = np.sort(np.append(members, self._lowered(tied, level))), tied
        return members, float(np.nextafter(self.bounds.dtype.type(level), -np.inf))

    def _level(self, n: int, stop: float) -> float:
        """What the n largest bounds reach and all are above `stop`."""
        N = len(self.bounds)
        above = float(np.nextafter(self.bounds.dtype.type(stop), np.inf))
        return above if n >= N else max(above, float(np.partition(self.bounds, N - n)[N - n]))

    def _lowered(self, level: float, below: float = math.inf) -> Indices:
        """Rows whose distance reaches `level`, of those whose bound does (but not `below`); bounds are brought down."""
        active = np.flatnonzero((self.bounds >= level) & ((self.bounds < below) | (below == math.inf)))
        known, active = active[self.current[active]], active[~self.current[active]]
        squares, bounds = self.squares[active], self.bounds[active]
        order = self._by_coverage(active, level)
        start, size = 0, FIRST
        while start < self.count and len(active):
            np.minimum(bounds, squares + self._nearest(active, order[start : start + size]), out=bounds)
            self.bounds[active] = bounds
            left = bounds >= level
            active, squares, bounds = active[left], squares[left], bounds[left]
            start, size = start + size, min(2 * size, MOST)
        self.current[active] = True
        return np.sort(np.append(known, active))

    def _by_coverage(self, active: Indices, level: float) -> Tensor:
        """The chosen rows [count], those that cover most of the active ones first."""
        if self.count <= FIRST or not len(active):
            return torch.arange(self.count)
        sample = active[:: -(-len(active) // SAMPLE)]
        rows, within = self._rows(sample), (level - self.squares[sample])[:, None]
        covered = np.empty(self.count, np.int16)
        for start in range(0, self.count, MOST):
            part = slice(start, min(start + MOST, self.count))
            products = torch.addmm(self.constants[part], rows, self.centers[part].T, alpha=-2).cpu().numpy()  # GPU sync
            covered[part] = (products < within).sum(0, dtype=np.int16)
        return torch.from_numpy(np.argsort(-covered, kind="stable"))

    def _rows(self, index: Indices) -> Tensor:
        """Rows of x at index [k <= BLOCK], on the device, in memory that the next call writes to."""
        at = torch.from_numpy(index).to(self.x.device)
        return torch.index_select(self.x, 0, at, out=self.block[: len(index)]).to(self.device)

    def _nearest(self, index: Indices, which: Tensor) -> Floats:
        """Squared distances [k] of the rows at index [k] to the nearest of the chosen ones `which`, less ||x'||^2."""
        which = which.to(self.device)
        centers, constants = self.centers[which].T, self.constants[which]
        nearest = torch.empty(len(index), dtype=self.x.dtype, device=self.device)
        for start in range(0, len(index), BLOCK):
            every = len(index) == len(self.x)
            rows = self.x[start : start + BLOCK].to(self.device) if every else self._rows(index[start : start + BLOCK])
            torch.amin(torch.addmm(constants, rows, centers, alpha=-2), 1, out=nearest[start : start + BLOCK])
        array: Floats = nearest.cpu().numpy()  # GPU sync
        return array

    def _tied(self, index: Indices) -> float:
        """Squared distance from which rounding alone may have parted a row from the farthest at index [k]."""
        farthest = index[self.bounds[index].argmax()]
        return self._tied_with(float(self.bounds[farthest]), float(self.squares[farthest]))

    def _tied_with(self, distance: float, square: float) -> float:
        reach = math.sqrt(max(distance, 0)) + math.sqrt(square)
        return distance - self.slack * reach * (reach + self.offset) if reach < math.inf else math.inf

    def largest(self, members: Indices, outside: float, n: int) -> tuple[Indices, float]:
        """The n of the members with the largest distances, and the lowest-placed of those that tie for the first."""
        surplus = len(members) - n
        if surplus <= 0:
            return members, outside
        distances = self.bounds[members]
        ranked = np.argpartition(distances, surplus - 1)
        lowest = (distances >= self._tied(members)).argmax()
        return members[np.union1d(ranked[surplus:], lowest)], float(distances[ranked[surplus - 1]])

    def choose(self, members: Indices, outside: float) -> None:
        """Step 3: members [M] are exact, and no other row is farther than `outside`."""
        block = (self.x[torch.from_numpy(members).to(self.x.device)] - self.mean).cpu().numpy()
        exact, squares = self.bounds[members], self.squares[members, None]
        ones = np.ones_like(squares)
        left = np.concatenate([block, squares, ones], 1)  # left . right = ||a||^2 + ||b||^2 - 2 a.b
        right = np.concatenate([-2 * block, ones, squares], 1)
        distances = np.empty_like(exact)
        chosen: list[int] = []
        while self.count + len(chosen) < len(self.chosen):
            farthest = int(exact.argmax())
            tied = self._tied_with(float(exact[farthest]), float(squares[farthest, 0]))
            # Rows outside may tie, except for the first choice, whose ties are all members or of higher index.
            if exact[farthest] <= self.stop or (chosen and tied <= outside):
                break
            i = int((exact >= max(tied, 0)).argmax())
            chosen.append(i)
            np.minimum(exact, np.dot(left, right[i], out=distances), out=exact)
            exact[i] = -1  # chosen once
        self.bounds[members] = exact
        self.floor = max(0.0, float(exact.max()))
        self._add(members[chosen])
        self.current[members] = True

    def _add(self, fresh: Indices) -> None:
        new = slice(self.count, self.count + len(fresh))
        rows = self.x[torch.from_numpy(fresh).to(self.x.device)] - self.mean
        self.chosen[new] = fresh
        self.centers[new] = rows
        self.constants[new] = rows.square().sum(1) + 2 * (rows @ self.mean)
        self.count += len(fresh)
        self.current[:] = False

    def radius(self, n: int) -> float:
        """The covering radius; n bounds are looked into at once."""
        if not self.count:
            return math.sqrt(max(float(self.bounds.max()), 0.0))
        while True:
            level = max(self.floor, self._level(n, 0.0))
            exact = self._lowered(level)
            if len(exact) or level <= max(self.floor, self._level(len(self.bounds), 0.0)):
                return math.sqrt(max(self.floor, float(self.bounds[exact].max(initial=0))))
