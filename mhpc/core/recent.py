"""What is remembered of the images of late while learning: whom to set aside, and whether anything new still comes."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mhpc.core.calibration import FLOOR, outlier_limit

RECENT = 128  # images
TOGETHER = 8  # images that are judged by the same ones before them, however many are learned at once
GUARD_AFTER = 32  # images without which nothing is judged
GUARD_SHARE = 0.1  # of the recent images, at most so many are set aside: a true change must be learned in the end
UNLIKE = 1.25  # covering radii: of a texture's patches a third lies beyond one for ever, beyond 1.25 ever fewer do
CONVERGED_OUTSIDE, CONVERGED_CHANGE = 0.005, 0.02  # shares below which little more is to be learned


class Convergence(NamedTuple):
    """How much of what comes is new.

    `outside`: share of the patches of the last RECENT images that lay well outside the bank, UNLIKE times its radius
    from all anchors; `change`: share of the space that the last refresh turned to, which the one before did not span.
    Both are 1 until they are known.
    """

    outside: float
    change: float

    @property
    def converged(self) -> bool:
        return self.outside < CONVERGED_OUTSIDE and self.change < CONVERGED_CHANGE


class Recent:
    """The last RECENT images, oldest first.

    Attributes: prequential `scores` [n], whether each was `quarantined` [n], share of its patches `outside` [n].
    """

    STATE = ("scores", "quarantined", "outside")

    def __init__(self) -> None:
        self.scores = torch.empty(0)
        self.quarantined = torch.empty(0, dtype=torch.bool)
        self.outside = torch.empty(0)

    def admit(self, scores: Tensor, distances: Tensor, radius: float, guard: bool) -> Tensor:
        """Which images to learn from [B], by their scores [B] and patch distances [B, P]; they are remembered.

        With the guard not those far outside the recent scores, by more than rounding, within a bounded share.
        """
        # A bank that has never been full has no radius: all is new to it.
        outside = (distances > UNLIKE * radius).float().mean(1).cpu() if radius else torch.ones(len(scores))  # GPU sync
        self.outside = torch.cat([self.outside, outside])[-RECENT:]
        return torch.cat([self._admit(part, guard) for part in scores.split(TOGETHER)])

    def _admit(self, scores: Tensor, guard: bool) -> Tensor:
        """Which images to learn from [B], all judged by those that came before the first of them."""
        learned = torch.ones(len(scores), dtype=torch.bool)
        if guard and len(self.scores) >= GUARD_AFTER:
            far = scores > max(outlier_limit(self.scores.numpy()), FLOOR)
            room = int(GUARD_SHARE * RECENT) - int(self.quarantined.sum())
            learned = ~(far & (far.cumsum(0) <= room))
        self.scores = torch.cat([self.scores, scores])[-RECENT:]
        self.quarantined = torch.cat([self.quarantined, ~learned])[-RECENT:]
        return learned

    def convergence(self, change: float) -> Convergence:
        known = len(self.outside) >= GUARD_AFTER
        return Convergence(float(self.outside.mean()) if known else 1.0, change)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"recent_{name}": getattr(self, name) for name in self.STATE}

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> "Recent":
        recent = cls()
        for name in cls.STATE:
            setattr(recent, name, state[f"recent_{name}"].clone())
        return recent
