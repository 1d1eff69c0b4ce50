"""A hot line: one that many ranks learn together. Rank 0 keeps it, and has each entry's images learned by all."""

from collections import deque
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mhpc.core.devices import is_device_failure
from mhpc.core.distributed import mean_convergence
from mhpc.core.learner import STEP
from mhpc.core.recent import Convergence
from worker.answering.intake import largest_of_late
from worker.answering.opening import Opening
from worker.errors import SnapshotError, one_line
from worker.keeping.keeper import Keeper
from worker.keeping.owed import Usable, nobody
from worker.keeping.taking import Extract, Ready
from worker.line import LEARNING, Line
from worker.message import Image
from worker.ranks.crew import Crew, Step
from worker.records import Source, Taken
from worker.settings import MIB, LineConfig
from worker.streams.line_streams import Entry

SHARE = "share."  # what the tensors of the ranks' shares begin with, in a snapshot


class Place(NamedTuple):
    """Where an opened image lies: at that place of what a rank has opened."""

    rank: int
    at: int


class OpenedEntry(NamedTuple):
    """An entry, and where those of its images lie that can be used, in their order."""

    entry: str
    places: list[Place]


class HotLine(Line):
    """A line of which `learner` is rank 0's share: with all that was gathered before, and what rank 0 learned since.

    The other ranks' shares begin empty. `state`, and so every snapshot, is of all shares, merged; they go on as they
    are, and lie beside what is merged, so that a start after a kill goes on with them. When learning ends, or before a
    command, all is gathered in rank 0's learner for good, and new shares begin.
    """

    def __init__(self, config: LineConfig, pca_variance_ratio: float, device: torch.device, crew: Crew) -> None:
        super().__init__(config, pca_variance_ratio, device)
        self.crew = crew
        self._begin_shares()

    def _begin_shares(self) -> None:
        self.ticket = next(self.crew.tickets)
        self.elsewhere = (0, 0)  # images learned, and set aside, by the other ranks
        self._convergence: list[Convergence] = []

    @property
    def counts(self) -> tuple[int, int, int]:
        learned, quarantined, calibrated = super().counts
        return learned + self.elsewhere[0], quarantined + self.elsewhere[1], calibrated

    @property
    def convergence(self) -> Convergence:
        return mean_convergence(self._convergence) if self._convergence else super().convergence

    def gather(self) -> None:
        if any(self.elsewhere):
            self.learner = self.crew.merge(self.learner, self.ticket)
            self._begin_shares()

    def end_learning(self) -> None:
        self.gather()
        super().end_learning()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is merged, which any worker can go on from; and beside it the shares, for as many ranks as there are.

        Raises:
            SnapshotError: a rank refuses; nothing of this is in a version then.
        """
        if not any(self.elsewhere):
            return super().state()
        own, elsewhere = self.learner, self.elsewhere
        try:
            whole, shares = self.crew.merge(own, self.ticket), self.crew.saved(own, self.ticket)
        except RuntimeError as error:  # a rank's answer, or a device that is lost for all
            if is_device_failure(error):
                raise
            raise SnapshotError(f"what the ranks have learned is not merged: {one_line(error, 300)}") from error
        self.learner, self.elsewhere = whole, (0, 0)
        try:
            tensors, metadata = super().state()
        finally:
            self.learner, self.elsewhere = own, elsewhere
        tensors |= {f"{SHARE}{rank}.{name}": t for rank, share in enumerate(shares) for name, t in share.items()}
        return tensors, {**metadata, "shares": len(shares)}

    def restore_model(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Where as many ranks as there are have learned it, each goes on with its own share."""
        super().restore_model(tensors, metadata)
        self._begin_shares()
        if metadata.get("shares") != self.crew.size:
            return
        prefixes = [f"{SHARE}{rank}." for rank in range(self.crew.size)]
        shares = [{n.removeprefix(p): t for n, t in tensors.items() if n.startswith(p)} for p in prefixes]
        self.learner = self.crew.restore(shares, self.ticket)
        learned, quarantined = (sum(int(share["counts"][at]) for share in shares[1:]) for at in (2, 3))
        self.elsewhere = learned, quarantined

    def apply_all(self, entries: list[tuple[str, list[Image]]], first: Callable[[int, int], bool]) -> list[Taken]:
        """`apply` for many entries, given as their images; what came of each, until the line wants no more.

        1. Pieces of up to STEP images of an entry go to the ranks in turn, which decode them.
        2. Those that can be used, and are the `first` of their id (asked by the entry and the image's place in it), are
           numbered in order, learned or calibrated on, and counted.

        Args:
            first: whether no image of that id came before, by the number of the entry and the image's place there.
        """
        taken: list[Taken] = []
        rest = deque(self._opened(entries, first))
        while rest and self.learns:
            done, wanted = self.progress
            together, images = list[OpenedEntry](), 0
            while rest and (not together or done + images < wanted):  # a phase ends between entries
                together.append(rest.popleft())
                images += len(together[-1].places)
            taken += self._learn_all(together) if self.phase == LEARNING else self._calibrate_all(together)
            self.applied_through = together[-1].entry
            self._switch()
        return taken

    def _opened(self, entries: list[tuple[str, list[Image]]], first: Callable[[int, int], bool]) -> list[OpenedEntry]:
        sent: list[list[Image]] = [[] for _ in range(self.crew.size)]
        places: list[list[Place]] = []
        number = sum(self.counts)
        for _, images in entries:
            places.append([])
            for start in range(0, len(images), STEP):
                rank = (number // STEP) % self.crew.size
                for image in images[start : start + STEP]:
                    places[-1].append(Place(rank, len(sent[rank])))
                    sent[rank].append(image)
                    number += 1
        usable = self.crew.open(sent)
        return [
            OpenedEntry(entry, [p for at, p in enumerate(of_entry) if usable[p.rank][p.at] and first(which, at)])
            for which, ((entry, _), of_entry) in enumerate(zip(entries, places, strict=True))
        ]

    def _learn_all(self, entries: list[OpenedEntry]) -> list[Taken]:
        steps: list[list[Step]] = [[] for _ in range(self.crew.size)]
        ranks: list[list[int]] = []  # of each entry's images
        number = sum(self.counts[:2])
        for opened in entries:
            if opened.places:
                self.sources.append(Source(opened.entry, number))
            for rank, run in groupby(opened.places, key=lambda place: place.rank):
                at = [place.at for place in run]
                for start in range(0, len(at), STEP):
                    steps[rank].append((number, at[start : start + STEP]))
                    number += len(at[start : start + STEP])
            ranks.append([place.rank for place in opened.places])
        replies, self._convergence = self.crew.learn(self.learner, self.ticket, steps, self._kept(sum(map(len, ranks))))
        learned, quarantined = (sum(flag is what for r in replies[1:] for flag in r) for what in (True, False))
        self.elsewhere = self.elsewhere[0] + learned, self.elsewhere[1] + quarantined
        flags = [iter(of_rank) for of_rank in replies]
        return [Taken.of_learning([next(flags[rank]) for rank in of_entry]) for of_entry in ranks]

    def _calibrate_all(self, entries: list[OpenedEntry]) -> list[Taken]:
        at: list[list[int]] = [[] for _ in range(self.crew.size)]
        for opened in entries:
            for place in opened.places:
                at[place.rank].append(place.at)
        scores, means = self.crew.calibrate(self.learner.scorer(), at)
        found = [iter(zip(*of_rank, strict=True)) for of_rank in zip(scores, means, strict=True)]
        pairs = [next(found[place.rank]) for opened in entries for place in opened.places]  # as the stream has them
        if pairs:
            self.calibrated(torch.stack([score for score, _ in pairs]), torch.stack([mean for _, mean in pairs]))
        return [Taken(0, 0, len(opened.places)) for opened in entries]


class HotKeeper(Keeper):
    """Keeps a hot line: so many entries are applied at once that every rank has something to do.

    No more than there would be of a single image each, and than may be read ahead: where few of late could be used,
    many may be usable next.
    """

    line: HotLine
    opening: Opening  # by which entries are opened; it is made after the keepers are
    images_each = 1.0  # of an entry, of late
    largest = float(MIB)  # bytes of an entry, of late

    def learn(self, extract: Extract, count: int, usable: Usable = nobody, ready: Ready = lambda _: True) -> int:
        """Without asking for `ready`: the ranks decode, each on its threads."""
        room = int(self.opening.settings.streams.prefetch_bytes / self.largest)
        enough = min(room, round(self.line.crew.size * STEP / max(1.0, self.images_each)))
        return super().learn(extract, max(count, enough), usable)

    def _together(self, entries: list[Entry]) -> list[list[Entry]]:
        return super()._together(entries) if self.reading.marks else [entries] if entries else []

    def _learned(self, entries: list[Entry], extract: Extract) -> list[Taken]:
        opened = [(entry.id, self.opening.images(entry, [])) for entry in entries]
        self.largest = largest_of_late(self.largest, entries)
        if images := sum(len(found) for _, found in opened):
            self.images_each = images / len(opened)

        def first(which: int, place: int) -> bool:
            image = opened[which][1][place]
            return self.opening.is_first(self.line.name, image, entries[which], place, learns=True)

        return self.line.apply_all(opened, first)
