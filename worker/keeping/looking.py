"""What a keeper looks after beside learning: commands, the threshold, drift, and what people are shown."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import redis
import structlog
from torch import Tensor

from mhpc.core.devices import is_device_failure
from worker.errors import RefusedError, StoreError, WorkerError, one_line
from worker.keeping.commands import Means, execute
from worker.keeping.keeper import Keeper
from worker.keeping.owed import Usable, nobody
from worker.keeping.versions import load_for_rollback
from worker.keeping.watching import ThresholdTracker, display_fields, set_gauges
from worker.runtime.errands import run_within
from worker.snapshots import Snapshot
from worker.streams import review
from worker.streams.control import Command, Reply, encode_reply, send
from worker.streams.line_streams import ReviewPart

LOOK_SECONDS = 1.0
TRACK_SECONDS = 5.0  # between readings of the results; each is a round trip that, with many lines, answers wait for
SHOW_SECONDS = 5.0  # between showing the same again
LOAD_SECONDS = 10.0  # that a rollback may keep all lines waiting; a lease lasts longer
REFIT_SNAPSHOTS = 10  # times snapshots.every_seconds, between versions that differ by the threshold alone

log = structlog.get_logger()

Features = Callable[[bytes], Tensor]  # of an image as review keeps it, [1, P, D]


class Look:
    """The looks of one keeper; `facts` are shown beside what is the line's own."""

    def __init__(self, keeper: Keeper, facts: Mapping[str, str] | None = None) -> None:
        self.keeper = keeper
        self.facts = facts or {}
        self.tracker = ThresholdTracker(keeper.streams, REFIT_SNAPSHOTS * keeper.settings.every_seconds)
        self._at = self._track_at = self._show_at = 0.0
        self._shown: dict[str, str] = {}
        self._alarmed = False
        self._failed: dict[str, str] = {}  # entry of a command -> what went wrong with it

    def __call__(self, commands: Sequence[Command], features: Features, usable: Usable = nobody) -> None:
        """Obey the commands that came; then, and every second, let the threshold follow its scores, show what is new.

        A command that has to wait is to be given again.
        """
        keeper, now = self.keeper, time.monotonic()
        if not commands and now < self._at:
            return
        self._at = now + LOOK_SECONDS
        for command in commands:
            if keeper.owed.changed or keeper.saving.stem or not keeper.epoch:
                return  # the one before is not answered yet, or a version is on its way, or the line is loaded again
            self._obey(command, features, usable)
        if not keeper.epoch:
            return
        # Until what a command made of the line is committed, results are by the version before.
        if now >= self._track_at and not (keeper.saving.stem or keeper.owed.changed):
            self._track_at = now + TRACK_SECONDS
            self._track()
        self._watch_drift()
        news = {**display_fields(keeper.line, keeper.line.serving), **self.facts}
        if news != self._shown or now >= self._show_at:
            keeper.streams.show(keeper.epoch, news)
            self._shown, self._show_at = news, now + SHOW_SECONDS
        set_gauges(keeper.metrics, keeper.line)

    def _obey(self, command: Command, features: Features, usable: Usable) -> None:
        """Carry a command out; where that fails the line is loaded again, since half of it may be done. What failed by
        a fault of its own is refused then: tried again, it would fail for ever."""
        keeper = self.keeper
        if problem := self._failed.pop(command.entry, ""):
            command = command._replace(problem=problem)
        try:
            _carried_out(keeper, command, features, usable)
        except Exception as error:
            keeper.lose(f"command {one_line(command.name, 40)} failed: {one_line(error, 200)}")
            if isinstance(error, redis.RedisError | WorkerError) or is_device_failure(error):
                raise
            log.exception("a command failed", line=keeper.line.name, name=command.name, by=command.by)
            self._failed[command.entry] = f"it failed: {type(error).__name__}: {one_line(error, 200)}"

    def _track(self) -> None:
        keeper = self.keeper
        if (threshold := self.tracker.refit(keeper.line)) is not None:
            log.info("threshold", line=keeper.line.name, **threshold._asdict())
            keeper.line.threshold = threshold
            keeper.save_change()

    def _watch_drift(self) -> None:
        line = self.keeper.line
        drift = line.serving.drift or 0.0
        if drift > 1 and not self._alarmed:
            log.warning("drift: the images of late are not those of calibration", line=line.name, drift=drift)
            if line.config.learning.relearn_on_drift:
                send(self.keeper.streams, "relearn", {}, by="drift")
        self._alarmed = drift > 1


def _carried_out(keeper: Keeper, command: Command, features: Features, usable: Usable) -> None:
    """Carry a command out, and commit what it made of the line, and its answer."""
    line, dropped = keeper.line, list[str]()
    before = line.applied_through
    try:
        if command.problem:
            raise RefusedError(command.problem)
        line.gather()
        reply = Reply(True, execute(line, command, _means(keeper, features, dropped)))
    except RefusedError as error:
        reply = Reply(False, str(error))
    line.commands_through = command.entry
    log.info("command", line=line.name, name=command.name, by=command.by, ok=reply.ok, text=reply.text)
    if reply.ok:
        keeper.commit_command(encode_reply(command, reply), line.applied_through != before, dropped, usable)
    else:
        keeper.answer_refusal(encode_reply(command, reply))


def _means(keeper: Keeper, features: Features, dropped: list[str]) -> Means:
    @cache  # each reads all that review holds
    def find(entry: str, identity: str) -> list[tuple[str, ReviewPart]]:
        return review.find(keeper.streams, entry, identity)

    def in_review(entry: str, identity: str) -> list[ReviewPart]:
        if found := [part for _, part in find(entry, identity)] + keeper.owed.of_part(entry, identity):
            return found
        raise RefusedError(
            f"review does not hold part {identity!r} of entry {entry}: it was neither flagged nor set aside, or is too "
            "old; mhpc-worker review list shows what it holds"
        )

    def of_part(entry: str, identity: str) -> Tensor:
        if image := next((part.image for part in in_review(entry, identity) if part.image), b""):
            return features(image)
        raise RefusedError(
            f"review holds part {identity!r} of entry {entry} without its picture, which was gone by then or larger "
            "than streams.review_bytes: drop takes it out"
        )

    def forget_part(entry: str, identity: str) -> None:
        dropped.extend(key for key, _ in find(entry, identity))
        keeper.owed.forget_part(entry, identity)

    def load(version: str | None) -> Snapshot:
        store, aside = keeper.store, keeper.store.remote
        wanted = version if version is not None else keeper.line.before or None
        look = partial(load_for_rollback, store, keeper.fingerprint, keeper.model, wanted)
        try:
            return run_within(look, aside, min(LOAD_SECONDS, keeper.settings.timeout_seconds), store.place)
        except StoreError as error:
            raise RefusedError(str(error)) from None

    return Means(of_part, forget_part, in_review, load, keeper.streams.last_id, keeper.model)
