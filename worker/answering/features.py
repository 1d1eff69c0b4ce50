"""What answering leaves for learning, so that an image takes one forward pass."""

from collections.abc import Iterable
from itertools import groupby

import torch
from torch import Tensor

from worker.answering.answers import Opened
from worker.settings import MIB
from worker.streams.ids import entry_key

CACHE_BYTES = 256 * MIB
SHARE_OF_GPU = 1 / 32  # of its memory, if that is more: a batch of 64 has 300 MiB of wide_resnet50_2's


class FeatureCache:
    """Features of recent entries, bounded in bytes."""

    def __init__(self, capacity: int = CACHE_BYTES) -> None:
        self.capacity = capacity
        self.size = 0
        self._lines: dict[str, dict[str, Tensor]] = {}

    def put(self, line: str, entry: str, features: Tensor) -> None:
        """Keep an entry's features if there is room: those kept longest are the next that learning wants."""
        self.pop(line, entry)
        if self.size + features.nbytes <= self.capacity:
            self._lines.setdefault(line, {})[entry] = features
            self.size += features.nbytes

    def holds(self, line: str) -> bool:
        """Whether features of an entry of a line are kept."""
        return bool(self._lines.get(line))

    def has(self, line: str, entry: str) -> bool:
        return entry in self._lines.get(line, ())

    def entries(self, line: str, images: int) -> int:
        """Of how many entries of a line features are kept, oldest first, until they are of so many images."""
        found = count = 0
        for features in self._lines.get(line, {}).values():
            if found >= images:
                break
            found, count = found + len(features), count + 1
        return count

    def drop(self, line: str, through: str = "") -> None:
        """Let go of what is kept for a line: all of it, or the entries up to `through`, which are learned."""
        for entry in list(self._lines.get(line, ())):
            if not through or entry_key(entry) <= entry_key(through):
                self.pop(line, entry)

    def pop(self, line: str, entry: str) -> Tensor | None:
        features = self._lines.get(line, {}).pop(entry, None)
        if features is not None:
            self.size -= features.nbytes
        return features

    def keep(self, entries: list[Opened], features: Tensor, hand: Iterable[Opened]) -> None:
        """Let entries hold what is theirs of features [B, P, D], as far as there is room; one entry for each image.

        Args:
            hand: all entries that may hold some.
        """
        kept = sum(held.nbytes for opened in hand for held in opened.features)
        start = 0
        for opened, run in groupby(entries):
            count = len(list(run))
            of_entry = features[start : start + count]
            if kept + self.size + of_entry.nbytes <= self.capacity:
                whole = of_entry.nbytes == of_entry.untyped_storage().nbytes()
                opened.features.append(of_entry if whole else of_entry.clone())  # a view holds the batch that it is of
                kept += of_entry.nbytes
            start += count

    def take(self, opened: Opened) -> None:
        """Keep what a finished entry holds, if that is all of it."""
        if opened.features and sum(map(len, opened.features)) == len(opened.judged):
            features = opened.features[0] if len(opened.features) == 1 else torch.cat(opened.features)
            self.put(opened.name, opened.entry.id, features)


def cache_on(device: torch.device) -> FeatureCache:
    """With as much room as that device spares."""
    if device.type != "cuda":
        return FeatureCache()
    total = torch.cuda.get_device_properties(device).total_memory
    return FeatureCache(max(CACHE_BYTES, int(SHARE_OF_GPU * total)))
