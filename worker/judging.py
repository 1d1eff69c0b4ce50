"""Batches judged by the device, which computes one while this process turns to the next."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from mhpc.core.patch_maps import PatchMaps
from worker.answers import Judged, Opened
from worker.batching import Picture
from worker.features import FeatureCache
from worker.keeper import Keeper
from worker.message import Image, Rejected
from worker.opening import Opening
from worker.records import Scores


class Scoring(NamedTuple):
    """Images of a line, with their features, and the scores that are on their way."""

    keeper: Keeper
    images: list[tuple[Opened, Image]]
    features: PatchMaps
    scores: Scores


class Flight(NamedTuple):
    """A batch on its way: its pictures, and what is asked of the device, by line."""

    pictures: list[Picture]
    scored: list[Scoring]


class Judging:
    """Has the device judge batches, and fills in the verdicts once they are there.

    Args:
        blamed_on: has the entries of lines come again where something fails within; what it gives is empty then.
    """

    def __init__(
        self, opening: Opening, cache: FeatureCache, blamed_on: Callable[..., AbstractContextManager[list[bool]]]
    ) -> None:
        self.opening = opening
        self.engine = opening.engine
        self.metrics = opening.metrics
        self.cache = cache
        self.blamed_on = blamed_on
        self._flights: list[Flight] = []  # oldest first

    def launch(self, batch: list[Picture], keepers: Mapping[str, Keeper]) -> None:
        """Begin to judge a batch; where something unexpected fails, a line's entries come again, one by one."""
        flight = Flight(batch, [])
        self._flights.append(flight)
        batch = sorted(batch, key=lambda picture: picture.part.name)  # stable: a line's images stay in order
        taken: list[tuple[Opened, Image]] = []
        pixels: list[Tensor] = []
        for name, run in groupby(batch, key=lambda picture: picture.part.name):
            of_line = list(run)
            with self.blamed_on(name) as well:
                ready = [(picture, x) for picture in of_line if (x := self._pixels(picture)) is not None]
            if well:
                taken += [(picture.part, picture.image) for picture, _ in ready]
                pixels += [x for _, x in ready]
        if pixels:
            with self.blamed_on(*{part.name for part, _ in taken}) as well:
                wanted = self.cache.capacity or any(keepers[part.name].line.serving.scorer for part, _ in taken)
                features = self.engine.maps(pixels) if wanted else PatchMaps((torch.empty(len(pixels), 0, 1, 1),))
            if well:
                flight.scored.extend(self._score(taken, features, keepers))

    def _score(
        self, images: list[tuple[Opened, Image]], features: PatchMaps, keepers: Mapping[str, Keeper]
    ) -> Iterator[Scoring]:
        """Begin to score images by their features; those of a line, and of an entry, stand together."""
        start = 0
        for name, run in groupby(images, key=lambda item: item[0].name):
            of_line = list(run)
            of_images = features.images(start, start + len(of_line))
            start += len(of_line)
            with self.blamed_on(name) as well:
                scoring = self._scoring(keepers[name], of_line, of_images)
            if well:
                yield scoring

    def _scoring(self, keeper: Keeper, images: list[tuple[Opened, Image]], features: PatchMaps) -> Scoring:
        with self.metrics.stage("score"):
            return Scoring(keeper, images, features, keeper.line.score(features))

    @property
    def under_way(self) -> bool:
        return bool(self._flights)

    def may_stay_under_way(self, keepers: Mapping[str, Keeper]) -> int:
        """How many batches a GPU may compute while this process goes on; learning would keep their results waiting."""
        learns = any(keeper.line.learns and keeper.epoch for keeper in keepers.values())
        return int(self.engine.device.type == "cuda" and not learns)

    def land(self, hand: Sequence[Opened], most: int = 0) -> None:
        """Take what came of batches under way, oldest first, until at most so many are left; `hand` is all in hand."""
        while len(self._flights) > most:
            flight = self._flights.pop(0)
            for scoring in flight.scored:
                if scoring.images[0][0] not in hand:  # its line let go of all of them: they come again
                    continue
                with self.blamed_on(scoring.keeper.line.name):
                    self._fill_in(scoring, hand)
            for picture in flight.pictures:
                picture.part.left -= 1

    def judge(self, keeper: Keeper, images: list[tuple[Opened, Image]], features: PatchMaps) -> None:
        """Fill in the verdicts on images of a line, by their features, at once."""
        self._fill_in(self._scoring(keeper, images, features), [part for part, _ in images])

    def _fill_in(self, scoring: Scoring, hand: Sequence[Opened]) -> None:
        line = scoring.keeper.line
        with self.metrics.stage("score"):
            verdicts = line.verdicts(scoring.scores)
        for (part, image), verdict in zip(scoring.images, verdicts, strict=True):
            part.judged.append(Judged(image, verdict, scoring.scores.serving))
        if line.learns and scoring.keeper.epoch and self.cache.capacity:
            with self.metrics.stage("forward"):
                features = scoring.features.joined()
            self.cache.keep([part for part, _ in scoring.images], features, hand)

    def _pixels(self, picture: Picture) -> Tensor | None:
        part, image, x = picture.part, picture.image, picture.pixels.result()
        if isinstance(x, Rejected):
            part.rejected.append(x)
            return None
        return x if self.opening.is_first(part.name, image, part.entry, picture.place) else None
