"""When a keeper makes a snapshot."""

import time

from worker.settings import SnapshotSettings

RETRY_SECONDS = 5.0  # after a snapshot that the disk refused
BRIEF = 0.2  # seconds; what takes longer is not made as often as a line that learns fast would have it
REST = 9  # times as long as that took
MOST = 20  # times as many images as ask for one: no more is learned again after a crash, and none held back longer


class Schedule:
    """Every so many seconds, and every so many images, where those that take long are a tenth of the time at most; not
    while the disk refuses."""

    def __init__(self, settings: SnapshotSettings) -> None:
        self.settings = settings
        self.images = 0  # taken since the last snapshot
        self._made_at = self._retry_at = 0.0
        self._took = 0.0  # seconds, the last one
        self._owed_since = 0.0  # 0: nothing waits for a snapshot

    def made(self, took: float) -> None:
        """One is committed, that was so many seconds on its way."""
        self._took = took
        self.restart()

    def restart(self) -> None:
        """All is in a snapshot: one was made, or the line was loaded."""
        self.images, self._made_at, self._owed_since = 0, time.monotonic(), 0.0

    def refused(self) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS

    @property
    def held_up(self) -> bool:
        """While the disk refuses, no more is taken than a restart can take again."""
        return time.monotonic() < self._retry_at and self.images >= 2 * self.settings.every_images

    def due(self, owed: bool, ended: bool) -> bool:
        """Entries or a command wait for it, and a phase ended or enough images or seconds went by."""
        now = time.monotonic()
        self._owed_since = (self._owed_since or now) if owed else 0.0
        if now < self._retry_at or not owed:
            return False
        since = now - self._made_at
        rested = self._took < BRIEF or since >= REST * self._took
        many = self.images >= self.settings.every_images * (1 if rested else MOST)
        return ended or many or since >= self.settings.every_seconds

    @property
    def owed_seconds(self) -> float:
        """How long something waits for a snapshot, as of the last `due`; 0 where nothing does."""
        since = self._owed_since  # read once: another thread asks
        return time.monotonic() - since if since else 0.0
