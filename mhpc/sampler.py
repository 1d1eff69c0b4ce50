"""Samplers: which rows of a memory bank are kept. Names and signatures are patchcore-inspection's."""

import warnings
from abc import ABC, abstractmethod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mhpc.farthest import Selection, farthest_first
from mhpc.linalg import blocks, check_rows

__all__ = [
    "SAMPLERS",
    "ApproximateGreedyCoresetSampler",
    "GreedyCoresetSampler",
    "IdentitySampler",
    "RandomSampler",
    "Sampler",
    "Selection",
    "farthest_first",
    "make_sampler",
]

Rows = TypeVar("Rows", Tensor, NDArray[np.floating])


class Sampler(ABC):
    """Chooses rows of features [N, D] (float tensors or arrays)."""

    @abstractmethod
    def select(self, features: Tensor | NDArray[np.floating]) -> Tensor:
        """Indices [n] (int64, on the CPU) of the rows of features [N, D] that are kept, in the order of selection.

        Raises:
            ValueError: not [N, D], not floating, or not finite.
        """

    def run(self, features: Rows) -> Rows:
        """The rows of features [N, D] that `select` chooses, as they are: a tensor or an array, as given."""
        indices = self.select(features)
        if isinstance(features, Tensor):
            return features[indices.to(features.device)]
        rows: Rows = features[indices.numpy()]
        return rows


class IdentitySampler(Sampler):
    """Keeps every row; `run` returns the features themselves."""

    def select(self, features: Tensor | NDArray[np.floating]) -> Tensor:
        return torch.arange(len(_checked(features)))

    def run(self, features: Rows) -> Rows:
        _checked(features)
        return features


class RandomSampler(Sampler):
    """Keeps a share of the rows, drawn without replacement.

    Args:
        percentage: share of the rows to keep, in (0, 1), rounded down, but one row at least.
        generator: to draw from, run after run; without it each run draws the same, from `seed`.
    """

    def __init__(self, percentage: float, generator: torch.Generator | None = None, seed: int = 0) -> None:
        _check_percentage(percentage)
        self.percentage = percentage
        self.generator = generator
        self.seed = seed

    def select(self, features: Tensor | NDArray[np.floating]) -> Tensor:
        N, _ = _checked(features).shape
        return _drawn(N, share(N, self.percentage), _generator(self.generator, self.seed))


