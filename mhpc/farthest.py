"""Farthest-first selection, exact, blocked and lazy."""

import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mhpc.linalg import blocks

Floats = NDArray[np.floating]
Indices = NDArray[np.int64]
Exactly = Callable[[Tensor], Tensor]

CANDIDATES = 512  # rows kept exact while choosing among them, at most
KNOWN = 1024  # rows, spread evenly, whose distances are always known: they tell how the others' must look
EAGER = 2**14  # rows: of no more, all distances are always known if a third or more of them is to be chosen
LEFT = 0.9  # of the known, at most, where the chosen among them are let go of
MEMBERS = 200  # rows among which a round is to choose
SAMPLE = 256  # of the active rows, to tell which chosen ones cover most of them
FIRST, MOST = 32, 512  # chosen rows that the active ones are held against at first, doubled up to this many
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
    exactly: Exactly | None = None,
) -> Selection:
    """Choose up to n rows of x [N, D], each the farthest from those chosen before; ties go to the lowest index.

    Gonzalez (1985), "Clustering to minimize the maximum intercluster distance": a covering radius at most twice the
    best. The textbook loop updates N distances for every choice. But a row's distance to the chosen set only ever
    shrinks, so an old distance is an upper bound that needs no update while it is not among the largest (Minoux, 1978,
    "Accelerated greedy algorithms for maximizing submodular set functions"). In rounds:

    1. Set a level that some 200 distances reach, as a sample of rows tells whose distances are always known; so are
       those of all rows where these are few, and most are to be chosen.
    2. Hold the rows whose bounds reach it against the chosen ones; let go of a row as soon as its bound falls below.
       Few chosen rows cover most of the others; those come first, as a sample tells, so most are let go of after 32.
       What stays at or above the level has met every chosen row: its bound is its distance.
    3. Choose among those, kept exact, until the best of them falls below the level.

    The same rows as the textbook loop (but for near-ties in float32), in O(N) memory beside x: no copy of it, neither a
    centred nor a sorted one, but where all distances are known.

    Args:
        distances: [N] to a set that is already covered; without it the first choice is the row farthest from the mean.
        radius: stop once no row is farther than this.
        device: where distances are computed, block by block; by default where x lies.
        progress: show a bar on a terminal, once it takes 2 s.
        exactly: where `distances` are upper bounds, it gives the distances [m] of the rows at indices [m]. It is asked
            for those that no other bound rules out, so the same rows are chosen; the radius is an upper bound, too.
    """
    search = _Search(x, n, radius, distances, x.device if device is None else torch.device(device), exactly)
    shown = progress and sys.stderr.isatty()  # even one that is not shown takes 5 ms to make
    with tqdm(total=len(search.chosen), desc="coreset", delay=2) if shown else nullcontext() as bar:
        while search.unfinished():
            members, outside = search.exact()  # 1, 2
            if len(members):  # none where all bounds above the radius were out of date
                search.choose(*search.largest(members, outside, candidates))  # 3
            if bar is not None:
                bar.update(search.count - bar.n)
    indices = torch.from_numpy(search.chosen[: search.count]).to(x.device)
    return Selection(indices, search.radius())


