"""The lease on a line, by this process's monotonic clock."""

import time

from worker.errors import FencedError
from worker.streams.line_streams import LEASE_MS, LineStreams

RENEW_SECONDS = LEASE_MS / 1000 / 3
LAPSE_SECONDS = 0.9 * LEASE_MS / 1000  # not renewed for so long, a keeper stops before its lease ends
LOST_EPOCHS = 1000  # more than a master gives that its replica is not told of


class Lease:
    """Who holds it may keep the line; an epoch that only grows tells one holder from the next."""

    def __init__(self, streams: LineStreams) -> None:
        self.streams = streams
        self.highest_epoch = 0  # ever held by this process
        self._attempted = self._doubted = False
        self._renew_at = self._lapses_at = 0.0

    def acquire(self, holder: str, epoch_on_disk: int, take_over: str) -> tuple[int, str, float]:
        """As LineStreams.acquire says, by an epoch above all that this process knows of.

        The first attempt takes over what an earlier process of the name `take_over` has left.
        """
        asked_at = time.monotonic()  # the lease runs from some moment after this
        floor = max(epoch_on_disk, self.highest_epoch)
        if self._doubted:
            floor = max(floor, int(self.streams.state().get("epoch", 0)) + LOST_EPOCHS)
        epoch, other, ends_in = self.streams.acquire(holder, floor, "" if self._attempted else take_over)
        self._attempted = True
        if epoch:
            self.highest_epoch, self._doubted = epoch, False
            self._renew_at, self._lapses_at = asked_at + RENEW_SECONDS, asked_at + LAPSE_SECONDS
        return epoch, other, ends_in

    def doubt(self) -> None:
        """Redis may be another server than before, that does not know the last epochs: the next one is beyond them.

        A version carries its epoch in its name, so that none may be given twice.
        """
        self._doubted = self._attempted

    @property
    def held(self) -> bool:
        """Whether its time is not up yet; what others did since, `renew` finds out."""
        return time.monotonic() < self._lapses_at

    def renew(self, epoch: int, holder: str) -> None:
        """Keep it alive, where it is time.

        Raises:
            FencedError: another keeper took over, or may have: it could not be renewed in time.
        """
        now = time.monotonic()
        if not self.held:
            raise FencedError(f"line {self.streams.line}: the lease was not renewed for {LAPSE_SECONDS:.0f} s")
        if now >= self._renew_at:
            self.streams.renew(epoch, holder)
            self._renew_at, self._lapses_at = now + RENEW_SECONDS, now + LAPSE_SECONDS
