"""Batches judged while this process turns to the next: on threads of their own, or by a GPU."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from mhpc.core.devices import is_device_failure
from mhpc.core.patch_maps import PatchMaps
from worker.answering.answers import Judged, Opened
from worker.answering.batching import Picture
from worker.answering.features import FeatureCache
from worker.answering.opening import Opening
from worker.keeping.keeper import Keeper
from worker.message import Image, Rejected
from worker.records import Scores
from worker.runtime.threads import compute_behind, compute_on
from worker.scoring import verdicts_of

WAIT_SECONDS = 0.005  # for threads, before the loop looks for what has come
GPU_AHEAD = 2  # batches that a GPU is given before the first of them is waited for: it never has none to compute


class Run(NamedTuple):
    """Images of a line that stand together in a batch, how to score them, and whether it is to learn from them."""

    keeper: Keeper
    images: list[tuple[Opened, Image]]
    score: Callable[[PatchMaps], Scores]
    learns: bool


class Found(NamedTuple):
    """What came of a run: scores that are on their way, or why there are none, and features [B, P, D] to learn from."""

    scores: Scores | Exception
    features: Tensor | None


class Flight(NamedTuple):
    """A batch on its way: its pictures, its runs, what comes of them, the seconds that it takes by stage, when it was
    begun, and whether on the thread for what comes before all turns."""

    pictures: list[Picture]
    runs: list[Run]
    found: Future[list[Found] | Exception]
    seconds: dict[str, float]
    since: float
    aside: bool

    @property
    def lines(self) -> set[str]:
        return {picture.opened.name for picture in self.pictures}


class JudgingError(Exception):
    """What failed on a thread."""


class Judging:
    """Has batches judged, and fills in the verdicts once they are there.

    A GPU computes by itself. On a CPU two batches are under way, each on a thread that computes on half of the cores:
    an operation on all of them would wait for the last, which decodes, publishes or serves another process meanwhile,
    and what runs on one core, as the search in small groups does, would leave the others idle. What comes before all
    turns (`Batcher`) is judged beside them, at once; the scheduler prefers it, and what the process does in between.

    Args:
        blame: given an error that is handled and lines, has their entries read again, or raises it.
    """

    def __init__(self, opening: Opening, cache: FeatureCache, blame: Callable[..., None]) -> None:
        self.opening = opening
        self.engine = opening.engine
        self.cache = cache
        self.blame = blame
        self._pool: ThreadPoolExecutor | None = None
        self._aside: ThreadPoolExecutor | None = None  # for what comes before all turns
        if (passes := self.engine.passes) > 1:
            self._pool = ThreadPoolExecutor(passes, "judge", compute_behind, (self.engine.threads,))
            self._aside = ThreadPoolExecutor(1, "judge-early", compute_on, (self.engine.threads,))
            compute_on(self.engine.threads)  # the work loop, too, which learns beside them
        self._flights: list[Flight] = []  # oldest first
        self._waited = 0.0  # seconds, for threads, since the last batch was landed

    def launch(self, batch: list[Picture], keepers: Mapping[str, Keeper], early: bool = False) -> None:
        """Begin to judge a batch; where something unexpected fails, a line's entries come again, one by one.

        Args:
            early: it comes before all turns, and waits for no thread that judges others.
        """
        if not batch:
            return
        runs, pixels = list[Run](), list[Tensor]()
        in_order = sorted(batch, key=lambda picture: picture.opened.name)  # stable: a line's images stay in order
        for name, of_line in groupby(in_order, key=lambda picture: picture.opened.name):
            try:
                ready = [(picture, x) for picture in of_line if (x := self._pixels(picture)) is not None]
            except Exception as error:
                self.blame(error, name)
                continue
            if ready:
                images = [(picture.opened, picture.image) for picture, _ in ready]
                runs.append(self._run(keepers[name], images))
                pixels += [x for _, x in ready]
        if not any(run.learns or run.keeper.line.serving.scorer for run in runs):
            pixels = []  # nobody has use for features
        flight = Flight(batch, runs, Future(), {}, time.monotonic(), early and self._is_sooner_aside())
        self._flights.append(flight)
        if pool := self._aside if flight.aside else self._pool:
            pool.submit(self._judge, flight, pixels)
            return
        with self.engine.metrics.stages(flight.seconds):
            self._judge(flight, pixels)
        flight.seconds.clear()  # they are timed

    def _is_sooner_aside(self) -> bool:
        """Whether the thread for what comes before all turns is free, or all others are not."""
        judged = [flight.aside for flight in self._flights if not flight.found.done()]
        return not any(judged) or judged.count(False) >= self.engine.passes

    def _run(self, keeper: Keeper, images: list[tuple[Opened, Image]]) -> Run:
        line = keeper.line
        return Run(keeper, images, line.scores_by(), bool(line.learns and keeper.epoch and self.cache.capacity))

    def _judge(self, flight: Flight, pixels: list[Tensor]) -> None:
        """Find what comes of a batch, on whichever thread.

        An error is a value here, without the frame of this function: one that leads back to itself would keep the
        pictures until the collector comes.
        """
        found: list[Found] | Exception
        try:
            found = self._found(flight.runs, pixels, flight.seconds)
        except Exception as error:
            found = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        flight.found.set_result(found)

    def _found(self, runs: list[Run], pixels: list[Tensor], seconds: dict[str, float]) -> list[Found]:
        of_batch = PatchMaps((torch.empty(sum(len(run.images) for run in runs), 0, 1, 1),))
        if pixels:
            with add_seconds(seconds, "forward"):
                of_batch = self.engine.extract(pixels)
        found, start = list[Found](), 0
        for run in runs:
            of_run = of_batch.images(start, start + len(run.images))
            start += len(run.images)
            with add_seconds(seconds, "score"):
                scores = _scores_of(run, of_run)
            with add_seconds(seconds, "forward"):
                found.append(Found(scores, of_run.joined() if run.learns else None))
        return found

    @property
    def under_way(self) -> bool:
        return bool(self._flights)

    @property
    def since(self) -> float:
        """When the oldest batch that threads still judge was begun, by the monotonic clock; now if there is none."""
        return min((flight.since for flight in self._flights if not flight.found.done()), default=time.monotonic())

    @property
    def room(self) -> int:
        """How many more batches threads may be given: beside the full number, one that is through soon."""
        return self.engine.passes + 1 - self.computing(0.0) if self._pool else 2

    def may_stay_under_way(self, keepers: Mapping[str, Keeper], begun: bool, busy: bool) -> int:
        """How many batches may be computed while this process goes on.

        Threads are waited for a moment where nothing else is to do. A GPU has two, where the next is begun; none where
        a line learns, which would keep its results waiting.

        Args:
            begun: whether a batch has just been begun.
            busy: whether there is more to do meanwhile.
        """
        if self._pool:
            return self.computing(0.0 if busy or (begun and self.room > 1) else WAIT_SECONDS)
        learns = any(keeper.line.learns and keeper.epoch for keeper in keepers.values())
        return GPU_AHEAD if begun and self.engine.device.type == "cuda" and not learns else 0

    def computing(self, seconds: float) -> int:
        """How many batches cannot be landed yet, after so long a wait for one that can."""
        if seconds and not any(flight.found.done() for flight in self._free()):
            began = time.perf_counter()
            wait([flight.found for flight in self._free()], seconds, FIRST_COMPLETED)
            self._waited += time.perf_counter() - began
        return len(self._flights) - sum(flight.found.done() for flight in self._free())

    def _free(self) -> list[Flight]:
        """The batches that may be landed before those begun earlier, which are of other lines."""
        free, lines = list[Flight](), set[str]()
        for flight in self._flights:
            if not flight.lines & lines:
                free.append(flight)
            lines |= flight.lines
        return free

    def land(self, hand: Sequence[Opened], most: int = 0) -> int:
        """Take what came of batches under way until at most so many are left, first what is there first; of a line, and
        from a GPU, the oldest first. `hand` is all in hand. Returns how many were taken."""
        landed = 0
        while len(self._flights) > most:
            flight = self._next()
            # A line that let go of its images has them come again.
            in_hand = [run for run in flight.runs if run.images[0][0] in hand]
            try:
                if isinstance(found := flight.found.result(), Exception):
                    raise _fresh(found)
            except Exception as error:
                self.blame(error, *(run.keeper.line.name for run in in_hand))
                in_hand, found = [], []
            self.engine.beat()
            for run, of_run in zip(flight.runs, found, strict=False):  # none where all failed
                try:
                    if run in in_hand:
                        self._fill_in(run, of_run, hand)
                except Exception as error:
                    self.blame(error, run.keeper.line.name)
            for picture in flight.pictures:
                picture.opened.left -= 1
            landed += 1
        return landed

    def _next(self) -> Flight:
        """The batch to be landed next, once it is there."""
        seconds, waited, self._waited = dict[str, float](), self._waited, 0.0
        with self.engine.metrics.stages(seconds, waited):
            wait([flight.found for flight in self._free()], return_when=FIRST_COMPLETED)
            flight = next(flight for flight in self._free() if flight.found.done())
            seconds |= flight.seconds
        self._flights.remove(flight)
        return flight

    def judge(self, keeper: Keeper, images: list[tuple[Opened, Image]], features: PatchMaps) -> None:
        """Fill in the verdicts on images of a line, by their features, at once."""
        run = self._run(keeper, images)
        with self.engine.metrics.stage("score"):
            found = Found(run.score(features), features.joined() if run.learns else None)
        self._fill_in(run, found, [opened for opened, _ in images])

    def _fill_in(self, run: Run, found: Found, hand: Sequence[Opened]) -> None:
        if isinstance(found.scores, Exception):
            raise _fresh(found.scores)
        line = run.keeper.line
        with self.engine.metrics.stage("score"):
            verdicts = verdicts_of(found.scores)
        for (opened, image), verdict in zip(run.images, verdicts, strict=True):
            opened.judged.append(Judged(image, verdict, found.scores.serving))
        if found.features is not None and line.learns and run.keeper.epoch:
            self.cache.keep([opened for opened, _ in run.images], found.features, hand)

    def _pixels(self, picture: Picture) -> Tensor | None:
        opened, image, x = picture.opened, picture.image, picture.pixels
        if isinstance(x, Rejected):
            opened.rejected.append(x)
            return None
        return x if self.opening.is_first(opened.name, image, opened.entry, picture.place) else None

    def close(self) -> None:
        """Stop the threads."""
        for pool in (self._pool, self._aside):
            if pool:
                pool.shutdown(cancel_futures=True)


def _fresh(error: Exception) -> Exception:
    """What to raise for an error that was a value: another one, that no frame which handles it holds."""
    if is_device_failure(error):
        return error
    raised = JudgingError(f"{type(error).__name__}: {error}")
    raised.__cause__ = error
    return raised


def _scores_of(run: Run, features: PatchMaps) -> Scores | Exception:
    """Scores of a run's images; what fails is its line's alone."""
    try:
        return run.score(features)
    except Exception as error:
        if is_device_failure(error):
            raise
        return error


@contextmanager
def add_seconds(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the time of the block to seconds[name]."""
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
