"""Patch features of pictures, batch by batch: extracted each time anew, or once and kept."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from mhpc.evaluation.mvtec import MVTecDataset, Sample

Extract = Callable[[Tensor], tuple[Tensor, tuple[int, int]]]  # MHPatchCore.extract


class PatchSource:
    """Each iteration goes through the features [B, P, D] of all samples; a bar on stderr shows it on a terminal.

    So that what a model costs can be told from what its input costs, and models that share their features compared:

    - `read_seconds`: spent so far on reading pictures from the disk;
    - `spared_seconds`: what the backbone would have taken, had its features not been kept.

    Args:
        extract: images [B, 3, H, W] to features and grid, such as `MHPatchCore.extract`.
        keep: hold the features on the CPU after the first iteration, and give them again in the next.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        input_shape: tuple[int, int],
        extract: Extract,
        batch_size: int = 8,
        description: str = "",
        keep: bool = False,
    ) -> None:
        self.samples = tuple(samples)
        self.loader = DataLoader(MVTecDataset(samples, input_shape), batch_size)
        self.extract = extract
        self.description = description
        self.keep = keep
        self.read_seconds = 0.0
        self.spared_seconds = 0.0
        self.grid = (0, 0)  # as of the first iteration
        self.masks: list[NDArray[np.bool_] | None] = []  # the same; [H, W] each, None where nobody knows
        self._kept: list[Tensor] = []
        self._extract_seconds = 0.0

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Which samples [N] are defective."""
        return np.array([sample.is_anomaly for sample in self.samples])

    def __iter__(self) -> Iterator[Tensor]:
        if self._kept:
            self.spared_seconds += self._extract_seconds
            yield from self._kept
            return
        kept, spent = [], 0.0
        self.masks = []
        for batch in self._read():
            start = time.perf_counter()
            features, self.grid = self.extract(batch["image"])
            self.masks += [_known(mask) for mask in batch["mask"]]
            if self.keep:
                kept.append(features.cpu())  # GPU sync
                spent += time.perf_counter() - start
            yield features
        self._kept, self._extract_seconds = kept, spent

    def _read(self) -> Iterator[dict[str, Tensor]]:
        with tqdm(total=len(self.loader), desc=self.description, unit="batch", leave=False, disable=None) as bar:
            rest = iter(self.loader)
            while True:
                start = time.perf_counter()
                batch = next(rest, None)
                self.read_seconds += time.perf_counter() - start
                if batch is None:
                    return
                yield batch
                bar.update()

    def load(self) -> None:
        """Extract and keep the features now, unless they are kept already."""
        if not self._kept:
            for _ in self:
                pass


def _known(mask: Tensor) -> NDArray[np.bool_] | None:
    found: NDArray[np.bool_] = mask[0].numpy() > 0.5
    return None if bool(torch.isnan(mask).any()) else found
