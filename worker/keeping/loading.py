"""The committed version, on its way from the store."""

import time
from collections.abc import Mapping
from concurrent.futures import Future

from worker.errors import StoreError
from worker.keeping.versions import find_version
from worker.runtime.errands import start
from worker.snapshots import Snapshot
from worker.storage.stores import Store

AGAIN_SECONDS = 2.0  # after a store that could not be asked


class Loading:
    """One version at a time. From a disk it comes at once; from an object store on a thread, and whoever asked goes on
    with what there is, and asks again."""

    def __init__(self, line: str, store: Store, seconds: float) -> None:
        self.line = line
        self.store = store
        self.seconds = seconds
        self._wanted: Mapping[str, str] = {}
        self._way: Future[Snapshot | None] | None = None
        self._overdue_at = self._again_at = 0.0
        self._refused = StoreError("")  # what is said until then

    def arrived(self, state: Mapping[str, str]) -> tuple[bool, Snapshot | None]:
        """Whether what the state names is here, and what it is; None where there is no version.

        Raises:
            StoreError: the store cannot be asked, or takes too long.
            AbsentError: the version was pruned while this looked: newer ones are committed.
            ModelError: it is of another format, or cannot be read.
        """
        wanted = {key: state.get(key, "") for key in ("model", "applied_through")}
        if self._way is not None and self._way.done() and self._wanted != wanted:
            self._way = None  # of a version that is not the committed one any more
        if self._way is None:
            if time.monotonic() < self._again_at:
                raise self._refused
            self._wanted, self._overdue_at = wanted, time.monotonic() + self.seconds
            self._way = start(lambda: find_version(self.line, self.store, wanted), self.store.remote)
        if not self._way.done():
            if time.monotonic() < self._overdue_at:
                return False, None
            raise StoreError(f"{self.store.place} has not given a version for {self.seconds:g} s; is it slow, or away?")
        way, self._way = self._way, None
        try:
            return True, way.result()
        except StoreError as error:
            self._refused, self._again_at = error, time.monotonic() + AGAIN_SECONDS
            raise