class _Search:
    """Rows x [N, D], those chosen, and squared upper bounds on all distances to them.

    Bookkeeping is the CPU's, where a choice costs microseconds and not a GPU sync; `device` multiplies matrices.
    With m the mean, x' = x - m and c' = c - m: ||x - c||^2 = ||x'||^2 + (||c'||^2 + 2 m.c') - 2 x.c'. Its rounding
    error is some ||x|| ||c'|| eps, no more than rounding x itself costs, and x needs no centred copy.

    Attributes:
        squares [N]: ||x'||^2.
        bounds [N]: squared; -1 for a chosen row, below all others.
        current [N]: whether a bound is known to be the distance to all chosen so far.
        known: a share of the rows, whose bounds are always current, and `known_rows` of x; chosen ones may be left out.
        centers [n, D]: c' of the `count` rows chosen so far, and constants [n] = ||c'||^2 + 2 m.c'.
        floor: largest squared distance among the last candidates; the covering radius is no less.
    """

    def __init__(
        self, x: Tensor, n: int, radius: float, distances: Tensor | None, device: torch.device, exactly: Exactly | None
    ) -> None:
        N, D = x.shape
        self.x, self.device, self.exactly = x, device, exactly
        self.unsure = np.full(N, exactly is not None)  # of the distances that were given
        self.block = torch.empty(min(BLOCK, N), D, dtype=x.dtype, device=x.device)  # reused: fresh memory is slow
        self.products = torch.empty(min(BLOCK, N) * MOST, dtype=x.dtype, device=device)  # the same
        self.chosen = np.empty(min(n, N), np.int64)
        self.count = 0
        self.current = np.zeros(N, bool)
        eager = N <= EAGER and 3 * n >= N and not radius  # else rows are held against the same ones again and again
        self.known = np.arange(0, N, 1 if eager else -(-N // KNOWN))
        self.share = len(self.known) / N
        self.known_rows = x[torch.from_numpy(self.known).to(x.device)].to(device)
        self.mean = x.mean(0)
        self.offset = float(self.mean.norm())  # GPU sync
        self.squares = self._squares()
        if not np.isfinite(self.squares).all():
            raise ValueError(f"rows {list(x.shape)} {x.dtype} reach {float(x.abs().max()):.1e}, whose square overflows")
        self.centers = torch.empty(len(self.chosen), D, dtype=x.dtype, device=device)
        self.constants = torch.empty(len(self.chosen), dtype=x.dtype, device=device)
        self.slack = TIE * torch.finfo(x.dtype).eps
        self.stop, self.floor = radius * radius, 0.0
        if distances is not None:
            self.bounds: Floats = distances.square().cpu().numpy()
            return
        self.bounds = self.squares
        first = int((self.bounds >= self._tied(np.arange(N))).argmax())
        self._add(np.array([first]), (x[first : first + 1] - self.mean).to(device))
        products = [rows.to(device) @ self.centers[0] for rows in blocks(x)]
        self.bounds = self.squares + (self.constants[0] - 2 * torch.cat(products)).cpu().numpy()  # GPU sync
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

    def exact(self) -> tuple[Indices, float]:
        """Steps 1 and 2: rows whose bounds are exact, ascending, and what no bound outside of them exceeds."""
        level = self._level()
        members = self._lowered(level)
        if len(members) and (tied := self._tied(members)) < level:
            # A tied row outside may have the lower index.
            tied = max(tied, self._above(self.stop))
            members, level = np.sort(np.append(members, self._lowered(tied, level))), tied
        return members, float(np.nextafter(self.bounds.dtype.type(level), -np.inf))

    def _level(self) -> float:
        """What about MEMBERS distances reach, and all are above `stop`."""
        known = self.bounds[self.known]
        place = len(known) - min(len(known), max(1, round(self.share * MEMBERS)))
        return max(float(np.partition(known, place)[place]), self._above(self.stop))

    def _above(self, distance: float) -> float:
        return float(np.nextafter(self.bounds.dtype.type(distance), np.inf))

    def _lowered(self, level: float, below: float = math.inf) -> Indices:
        """Rows whose distance reaches `level`, of those whose bound does (but not `below`); bounds are brought down."""
        active = np.flatnonzero(self.bounds >= level)
        if below < math.inf:
            active = active[self.bounds[active] < below]
        current = self.current[active]
        known, active = active[current], active[~current]
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
        return self._sure(np.sort(np.append(known, active)), level)

    def _sure(self, index: Indices, level: float) -> Indices:
        """Those of the rows at index [k] that reach `level` when what was given is exact for them, too."""
        unsure = index[self.unsure[index]]
        if self.exactly is None or not len(unsure):
            return index
        squares = self.exactly(torch.from_numpy(unsure).to(self.x.device)).square().cpu().numpy()  # GPU sync
        self.bounds[unsure] = np.minimum(self.bounds[unsure], squares)
        self.unsure[unsure] = False
        return index[self.bounds[index] >= level]

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
            rows = self._rows(index[start : start + BLOCK])
            out = self.products[: len(rows) * len(which)].view(len(rows), -1)
            torch.amin(torch.addmm(constants, rows, centers, alpha=-2, out=out), 1, out=nearest[start : start + BLOCK])
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
        rows = (self.x[torch.from_numpy(members).to(self.x.device)] - self.mean).to(self.device)
        exact, squares = self.bounds[members], self.squares[members]
        apart = torch.addmm(torch.from_numpy(squares).to(self.device), rows, rows.T, alpha=-2).cpu().numpy()
        apart += squares[:, None]  # [M, M] squared distances
        chosen: list[int] = []
        while self.count + len(chosen) < len(self.chosen):
            farthest = int(exact.argmax())
            tied = self._tied_with(float(exact[farthest]), float(squares[farthest]))
            # Rows outside may tie, except for the first choice, whose ties are all members or of higher index.
            if exact[farthest] <= self.stop or (chosen and tied <= outside):
                break
            i = int((exact >= tied).argmax())
            if tied <= 0:  # all of it may be rounding, between equal rows
                i, square = farthest, self._by_difference(members, farthest, chosen, exact)
                if square < exact[i]:  # then another may be farther
                    exact[i] = square
                    continue
            chosen.append(i)
            np.minimum(exact, apart[i], out=exact)
            exact[i] = -1  # chosen once
        self.bounds[members] = exact
        if chosen:
            new = self._add(members[chosen], rows[chosen])
            products = torch.addmm(self.constants[new], self.known_rows, self.centers[new].T, alpha=-2)
            nearest = self.squares[self.known] + products.amin(1).cpu().numpy()  # GPU sync
            self.bounds[self.known] = np.minimum(self.bounds[self.known], nearest)
            left = self.bounds[self.known] >= 0  # not chosen
            if 0 < left.sum() <= LEFT * len(left):
                self.known, self.known_rows = self.known[left], self.known_rows[torch.from_numpy(left)]
        self.floor = max(0.0, float(self.bounds[members].max()))
        self.current[members] = self.current[self.known] = True

    def _by_difference(self, members: Indices, i: int, fresh: list[int], exact: Floats) -> float:
        """Squared distance of member i to the chosen ones, those of this round included, where rows may be equal."""
        chosen = torch.from_numpy(np.append(self.chosen[: self.count], members[fresh])).to(self.x.device)
        squares = (self.x[chosen] - self.x[int(members[i])]).square().sum(1)
        return min(float(exact[i]), float(squares.min())) if len(squares) else float(exact[i])  # GPU sync

    def _add(self, fresh: Indices, rows: Tensor) -> slice:
        """Choose `fresh` [k], whose centred rows are `rows` [k, D]; where they stand among the centers."""
        new = slice(self.count, self.count + len(fresh))
        self.chosen[new] = fresh
        self.centers[new] = rows
        self.constants[new] = rows.square().sum(1) + 2 * (rows @ self.mean.to(rows))
        self.count += len(fresh)
        self.current[:] = False
        return new

    def radius(self) -> float:
        """The covering radius."""
        if not self.count:
            return math.sqrt(max(float(self.bounds.max()), 0.0))
        level = max(self.floor, float(self.bounds[self.known].max()))
        return math.sqrt(max(level, float(self.bounds[self._lowered(level)].max(initial=0))))
