"""What one rank does of a line's learning: it decodes, extracts features, and keeps its share of the statistics."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
import torch
from safetensors.torch import load, save
from torch import Tensor

from mhpc.core.devices import is_device_failure
from mhpc.core.distributed import merged
from mhpc.core.learner import OnePassLearner
from mhpc.core.scorer import Scorer
from worker.engine import Engine
from worker.errors import RanksError, RejectedError, one_line
from worker.failpoints import failpoint
from worker.message import Image
from worker.pictures.decoding import decode
from worker.runtime.threads import compute_on
from worker.settings import LimitSettings

log = structlog.get_logger()


class Share:
    """One rank's part. `do` carries out what rank 0 says, on this rank as on all.

    Args:
        new_learner: an empty one, configured as the line is.
    """

    def __init__(self, engine: Engine, limits: LimitSettings, new_learner: Callable[[], OnePassLearner], rank: int):
        self.engine = engine
        self.limits = limits
        self.new_learner = new_learner
        self.rank = rank
        self.learner, self.ticket = new_learner(), 0
        self.whole: OnePassLearner | None = None  # on rank 0, what the last merge has found
        self.scorer: Scorer | None = None
        self._opened: list[Tensor | None] = []  # prepared images [3, H, W]; None for one that cannot be decoded
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "open", initializer=compute_on, initargs=(1,))

    def take_over(self, learner: OnePassLearner, ticket: int) -> None:
        """Go on with this learner as the share of that ticket."""
        self.learner, self.ticket = learner, ticket

    def do(self, what: str, message: dict[str, Any]) -> dict[str, Any]:
        """Carry out; what fails is the reply, unless the device or another rank is lost."""
        try:
            failpoint("rank", f"{what}-{self.rank}")
            return dict(getattr(self, f"_{what}")(**message))
        except Exception as error:  # a lack of memory, too: who leaves an exchange has the others wait for it
            if isinstance(error, RanksError) or is_device_failure(error):
                raise
            log.exception("a rank's part failed", what=what, rank=self.rank)
            return {"error": f"{type(error).__name__}: {one_line(error, 200)}"}

    def _beat(self) -> dict[str, Any]:
        return {}

    def _open(self, images: list[list[Any]]) -> dict[str, Any]:
        """Decode images on threads, and keep them until the next are opened."""
        self._opened = list(self._pool.map(self._prepared, images))
        return {"usable": [x is not None for x in self._opened]}

    def _prepared(self, image: list[Any]) -> Tensor | None:
        identity, form, data, shape = image
        try:
            failpoint("decode", identity)
            pixels = decode(Image(identity, form, data, shape and tuple(shape), None, None), self.limits)
        except RejectedError:  # answering tells of it
            return None
        return self.engine.prepare(pixels)

    def _learn(self, ticket: int, forget: float, steps: list[tuple[int, list[int]]]) -> dict[str, Any]:
        """Learn from opened images, each step's as pictures numbered from its first one's number on."""
        self._hold(ticket)
        self.learner.forget(forget)
        learned: list[bool] = []
        if steps:
            features = torch.cat(list(self._features(place for _, places in steps for place in places)))
            for (first, _), of_step in zip(steps, features.split([len(places) for _, places in steps]), strict=True):
                learned += self.learner.partial_fit(of_step, first=first).learned.tolist()
        begun = self.learner.bank_ is not None
        return {"learned": learned, "convergence": list(self.learner.convergence_) if begun else []}

    def _score_by(self, top_k: int, scorer: bytes) -> dict[str, Any]:
        self.scorer = Scorer.of_state(load(scorer), top_k, self.engine.device)
        return {}

    def _calibrate(self, places: list[int]) -> dict[str, Any]:
        assert self.scorer is not None  # noqa: S101 - rank 0 says by what before
        scores, means = list[float](), list[Tensor]()
        for features in self._features(places):
            z = self.scorer.whiten(features)
            scores += self.scorer.score_maps(z)[0].double().tolist()  # GPU sync
            means.append(z.mean(1).cpu())  # GPU sync
        return {"scores": scores, "means": b"".join(part.numpy().tobytes() for part in means)}

    def _merge(self, ticket: int) -> dict[str, Any]:
        """Part of a sum over all ranks: whoever fails here leaves the others waiting, so it ends its process."""
        self._hold(ticket)
        try:
            self.whole = merged(self.learner)
        except RuntimeError as error:
            if is_device_failure(error):
                raise
            raise RanksError(f"the ranks' statistics are not merged: {one_line(error, 300)}") from error
        return {}

    def _save(self, ticket: int) -> dict[str, Any]:
        self._hold(ticket)
        return {"share": save({name: tensor.contiguous() for name, tensor in self.learner.state_dict().items()})}

    def _restore(self, ticket: int, share: bytes) -> dict[str, Any]:
        self.take_over(self.new_learner().load_state_dict(load(share)), ticket)
        return {}

    def _hold(self, ticket: int) -> None:
        """Hold a share of that ticket: where it is another's, an empty one."""
        if ticket != self.ticket:
            self.take_over(self.new_learner(), ticket)

    def _features(self, places: Iterable[int]) -> Iterable[Tensor]:
        """Features [B, P, D] of opened images, in the device's batches."""
        return self.engine.batches(x for place in places if (x := self._opened[place]) is not None)
