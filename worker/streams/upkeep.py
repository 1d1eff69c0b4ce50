"""What a keeper does for its line now and then."""

from worker.streams.ids import LAST
from worker.streams.line_streams import ANSWERING, LineStreams

CONSUMER_IDLE_MS = 24 * 3600 * 1000  # a consumer with nothing pending that was idle for so long is dead


def unread_lost(streams: LineStreams, epoch: int) -> int:
    """How many entries have gone since the last call that were never answered and cannot be any more.

    Somebody else trimmed or deleted them before they were read, or acknowledged them, or deleted their consumer. What
    is remembered lies in the state hash, the total so far as `lost`: another keeper goes on from there, and none is
    told twice. The first call finds nothing. What was trimmed while it was pending is not among them: it is answered,
    by a dead letter.

    From Redis 7.0 on the number is exact, if late: it is not known while the group is amid the stream, with entries
    before and behind it, and told by a later call then. Before 7.0 it is a lower bound: an entry counts if an earlier
    call saw it unread, and as many were not added since.

    Raises:
        FencedError: another keeper took over.
        redis.ResponseError: there is no stream.
    """
    return int(streams.fenced(epoch, "lost", ANSWERING))


def used_up(streams: LineStreams) -> str:
    """What is to be said where the last id that there is was read: whoever adds the next entry is refused. "" else.

    Raises:
        redis.ResponseError: there is no stream.
    """
    if LAST.encode() not in (info["last-delivered-id"] for info in streams.client.xinfo_groups(streams.images)):
        return ""
    return (
        f"a producer added entry {LAST} to {streams.images}, the last id there is, so that Redis takes no more: have "
        f"producers add with the id *, and once nothing waits, DEL {streams.images}; if the line stops then, "
        f"mhpc-worker control {streams.line} resync"
    )


def delete_idle_consumers(streams: LineStreams, epoch: int, idle_ms: int = CONSUMER_IDLE_MS) -> list[str]:
    """Delete the answering group's consumers that have nothing pending and were idle for longer; returns their names.

    Redis drops what a deleted consumer has pending: who has anything stays, until another has claimed it. One that is
    alive after all is made again by its next read.

    Raises:
        FencedError: another keeper took over.
        redis.ResponseError: there is no such group.
    """
    return [name.decode(errors="replace") for name in streams.fenced(epoch, "consumers", ANSWERING, idle_ms)]
