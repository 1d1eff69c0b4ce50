"""A version on its way to the store."""

import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import structlog
from torch import Tensor

from worker.errors import AbsentError, SnapshotError, StoreError
from worker.runtime.errands import start
from worker.snapshots import packed
from worker.storage.stores import Store

log = structlog.get_logger()


class Saving:
    """One version at a time. To an object store it goes on a thread, and to a disk where answers would wait for it; its
    line learns nothing meanwhile, so that what arrives is the line as it is. Else it is there when `begin` returns.

    Attributes:
        aside: whether answers would wait.
        took: seconds that the last version took that the store has, from the time at which it was begun.
    """

    def __init__(self, store: Store, seconds: float) -> None:
        self.store = store
        self.seconds = seconds
        self.aside = False
        self.stem = ""  # of the version on its way, as long as it is wanted
        self._first = ""  # a version to be pinned before another is written
        self._pinned = False  # whether one was, since the last commit
        self._way: Future[None] | None = None
        self._tidying: Future[None] | None = None
        self._overdue_at = self.took = 0.0

    @property
    def waits(self) -> bool:
        """Whether there is nothing to be done yet: something is on its way, and has time left."""
        return self._way is not None and not self._way.done() and time.monotonic() < self._overdue_at

    def begin(
        self, stem: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], since: float | None = None
    ) -> bool:
        """Send a version, which nobody changes from then on; False while one that is no longer wanted is on its way.

        Args:
            since: when it was begun to be made, by the monotonic clock; now unless given.

        Raises:
            SnapshotError: that one does not end; a second beside it would hang likewise.
        """
        if self._way is not None and not self._way.done():
            if self.waits:
                return False
            raise SnapshotError(f"{self.store.place} still has not taken the version before; is it slow, or away?")
        self.stem, self._overdue_at = stem, time.monotonic() + self.seconds
        first, since = self._first, time.monotonic() if since is None else since

        def put() -> None:
            self._put(stem, packed(tensors, metadata), first)
            self.took = time.monotonic() - since

        self._way = start(put, aside=self.store.remote or self.aside)
        return True

    def keep(self, stem: str) -> None:
        """Pin a version that nobody uses before another is written, so that it is not pruned in its turn; "" for none.

        At most one is pinned between two commits: versions that were written since, and never committed, hold less.
        """
        self._first = "" if self._pinned else stem

    def _put(self, stem: str, content: bytes, first: str) -> None:
        try:
            if first:
                self.store.pin(first)
        except AbsentError:
            log.info("a version that was to be pinned is not there any more", version=first)
        except StoreError as error:
            raise SnapshotError(f"snapshot {stem} waits until {first} is pinned: {error}") from None
        self.store.put(stem, content)

    def arrived(self, wait: float) -> str:
        """The version that is in the store now, after `wait` seconds at most; "" while it is on its way.

        Raises:
            SnapshotError: the store refused it, or takes too long. Should it arrive late, nobody has committed it.
        """
        assert self._way is not None  # noqa: S101 - begin was called
        try:
            self._way.result(max(0.0, min(wait, self._overdue_at - time.monotonic())))
        except TimeoutError:
            if self.waits:
                return ""
            stem = self.forget()
            raise SnapshotError(
                f"snapshot {stem} is not written: {self.store.place} has not taken it for {self.seconds:g} s; is it "
                "slow, or away? snapshots.timeout_seconds gives it longer"
            ) from None
        except BaseException:
            self.forget()
            raise
        self._first, self._pinned = "", self._pinned or bool(self._first)
        return self.forget()

    def forget(self) -> str:
        """Want it no more; returns which it was."""
        stem, self.stem = self.stem, ""
        return stem

    def prune(self, keep: int, current: str, before: str) -> None:
        """`current` is committed, and `before` is to be gone back to: have the store remove what nobody needs; if it is
        still at that, with a later one."""
        self._pinned = False
        if self._tidying is None or self._tidying.done():
            self._tidying = start(lambda: self.store.prune(keep, current, before), self.store.remote)
