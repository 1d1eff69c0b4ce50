"""When a keeper makes a snapshot."""

import time

from worker.settings import SnapshotSettings

RETRY_SECONDS = 5.0  # after a snapshot that the disk refused


class Schedule:
    """Every so many images and seconds, and not while the disk refuses."""

    def __init__(self, settings: SnapshotSettings) -> None:
        self.settings = settings
        self.images = 0  # taken since the last snapshot
        self._made_at = self._retry_at = 0.0

    def restart(self) -> None:
        """One was made, or the line was loaded."""
        self.images, self._made_at = 0, time.monotonic()

    def refused(self) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS

    @property
    def held_up(self) -> bool:
        """While the disk refuses, no more is taken than a restart can take again."""
        return time.monotonic() < self._retry_at and self.images >= 2 * self.settings.every_images

    def due(self, owed: bool, ended: bool) -> bool:
        """Entries or a command wait for it, and a phase ended or enough images or seconds went by."""
        now = time.monotonic()
        if now < self._retry_at or not owed:
            return False
        waited = now - self._made_at >= self.settings.every_seconds
        return ended or waited or self.images >= self.settings.every_images
