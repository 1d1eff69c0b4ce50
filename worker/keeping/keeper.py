"""The keeper of one line: its lease, what it learns, its snapshots and commits."""

import time
from collections.abc import Callable

import redis
import structlog
import torch

from mhpc.core.devices import is_device_failure
from worker.errors import FencedError, RanksError, SnapshotError
from worker.failpoints import failpoint
from worker.keeping.following import STOPPED, Follower
from worker.keeping.lease import Lease
from worker.keeping.owed import Owed, Usable, nobody
from worker.keeping.reading import Reading
from worker.keeping.schedule import Schedule
from worker.keeping.taking import Extract, Ready, count_taken, failed, skip, take_set_aside
from worker.keeping.upkeep import Upkeep
from worker.keeping.watching import fit_to_rate, set_gauges, state_fields, tell_opened
from worker.line import PAUSED, SCORING, Line
from worker.metrics import Metrics
from worker.records import Serving, Taken
from worker.settings import SnapshotSettings
from worker.snapshots import stem_of
from worker.storage.saving import Saving
from worker.storage.stores import Store
from worker.streams.ids import entry_key, worker_of
from worker.streams.line_streams import ANSWERING, LEARNING, REVIEW_CAPS, Entry, LineStreams, ReviewCaps

ACQUIRE_SECONDS = 2.0  # between attempts while another holds the lease
SOON_SECONDS = 0.1  # while a version is on its way
CLOSE_SECONDS = 2.0  # that a last version may keep all lines waiting

log = structlog.get_logger()