class GreedyCoresetSampler(Sampler):
    """PatchCore's coreset (Roth et al., 2022, algorithm 1): each row kept is the farthest from those before it.

    Exact farthest-first selection, from the row farthest from the mean; ties go to the lowest index. Near-ties that
    rounding alone may have parted count as ties, so of float32 features some rows may be others than the textbook
    loop's; float64 gives its rows to the last. Fewer rows than the percentage asks for where fewer are distinct. Beside
    the features it takes memory for their projection, N x dimension_to_project_features_to; the features may lie on the
    CPU while `device` is a GPU.

    Args:
        percentage: share of the rows to keep, in (0, 1).
        device: where distances are computed.
        dimension_to_project_features_to: wider rows are projected to it by a Gaussian matrix before distances are
            taken (Johnson & Lindenstrauss, 1984); None takes them as they are. The rows kept are the original ones.
        generator: that the projection is drawn from; without it each run draws the same, from `seed`.
    """

    def __init__(
        self,
        percentage: float,
        device: torch.device | str = "cpu",
        dimension_to_project_features_to: int | None = 128,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> None:
        _check_percentage(percentage)
        if dimension_to_project_features_to is not None and dimension_to_project_features_to < 1:
            raise ValueError(
                f"dimension_to_project_features_to is {dimension_to_project_features_to}, expected 1 or more, "
                "or None to keep the rows as wide as they are"
            )
        self.percentage = percentage
        self.device = device
        self.dimension_to_project_features_to = dimension_to_project_features_to
        self.generator = generator
        self.seed = seed

    @torch.no_grad()
    def select(self, features: Tensor | NDArray[np.floating]) -> Tensor:
        x = _checked(features)
        generator = _generator(self.generator, self.seed)
        n = share(len(x), self.percentage)
        return self._farthest(self._projected(x, generator), n, generator).indices.cpu()

    def _farthest(self, x: Tensor, n: int, generator: torch.Generator) -> Selection:
        return farthest_first(x, n, device=self.device, progress=True)

    def _projected(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x [N, D] as it is, or projected to [N, d] on the device if it is wider, with no other copy of it."""
        N, D = x.shape
        d = self.dimension_to_project_features_to
        dtype = torch.promote_types(x.dtype, torch.float32)
        if d is None or d >= D:
            return x.to(dtype)
        projection = torch.randn(D, d, generator=generator, device=generator.device, dtype=dtype) / d**0.5
        projection = projection.to(self.device)
        projected = torch.empty(N, d, device=self.device, dtype=dtype)
        for block, out in zip(blocks(x), blocks(projected), strict=True):
            torch.mm(block.to(self.device, dtype), projection, out=out)
        return projected


class ApproximateGreedyCoresetSampler(GreedyCoresetSampler):
    """The coreset that patchcore-inspection builds by default: farthest-first from random starting points.

    A row's distance to the set begins as its mean distance to the starting points, which are not chosen themselves;
    the rest is the greedy selection, and as fast. (There the approximation saves an N x N matrix; here only the start
    differs.)

    Args:
        number_of_starting_points: how many, drawn without replacement.
        percentage, device, dimension_to_project_features_to, generator, seed: GreedyCoresetSampler's; the starting
            points are drawn after the projection.
    """

    def __init__(
        self,
        percentage: float,
        device: torch.device | str = "cpu",
        number_of_starting_points: int = 10,
        dimension_to_project_features_to: int | None = 128,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(percentage, device, dimension_to_project_features_to, generator, seed)
        if number_of_starting_points < 1:
            raise ValueError(f"number_of_starting_points is {number_of_starting_points}, expected 1 or more")
        self.number_of_starting_points = number_of_starting_points

    def _farthest(self, x: Tensor, n: int, generator: torch.Generator) -> Selection:
        starts = x[_drawn(len(x), self.number_of_starting_points, generator).to(x.device)].to(self.device)
        # By differences: equal rows must be at equal distances, and there are few starts.
        mode = "donot_use_mm_for_euclid_dist"
        distances = [torch.cdist(b.to(self.device), starts, compute_mode=mode).mean(1) for b in blocks(x)]
        found = farthest_first(x, n, torch.cat(distances), device=self.device, progress=True)
        # Where all rows are equal none is at a distance; one stands for them.
        return found if len(found.indices) else Selection(torch.zeros(1, dtype=torch.int64), found.radius)


SAMPLERS: dict[str, type[Sampler]] = {
    "identity": IdentitySampler,
    "random": RandomSampler,
    "greedy_coreset": GreedyCoresetSampler,
    "approx_greedy_coreset": ApproximateGreedyCoresetSampler,
}


def make_sampler(
    name: str,
    percentage: float,
    device: torch.device | str = "cpu",
    seed: int = 0,
    dimension_to_project_features_to: int | None = 128,
) -> Sampler:
    """The sampler of that name in SAMPLERS, with what it takes of the other arguments.

    Raises:
        ValueError: an unknown name, or a percentage outside (0, 1) for a sampler that takes one.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler is {name!r}, expected one of {', '.join(SAMPLERS)}")
    taken: dict[str, Any] = {}
    if name != "identity":
        taken |= {"percentage": percentage, "seed": seed}
    if name.endswith("greedy_coreset"):
        taken |= {"device": device, "dimension_to_project_features_to": dimension_to_project_features_to}
    return SAMPLERS[name](**taken)


def _checked(features: Tensor | NDArray[np.floating]) -> Tensor:
    if not isinstance(features, Tensor | np.ndarray):
        raise ValueError(f"features is a {type(features).__name__}, expected a tensor or an array [N, D]")
    x = features if isinstance(features, Tensor) else _as_tensor(features)
    return check_rows(x, name="features").detach()


def _as_tensor(features: NDArray[np.floating]) -> Tensor:
    """The array's own memory, unless torch knows no such byte order, or no such steps from one value to another."""
    native = features.astype(features.dtype.newbyteorder("="), copy=False)
    odd = any(step < 0 or step % native.itemsize for step in native.strides)
    forwards = native.copy() if odd else native
    with warnings.catch_warnings():  # read-only it may be: nothing is written
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(forwards)


def _check_percentage(percentage: float) -> None:
    if not 0 < percentage < 1:
        raise ValueError("Percentage value not in (0, 1).")


def weighted_farthest(x: Tensor, n: int, weights: Tensor | None) -> Tensor:
    """Farthest-first indices [n] of rows x [N, D], of which with weights [N] the first is farthest from their mean."""
    if weights is None:
        return farthest_first(x, n).indices
    mean = (x * weights[:, None]).sum(0) / weights.sum()
    first = (x - mean).norm(dim=1).argmax()[None]
    return torch.cat([first, farthest_first(x, n - 1, (x - x[first]).norm(dim=1)).indices])


def share(N: int, percentage: float) -> int:
    """How many of N rows a percentage in (0, 1) keeps: rounded down, but one at least."""
    return max(1, int(N * percentage + 1e-9))  # 1000 / N * N may fall a hair short of 1000


def _generator(generator: torch.Generator | None, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed) if generator is None else generator


def _drawn(N: int, n: int, generator: torch.Generator) -> Tensor:
    """n of N indices, without replacement, on the CPU."""
    return torch.randperm(N, generator=generator, device=generator.device)[:n].cpu()
