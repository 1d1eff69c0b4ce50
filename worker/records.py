"""What a line says of the version that answers, and of the parts that it took."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from mhpc.core.drift import DriftMonitor
from mhpc.core.scorer import Scorer
from worker.message import HeatMap


class Serving(NamedTuple):
    """What results are given by: a committed version, its threshold once there is one, and what watches its scores. A
    commit puts another in its place, whole: Z-spaces differ, and so nothing of two versions goes together."""

    phase: str
    model: str | None
    threshold: float | None
    provisional: bool = False
    scorer: Scorer | None = None
    monitor: DriftMonitor | None = None  # of its own calibration; None while nobody watches

    @property
    def drift(self) -> float | None:
        """Of its recent scores from calibration's, above 1 an alarm; None while nobody watches."""
        return None if self.monitor is None else self.monitor.drift_


class Scores(NamedTuple):
    """What a version makes of B images, and how to wait for it: scores [B], means of the whitened patches [B, d + 1],
    and patch scores [B, h, w] if maps are wanted. There is nothing to wait for while there is no model."""

    serving: Serving
    images: int
    arrived: Callable[[], tuple[Tensor, ...]] | None


class Verdict(NamedTuple):
    """Both are None while no model exists."""

    score: float | None
    map: HeatMap | None


class Taken(NamedTuple):
    """What became of an entry's images; `set_aside` are the places in the entry of those quarantined."""

    learned: int
    quarantined: int
    calibrated: int
    set_aside: tuple[int, ...] = ()

    @classmethod
    def of_learning(cls, learned: list[bool]) -> "Taken":
        """Of an entry, by which of its images were learned."""
        aside = tuple(place for place, was_learned in enumerate(learned) if not was_learned)
        return cls(len(learned) - len(aside), len(aside), 0, aside)


class Source(NamedTuple):
    """The entry that parts were learned from, and the number of the first, as the learner counts them."""

    entry: str
    first: int


class SetAside(NamedTuple):
    """A part that turned out not to belong when learning ended, by its place among its entry's."""

    entry: str
    place: int