class Keeper(Follower):
    """Owns one line under one epoch; until then it follows who does.

    1. acquire: the lease and a higher epoch; load the committed version; read the pending entries again.
    2. learn: apply what lies past applied_through.
    3. snapshot: make it durable, on disk or in an object store.
    4. commit: model, phase, threshold and applied_through together, if the epoch still stands.
    5. acknowledge: only what the committed version holds.
    """

    def __init__(
        self,
        make_line: Callable[[], Line],
        streams: LineStreams,
        store: Store,
        settings: SnapshotSettings,
        fingerprint: str,
        metrics: Metrics,
        review: ReviewCaps = REVIEW_CAPS,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(make_line, streams, store, fingerprint, settings.timeout_seconds)
        self.settings = settings
        self.metrics = metrics
        self.review = review
        self.origin = {"fingerprint": fingerprint, "precision": str(precision).removeprefix("torch.")}
        self.epoch = 0  # 0: not the keeper
        self.stopped = False  # the stream went back behind what was learned; a person must look
        self.lease = Lease(streams)
        self._seq, self._acquire_at, self._put_back = 0, 0.0, False  # the last: whether an entry was read too early
        self.reading = Reading(streams)
        self.saving = Saving(store, settings.timeout_seconds)
        self.schedule, self.owed, self.upkeep = Schedule(settings), Owed(), Upkeep(metrics)

    # -- 1. acquire --------------------------------------------------------------------------------------------------

    def acquire(self, holder: str, take_over: str = "", resync: bool = False) -> None:
        """Try to become the keeper, at most every ACQUIRE_SECONDS; `problem` says why it is not.

        With `resync` the line is kept although its stream has gone back.
        """
        if (self.stopped and not resync) or time.monotonic() < self._acquire_at:
            return
        self._acquire_at = time.monotonic() + ACQUIRE_SECONDS
        if not self.follow():  # first: who cannot load the line's version must not hold its lease
            self._acquire_at = time.monotonic() + SOON_SECONDS
            return
        epoch, other, ends_in = self.lease.acquire(holder, self.store.highest_epoch(), take_over)
        if not epoch and 0 <= ends_in < ACQUIRE_SECONDS:
            self._acquire_at = time.monotonic() + ends_in + 0.002  # a key is there until its millisecond is over
        # Whoever keeps it: this one answers by the version that it follows.
        namesake = worker_of(other) if not epoch and worker_of(other) == worker_of(holder) else ""
        self.problem = namesake and f"another process named {namesake} keeps it: each needs a worker.name of its own"
        if epoch:
            try:
                if self.follow():  # again: the keeper before may have committed in between
                    self._open(epoch, resync)
                else:
                    self.streams.release(epoch)
            except BaseException:
                self.epoch = 0  # half open is not open: it is done again
                raise

    def _open(self, epoch: int, resync: bool) -> None:
        """Begin to keep the line under a new epoch."""
        problem = "" if resync else self.halt()
        self.stopped = bool(problem)
        if problem:
            self.problem = problem
            # Before the first commit it goes on by itself: nothing that Redis knows of is at stake.
            self.streams.show(epoch, {"problem": problem, STOPPED: problem if self._loaded_for else ""})
            log.error("line stopped", line=self.line.name, problem=problem)
            return
        self.epoch, self._seq, self.owed = epoch, 0, Owed()
        self.reading.open(epoch)
        self.saving.keep(self.unused)
        self.schedule.restart()
        if not self.model or (not fit_to_rate(self.line) and self.model == self._loaded_for):
            self._publish(self.model, self.line.serving)
            self.tell_unused(epoch)
        else:
            self.metrics.images.labels(self.line.name, "skipped").inc(self.missing)
            self.save_change()  # versions only grow: old content, or another threshold, comes as a new version
        if self.line.phase == SCORING:
            self.reading.acknowledge_rest()
        tell_opened(self.line, epoch)

    def lose(self, problem: str) -> None:
        """Stop keeping; what was not committed comes again to the next keeper, commands and all."""
        self.epoch, self.problem, self._loaded_for, self.owed = 0, problem, None, Owed()
        self.saving.forget()
        self._acquire_at = time.monotonic() + ACQUIRE_SECONDS
        self.metrics.forget_keeping(self.line.name)

    def commit_command(self, reply: bytes, moved: bool, dropped: list[str], usable: Usable = nobody) -> None:
        """Commit what a command made of the line and its answer; if it `moved`, learning begins behind what is applied.

        A store that refuses leaves it to the next attempt, and no other command is obeyed before.
        """
        self.owed.reply, self.owed.dropped = reply, dropped
        take_set_aside(self.metrics, self.line, self.owed, self.streams, usable)
        if moved:  # what was read ahead is let go
            self.owed.restart = self.line.applied_through
            self.reading.rewind()
        self.save_change()

    def save_change(self) -> None:
        """Make a version of what was changed by other means than learning, as soon as the store takes it."""
        self.owed.changed = True
        self.saving.forget()  # what is on its way is the line as it was
        self.snapshot()

    def answer_refusal(self, reply: bytes) -> None:
        """Answer a command that changed nothing: no version is made for it."""
        self._commit({"commands_through": self.line.commands_through}, Owed(reply))

    # -- 2. learn ----------------------------------------------------------------------------------------------------

    def learn(self, extract: Extract, count: int, usable: Usable = nobody, ready: Ready = lambda _: True) -> int:
        """Read and apply up to `count` entries; returns how many were read, 0 where one failed or is not ready yet."""
        if not self.line.learns or self.saving.stem or self.schedule.held_up:
            return 0
        entries, through = self._read(count), entry_key(self.line.applied_through)
        failpoint("learn_read")
        fresh = [entry for entry in entries if entry_key(entry.id) > through]  # others only want acknowledging
        self.reading.unacknowledged += [entry.id for entry in entries if entry_key(entry.id) <= through]
        for together in self._together(fresh):
            if self.line.learns and not self._tried(together, extract, usable, ready):
                return 0
            self.reading.unacknowledged += [entry.id for entry in together]
        return len(entries)

    def _read(self, count: int) -> list[Entry]:
        """What comes next; of what was put back the first that is pending behind what is applied, by itself."""
        rest = self.streams.read_learning(self.epoch, 1, self.line.applied_through) if self._put_back else []
        self._put_back = bool(rest)
        return rest or self.reading.read(1 if self.reading.marks else count)

    def _together(self, entries: list[Entry]) -> list[list[Entry]]:
        """What is applied at once: all, where a step may be of several entries; else each by itself."""
        all_ = self.line.learner.takes_long_steps and entries and not self.reading.marks
        return [entries] if all_ else [[entry] for entry in entries]

    def _tried(self, entries: list[Entry], extract: Extract, usable: Usable, ready: Ready) -> bool:
        """Apply; False if they are not ready yet, and come again, or if they failed: then the line is loaded again
        without them, and they come again, marked. What is marked is tried by itself and at once: a crash of anything
        else meanwhile would count as its own."""
        entry = entries[0]
        if self.reading.given_up(entry):
            skip(self.metrics, self.line.name, [entry], "skipped: it failed again and again")
            self.line.apply(entry.id, [])
            self.owed.changed = True  # durable before the next is tried: if that fails, this one comes no more
            return True
        try:
            if not (self.reading.marks or all(map(ready, entries))):
                self._put_back = True
                return False
            self._apply(entries, extract, usable)
        except Exception as error:
            if isinstance(error, redis.RedisError):
                self.lose(f"Redis failed while entry {entry.id} was learned from: {error}")  # half of it may be
            if isinstance(error, redis.RedisError | FencedError | RanksError) or is_device_failure(error):
                raise
            self.lose(failed(self.line.name, entries, error))
            self.reading.suspicious = True
            return False
        self.reading.survived(entry)
        return True

    def _apply(self, entries: list[Entry], extract: Extract, usable: Usable) -> None:
        line, phase = self.line, self.line.phase
        skip(self.metrics, line.name, (e for e in entries if e.lost), "trimmed before it was learned from")
        for entry in entries:
            failpoint("apply", entry.id)
        with self.metrics.stage("learn"):
            taken = zip(entries, self._learned(entries, extract), strict=False)  # no more than the line wants
        self.schedule.images += count_taken(self.metrics, line.name, taken, self.owed, usable)
        take_set_aside(self.metrics, line, self.owed, self.streams, usable)
        if line.phase != phase:
            log.info("phase", line=line.name, was=phase, now=line.phase, threshold=(at := line.threshold) and at.value)

    def _learned(self, entries: list[Entry], extract: Extract) -> list[Taken]:
        return self.line.apply_entries((entry.id, extract(self.line.name, entry)) for entry in entries)

    # -- 3. to 5. snapshot, commit, acknowledge ----------------------------------------------------------------------

    @property
    def snapshot_due(self) -> bool:
        """Whether what was learned, or what a command changed, is to be made durable now."""
        if self.saving.waits or self.saving.stem:
            return not self.saving.waits
        changed, ended = self.owed.changed, self.line.shown_phase != self.line.serving.phase
        return self.schedule.due(changed or bool(self.reading.unacknowledged), changed or ended)

    def snapshot(self, wait: float = 0.0) -> None:
        """Write, commit, acknowledge, in that order; a store that refuses is reported, and tried again later.

        While a version is on its way (`Saving`), this waits so many seconds for it, and is to be called again.
        What a command changed is answered by the commit that makes it last.

        Raises:
            FencedError: another keeper took over; nothing of this was committed.
        """
        line = self.line
        try:
            with self.metrics.stage("snapshot"):
                if not (stem := self._saved(wait)):
                    return
        except SnapshotError as error:
            self.schedule.refused()
            log.error("snapshot failed; nothing is acknowledged", line=line.name, error=str(error))
            self.streams.show(self.epoch, {"problem": f"no snapshot, and nothing is acknowledged: {error}"})
            return
        self._publish(stem, line.served_by(stem))
        self.schedule.made(self.saving.took)
        self.metrics.snapshot_last_success.labels(line.name).set_to_current_time()
        failpoint("acknowledge")
        self.reading.acknowledge()
        if line.phase == SCORING:
            self.reading.acknowledge_rest()
        self.saving.prune(self.settings.keep, stem, line.before)
        log.info("snapshot", line=line.name, model=stem, phase=line.phase, applied_through=line.applied_through)

    def _saved(self, wait: float) -> str:
        """The version of the line as it is that the store has now; "" while it has none."""
        if not self.saving.stem:
            stem, since = stem_of(self.epoch, self._seq + 1), time.monotonic()
            tensors, metadata = self.line.state()
            if not self.saving.begin(stem, tensors, {**metadata, "epoch": self.epoch, **self.origin}, since):
                return ""
            self._seq += 1  # whether it arrives or not: a name is used once
        return self.saving.arrived(wait)

    def _publish(self, model: str, serving: Serving) -> None:
        """Commit the line's state as one, with what is owed."""
        self._commit({**state_fields(self.line, model, serving), STOPPED: ""}, self.owed)
        self.owed = Owed()
        self.model = self._loaded_for = model
        self.line.serve(serving)
        set_gauges(self.metrics, self.line)

    def _commit(self, fields: dict[str, str], owed: Owed) -> None:
        """All of it or nothing. Which, is not known where the reply is lost, and the commit may still be on its way: so
        the line is loaded again as Redis has it, under a higher epoch that fences what is late."""
        failpoint("commit")
        try:
            self.streams.commit(self.epoch, fields, owed.commit, self.review)
        except redis.RedisError as error:
            self.lose(f"a commit was not confirmed: {error}")
            raise
        failpoint("commit_done")

    def trim(self) -> None:
        """Now and then, drop entries that every group in use is done with, and tidy what else there is."""
        phase = self.line.serving.phase  # as committed: one that only memory knows of may be lost with it
        self.upkeep(self.streams, self.epoch, [ANSWERING] if phase in (SCORING, PAUSED) else [ANSWERING, LEARNING])

    def close(self) -> None:
        """Drain: what was applied is made durable and acknowledged, if the store is not slow, and the lease let go."""
        self.saving.aside = False
        if self.reading.unacknowledged or self.owed.changed or self.saving.stem:
            self.snapshot(CLOSE_SECONDS)
        self.streams.release(self.epoch)
