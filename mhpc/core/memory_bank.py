"""The memory bank of a stream: a streaming k-center of anchors, most of which move."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mhpc.cluster import move_centers_
from mhpc.core.bank import Bank, Nearest
from mhpc.core.doubt import find_doubt
from mhpc.core.recent import UNLIKE
from mhpc.core.whitening import Whitening
from mhpc.linalg import nearest, nearest_index
from mhpc.sampler import farthest_first

OVERFULL = 1.25  # times what it holds while it learns, where the bank is reduced
SMALL = (1000, 2000)  # anchors: a bank between holds the latter while it learns
ROUNDING = 16  # machine epsilons: distances below so many norms are none
LEAST_MASS = 0.5  # rows
MAX_PINNED = 0.5  # of bank_size
RADIUS_SAMPLE = 1024  # anchors whose nearest distances tell how a new basis scales


class MemoryBank(Bank):
    """Anchors of a streaming k-center, `bank_size` once reduced, up to OVERFULL times `held` in between.

    A small bank holds more while it learns than it keeps: reduced again and again, it would lose 0.02 of AUROC on tiles
    with 1,000 anchors; kept twice as large and merged once, at the end, it loses 0.011.

    Attributes, beside those of a Bank:
        mass [K]: rows an anchor stands for; sums to the rows seen, less what was forgotten.
        moves [K]: rows it has moved by; its step size is 1 / moves.
        support [K]: distinct pictures with a patch nearest to it.
        picture [K]: number of the picture that it was born from; -1 for one of earlier days, or that a person vouches
            for, by a pin or otherwise.
        lift [K]: squared distance that doubt adds to it in scoring; 0 until `judge` has been asked.
        pinned [K]: whether it was put there by a person: it is neither moved nor dropped.
        radius: tau, beyond which a row becomes an anchor; 0 until the bank has been full.
        numbers [n], means [n, D]: of the pictures that an anchor was born from, the mean of their rows.

    Args:
        moving: whether anchors move to the mean of the rows nearest to them (mini-batch k-means), or stay.
    """

    ROWS = ("anchors", "images", "mass", "moves", "support", "picture", "lift", "pinned")
    STATE = (*ROWS, "numbers", "means")
    SCORES_BY = (*Bank.SCORES_BY, "lift")

    def __init__(self, bank_size: int, num_features: int, device: torch.device, moving: bool = True) -> None:
        super().__init__(bank_size, num_features, device)
        self.moving = moving
        self.mass = torch.empty(0, dtype=torch.float64, device=device)
        self.moves = torch.empty(0, dtype=torch.float64, device=device)
        self.support = torch.empty(0, dtype=torch.float64, device=device)
        self.picture = torch.empty(0, dtype=torch.int64, device=device)
        self.lift = torch.empty(0, dtype=torch.float32, device=device)
        self.pinned = torch.empty(0, dtype=torch.bool, device=device)
        self.radius = 0.0
        self.numbers = torch.empty(0, dtype=torch.int64, device=device)
        self.means = torch.empty(0, num_features, dtype=torch.float32, device=device)

    @property
    def kept(self) -> int:
        """Anchors that the last reduction leaves: bank_size, or, where that was lowered since anchors were pinned, as
        many as leave those that are learned their half."""
        return max(self.bank_size, math.ceil(int(self.pinned.sum()) / MAX_PINNED))  # GPU sync

    @property
    def held(self) -> int:
        """Anchors that a reduction leaves while it learns."""
        return _held(self.kept)

    @property
    def lifts(self) -> Tensor:
        return self.lift

    @property
    def free_number(self) -> int:
        return int(self.numbers.max()) + 1 if len(self.numbers) else 0  # GPU sync

    def refresh(self, whitening: Whitening) -> None:
        """See the anchors through a new basis, and scale the radius as the distances between them scaled."""
        old = self._spacing() if self.radius > 0 else None
        super().refresh(whitening)
        if old is not None:
            new = self._spacing()
            # A lone anchor has no other; images of equal anchors may differ by what their products round.
            rounding = ROUNDING * torch.finfo(new.dtype).eps * self.images.norm(dim=1).max()
            apart = torch.minimum(old, new) > rounding
            if bool(apart.any()):  # GPU sync
                self.radius *= float((new[apart] / old[apart]).median())  # GPU sync

    def _spacing(self) -> Tensor:
        """Distance of a fixed sample of anchors to the nearest other one; 0 for a lone anchor."""
        K = len(self)
        sample = torch.arange(0, K, max(1, K // RADIUS_SAMPLE), device=self.images.device)
        z = self.images[sample]
        products = torch.addmm(self.images.square().sum(1) / 2, z, self.images.T, alpha=-1)  # as in linalg's nearest
        products[torch.arange(len(sample)), sample] = torch.inf
        apart: Tensor = (z - self.images[products.argmin(1)]).norm(dim=1)
        return apart

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"radius": torch.tensor(self.radius, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.radius = float(state["radius"])

    @property
    def bounds_suffice(self) -> bool:
        return self.radius > 0  # until then every row becomes an anchor

    @property
    def exact_above(self) -> float:
        return UNLIKE * self.radius

    def learn(self, x: Tensor, known: Nearest, pictures: Tensor) -> None:
        """Learn rows x [N, D] whose nearest anchors are known; bounds are made exact where a row may be beyond one.

        1. Rows beyond the radius become anchors, farthest first, until none is left beyond it.
        2. All others count for the anchor nearest to them and, where anchors move, move it: mini-batch k-means with
           k-center seeding.
        3. An overfull bank is reduced to what it holds while it learns.

        Args:
            pictures: [N] number of the picture that each row is from.
        """
        z, fresh = known.z, self._beyond(known)
        labels = known.labels.clone()
        if len(fresh):
            # A new anchor is farther than the radius from all others: no nearer to a row within half of it.
            open_ = (known.distances > self.radius / 2).nonzero()[:, 0]
            near, index = nearest(z[open_], z[fresh])
            nearer = near < known.distances[open_]
            labels[open_[nearer]] = index[nearer] + len(self)
            labels[fresh] = torch.arange(len(self), len(self) + len(fresh), device=z.device)
            self._remember(x, pictures, pictures[fresh].unique())
        self._append(x[fresh], z[fresh], pictures[fresh])
        self._move(x, z, labels)
        self._count_support(labels, pictures)
        if len(self) > OVERFULL * self.bank_size and len(self) > OVERFULL * self.held:  # `held` is no less; GPU sync
            self.reduce(self.held)

    def _beyond(self, known: Nearest) -> Tensor:
        """Step 1: which rows become anchors."""
        beyond = (known.distances > self.radius).nonzero()[:, 0]
        if not len(beyond):
            return beyond
        exactly = None if known.neighbours is None else lambda index: known.exactly(beyond[index])
        distances = known.distances[beyond]
        return beyond[farthest_first(known.z[beyond], len(beyond), distances, self.radius, exactly=exactly).indices]

    def _append(self, x: Tensor, z: Tensor, picture: Tensor, pinned: bool = False) -> None:
        """Add anchors that stand for no row yet; all ROWS are new tensors then, that nobody shares."""
        n = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        born = {
            "anchors": x, "images": z, "mass": n, "moves": n, "support": n, "picture": picture,
            "lift": n.to(z.dtype), "pinned": torch.full_like(n, pinned, dtype=torch.bool),
        }  # fmt: skip
        for name in self.ROWS:
            setattr(self, name, torch.cat([getattr(self, name), born[name]]))

    def _remember(self, x: Tensor, pictures: Tensor, born: Tensor) -> None:
        """The means of those pictures of rows x [N, D] (numbered pictures [N]) that anchors were born from."""
        numbers, index = pictures.unique(return_inverse=True)
        sums = torch.zeros(len(numbers), x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, index, x)
        means, of = sums / torch.bincount(index)[:, None], torch.isin(numbers, born)
        self.numbers, self.means = torch.cat([self.numbers, numbers[of]]), torch.cat([self.means, means[of]])

    def _move(self, x: Tensor, z: Tensor, labels: Tensor) -> None:
        """Count rows x [N, D] and z [N, d] for their anchors, which they move in place, unless pinned."""
        taken = torch.bincount(labels, minlength=len(self))
        self.mass += taken
        if not self.moving:
            return
        self.moves += torch.where(self.pinned, 0, taken)
        counts = self.moves.masked_fill(self.pinned, torch.inf)
        move_centers_(self.anchors, counts, x, labels)
        move_centers_(self.images, counts, z, labels)

    def _count_support(self, labels: Tensor, pictures: Tensor) -> None:
        """An anchor and a picture count once, however many patches of the one are nearest to the other."""
        first = pictures.min()
        pairs = ((pictures - first) * len(self) + labels).unique()  # one number each: `unique` of columns is slow
        self.support = self.support + torch.bincount(pairs % len(self), minlength=len(self))

    def reduce(self, size: int | None = None, merge: float = 0.0) -> None:
        """Keep that many anchors, `kept` by default, those that are pinned and others by exact greedy selection.

        The radius becomes what they cover. A dropped anchor's mass goes to the kept one nearest to it, its support is
        merged by maximum. Then a kept anchor that may move goes the share `merge` of the way to the mean of itself and
        those that fell to it, by their mass: 1 is a step of Lloyd's (1982) k-means. The radius is from before that.
        """
        size = size or self.kept
        if len(self) <= size:
            return
        pinned = self.pinned.nonzero()[:, 0]
        covered = nearest(self.images, self.images[pinned])[0] if len(pinned) else None
        chosen, radius = farthest_first(self.images, size - len(pinned), covered)
        self._keep(torch.cat([pinned, chosen]), merge if self.moving else 0.0)
        self.radius = radius

    def _keep(self, kept: Tensor, merge: float = 0.0) -> None:
        """Drop all anchors but those at kept [k]; mass and support go to the heirs, which may move towards the mean."""
        gone = torch.ones(len(self), dtype=torch.bool, device=kept.device)
        gone[kept] = False
        mass, support, orphans, dropped = self.mass[gone], self.support[gone], self.images[gone], self.anchors[gone]
        for name in self.ROWS:
            setattr(self, name, getattr(self, name)[kept])
        used = torch.isin(self.numbers, self.picture)
        self.numbers, self.means = self.numbers[used], self.means[used]
        if len(orphans):
            heirs = nearest_index(orphans, self.images)
            self.mass = self.mass.index_add(0, heirs, mass)
            if merge:
                share = torch.where(self.pinned[heirs], 0, merge * mass / self.mass[heirs])[:, None].to(orphans.dtype)
                self.anchors = self.anchors.index_add(0, heirs, share * (dropped - self.anchors[heirs]))
                self.images = self.images.index_add(0, heirs, share * (orphans - self.images[heirs]))
            self.support = self.support.scatter_reduce(0, heirs, support, "amax")

    def settle(self) -> Tensor:
        """Reduce to what it keeps and judge, for scoring; a small bank is merged, too.

        Returns what `judge` does.
        """
        self.reduce(merge=float(self.held > self.kept))
        return self.judge()

    def judge(self) -> Tensor:
        """Find doubt in the anchors born of late, `lift`; returns the numbers of pictures that are in full doubt."""
        own = torch.zeros_like(self.lift)
        of = self.picture >= 0
        ascending, order = self.numbers.sort()  # pictures may come in any order of their numbers
        mean_of = order[torch.searchsorted(ascending, self.picture[of])]
        own[of] = (self.images[of] - self.whiten(self.means)[mean_of]).norm(dim=1)
        doubt = find_doubt(self.images, self.picture, own, self.support, self.radius)
        self.lift = torch.where(self.picture >= 0, doubt.lift, self.lift)
        return doubt.set_aside

    def grow_old(self) -> None:
        """The anchors become ones of earlier days: what doubt there is in them stays, no more is found."""
        self.picture = torch.full_like(self.picture, -1)
        self.numbers, self.means = self.numbers[:0], self.means[:0]

    def forget(self, share: float) -> None:
        """Keep a share of each anchor's weight; one that stands for less than half a row is dropped."""
        self.mass, self.moves, self.support = self.mass * share, self.moves * share, self.support * share
        stays = (self.mass >= LEAST_MASS) | self.pinned
        if bool(stays.any()) and not bool(stays.all()):  # GPU sync
            self._keep(stays.nonzero()[:, 0])

    def pin(self, x: Tensor, z: Tensor, distances: Tensor, radius: float) -> int:
        """Pin rows x [N, D] (whitened z [N, d]) whose distances to the bank are known until all are within the radius.

        Raises:
            ValueError: pinned anchors would take more than half of the bank.
        """
        fresh = farthest_first(z, len(z), distances, radius).indices
        check_pinned(int(self.pinned.sum()) + len(fresh), self.bank_size)
        older = torch.full((len(fresh),), -1, device=x.device)
        self._append(x[fresh], z[fresh], older, pinned=True)
        return len(fresh)

    def unlearn(self, z: Tensor, pinned_alone: bool = False) -> int:
        """Drop the anchors that one picture alone, of whitened rows z [P, d], has brought; returns how many.

        Those within half a radius of its patches that support no other picture, or that were pinned for it;
        `pinned_alone`: these only. One anchor stays in any case.
        """
        brought = self.pinned if pinned_alone else self.pinned | (self.support <= 1)
        gone = brought & (nearest(self.images, z)[0] <= max(self.radius, 1e-3) / 2)
        if bool(gone.all()):  # GPU sync
            gone[0] = False
        self._keep((~gone).nonzero()[:, 0])
        return int(gone.sum())


def most_anchors(bank_size: int) -> int:
    """How many a bank ever holds between two steps: while it learns, and beside those as many as may be pinned."""
    return int(OVERFULL * _held(bank_size)) + int(MAX_PINNED * bank_size)


def _held(kept: int) -> int:
    least, most = SMALL
    return most if least <= kept < most else kept


def check_pinned(n: int, bank_size: int) -> None:
    """Raise ValueError where n pinned anchors would take more than half of a bank."""
    most = int(MAX_PINNED * bank_size)
    if n > most:
        raise ValueError(
            f"{n} anchors would be pinned, at most {most} may be of a bank of {bank_size}: raise bank_size"
        )
