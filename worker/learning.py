"""The learning side of a turn: every kept line in its time."""

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeAlias

import redis

from worker.answering.turns import Answering
from worker.keeping.keeper import Keeper
from worker.lines import Lines
from worker.message import Image
from worker.streams.control import Came, read_commands_of_all
from worker.streams.line_streams import Entry

LEARN_SECONDS = 0.25  # per turn: how long learning may keep an answer waiting, beyond the step in hand
KEEP_SECONDS = 0.1  # between looks at a line that does not learn
COMMANDS_SECONDS = 1.0  # between looks for commands
SOON_SECONDS = 5.0  # that learning waits at most for features that answering is to leave, once it is through an entry

Guarded: TypeAlias = Callable[[Keeper, Callable[[Keeper], None]], None]  # Worker's


class Learning:
    """Has the keepers learn, look and make snapshots between two batches of answers."""

    def __init__(self, answering: Answering, lines: Lines, renew: Callable[[], None]) -> None:
        self.answering = answering
        self.lines = lines
        self.renew = renew  # all leases
        self._turns = self._snapshots = 0  # turns so far; snapshots that this one may still make
        self._until = self._commands_at = 0.0
        self._waits = False
        self._asked: dict[str, int] = {}  # the epochs of the lines whose commands were asked for last
        self._keep_at: dict[str, float] = {}
        self._waits_for: dict[str, tuple[str, float]] = {}  # line -> an entry left to answering, seen at it last
        self._decoded: dict[str, tuple[str, Future[Any]]] = {}  # line -> the last entry that was put off for it

    def turn(self, client: Any, keepers: Mapping[str, Keeper], guarded: Guarded) -> bool:
        """Learn within the time for it, each turn beginning with another line; whether there is more to learn from.
        Where answering but waits for threads nothing has come to learn from; it looks again within milliseconds.
        """
        if self.answering.stands_still and not self._waits:
            self.renew()  # a batch may take its thread longer than a lease
            return False
        self._waits, self._snapshots = False, 1
        self._until = time.monotonic() + LEARN_SECONDS
        self._turns += 1
        kept = list(keepers.values())
        came = self._commands(client, kept)
        first = self._turns % max(1, len(kept))
        for keeper in kept[first:] + kept[:first]:
            if keeper.epoch:
                self._keep_where_due(keeper, came.get(keeper.line.name, []), guarded)
            else:
                self.answering.cache.drop(keeper.line.name)
                self._decoded.pop(keeper.line.name, None)
        return self._waits

    def forget(self, line: str) -> None:
        """The line is served no more."""
        for by_line in (self._keep_at, self._waits_for, self._decoded):
            by_line.pop(line, None)

    def _commands(self, client: Any, keepers: Iterable[Keeper]) -> dict[str, Came]:
        """What came to the lines that are kept here, every second, and at once where one has just been opened: it may
        fail as soon as it learns. Of all in one call: one by one, 64 lines took a fifteenth of the loop's time."""
        kept = [keeper for keeper in keepers if keeper.epoch]
        epochs = {keeper.line.name: keeper.epoch for keeper in kept}
        if time.monotonic() < self._commands_at and epochs.items() <= self._asked.items():
            return {}
        self._commands_at, self._asked = time.monotonic() + COMMANDS_SECONDS, epochs
        return read_commands_of_all(client, {keeper.streams: keeper.line.commands_through for keeper in kept})

    def _keep_where_due(self, keeper: Keeper, came: Came, guarded: Guarded) -> None:
        """In each turn where there is something to do; else now and then: threads that judge wait for the interpreter
        while the loop goes through lines, which with 64 of them cost a twelfth of the throughput."""
        name, now = keeper.line.name, time.monotonic()
        busy = came or keeper.line.learns or keeper.saving.stem or keeper.owed.changed
        if busy or now >= self._keep_at.get(name, 0.0):
            self._keep_at[name] = now + KEEP_SECONDS
            guarded(keeper, partial(self._keep, came=came))

    def _keep(self, keeper: Keeper, came: Came) -> None:
        name, opening = keeper.line.name, self.answering.opening
        keeper.lease.renew(keeper.epoch)
        if isinstance(came, redis.ResponseError):
            raise came
        keeper.saving.aside = self.answering.would_wait
        usable, ready = partial(self._usable, name), partial(self._ready, name)
        self.lines.looks[name](came, opening.features_of, usable)
        if not keeper.epoch:  # a command failed: the line is loaded again
            return
        while self._may_learn(name):
            if time.monotonic() >= self._until or keeper.snapshot_due:
                self._waits = True
                break
            if not keeper.learn(opening.extract, self._count(keeper), usable, ready):
                break
        if not keeper.epoch:  # an entry failed: the line is loaded again
            return
        self.answering.cache.drop(name, keeper.line.applied_through if keeper.line.learns else "")
        if keeper.snapshot_due and self._snapshots:
            self._snapshots -= 1
            keeper.snapshot()
            self.renew()
        keeper.trim()

    def _usable(self, line: str, entry: Entry) -> list[Image]:
        """To be looked through for what is set aside; an entry of many images takes a second."""
        self.renew()
        return self.answering.opening.usable(line, entry)

    def _ready(self, line: str, entry: Entry) -> bool:
        """Whether learning may take an entry now; if not, it is put off until a thread has decoded what takes long.

        It is put off once: should other pictures have taken the room of some by then, those are decoded here.
        """
        if self._decoded.get(line, ("",))[0] == entry.id:
            return True
        if images := self.answering.opening.too_long(line, entry):
            self._decoded[line] = entry.id, self.answering.decode_for_learning(images)
        return not images

    def _count(self, keeper: Keeper) -> int:
        """Entries that are learned next: one, or where steps may be of several those whose features are there."""
        learner = keeper.line.learner
        return max(1, self.answering.cache.entries(keeper.line.name, learner.step)) if learner.takes_long_steps else 1

    def _may_learn(self, name: str) -> bool:
        """Not while answering recovers, nor what it is to judge next: learning would only repeat its forward pass.

        What answering is at takes as long as it takes: its threads decode beside the answers of other lines, learning
        would in their place. Where that left no features, the next may leave none either: learning waits no more.
        """
        if self.answering.intake.recovering(name) or (name in self._decoded and not self._decoded[name][1].done()):
            return False
        if not self.answering.gives_features_soon(name):
            self._waits_for.pop(name, None)
            return True
        # The clock runs only once answering is past the entry that was waited for.
        now, at = time.monotonic(), self.answering.batcher.at(name)
        entry, since = self._waits_for.get(name, (at, now))
        still_at_it = bool(at) and entry in ("", at)
        self._waits_for[name] = (at, now) if still_at_it else (entry, since)
        return not still_at_it and now - since > SOON_SECONDS
