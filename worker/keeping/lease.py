"""The lease on a line, by this process's monotonic clock."""

import time

import structlog

from worker.errors import FencedError
from worker.streams.line_streams import LEASE_MS, LineStreams

RENEW_SECONDS = LEASE_MS / 1000 / 3
ASK_AGAIN_SECONDS = 1.0  # between attempts that fail: a loop that waits for threads turns every few milliseconds
LAPSE_SECONDS = 0.9 * LEASE_MS / 1000  # not renewed for so long, it counts as held no more, before it ends
LOST_EPOCHS = 1000  # more than a master gives that its replica is not told of

log = structlog.get_logger()


class Lease:
    """Who holds it may keep the line; an epoch that only grows tells one holder from the next."""

    def __init__(self, streams: LineStreams) -> None:
        self.streams = streams
        self.highest_epoch = 0  # ever held by this process
        self._attempted = self._doubted = self._lapsed = False
        self._lost = ""  # to another: what Redis said
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
            self.highest_epoch, self._doubted, self._lapsed, self._lost = epoch, False, False, ""
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

    @property
    def lapsed(self) -> bool:
        """Whether its time was up at some moment of this epoch. Another may have had it since, and committed: whoever
        connects anew may find a server that was not told of that, and so cannot fence this epoch."""
        return self._lapsed or not self.held

    def renew(self, epoch: int) -> None:
        """Keep it alive, where it is time; where its time is up, too, as long as nobody took it: Redis knows.

        Raises:
            FencedError: another keeper took over. An epoch that is lost stays so: Redis is not asked again, and who
                asks for the line is told, although somebody else, who may not act on it, was told first.
        """
        if self._lost:
            raise FencedError(self._lost)
        now = time.monotonic()
        if now < self._renew_at:
            return
        self._renew_at = now + ASK_AGAIN_SECONDS
        try:
            self.streams.renew(epoch)
        except FencedError as error:
            self._lost = str(error)
            raise
        if now >= self._lapses_at:
            self._lapsed = True
            log.warning(
                "the lease lapsed, and nobody took it: the line is kept on; where a batch takes so long, lower "
                "model.max_batch",
                line=self.streams.line,
                not_renewed_seconds=round(now - self._lapses_at + LAPSE_SECONDS),
            )
        self._renew_at, self._lapses_at = now + RENEW_SECONDS, now + LAPSE_SECONDS
