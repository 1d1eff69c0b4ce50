"""Reading the answering group of many lines at once, each line's error its own."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import redis

from worker.streams.cluster import Call, Cluster, together
from worker.streams.line_streams import ANSWERING, Backlog, Entry, LineStreams, backlog_of, entries_of

POLL_SECONDS = (0.002, 0.02)  # between looks where they are repeated: first and longest
SHORT_MS = 200  # a server ends waits that are over ten times a second only: what is shorter is polled for

Read = list[Entry] | redis.ResponseError


def read_new(client: Any, wanted: Mapping[LineStreams, int], consumer: str) -> dict[str, Read]:
    """New entries of each line, up to `wanted` of it, without waiting; by line, an error in place of its entries.

    A line whose group is gone, or whose key is of another type, is no reason to withhold what the others have.

    Raises:
        redis.ConnectionError, redis.TimeoutError: what was delivered meanwhile is pending.
    """
    if isinstance(client, Cluster):
        return _each(client, wanted, consumer)
    found: dict[str, Read] = {}
    for count in sorted(set(wanted.values())):
        lines = [streams for streams in wanted if wanted[streams] == count]
        found |= _at_once(client, lines, consumer, count) or _each(client, dict.fromkeys(lines, count), consumer)
    return found


def _at_once(
    client: Any, lines: Sequence[LineStreams], consumer: str, count: int, block_ms: int | None = None
) -> dict[str, Read] | None:
    """By one call; None where Redis refuses it: it has delivered nothing then, and does not say of whom."""
    by_key = {streams.images.encode(): streams.line for streams in lines}
    try:
        reply = client.xreadgroup(ANSWERING, consumer, dict.fromkeys(by_key, ">"), count=count, block=block_ms)
    except redis.ResponseError:
        return None
    found = {by_key[key]: entries_of([[key, entries]]) for key, entries in reply or ()}
    return {line: found.get(line, []) for line in by_key.values()}


def _each(client: Any, wanted: Mapping[LineStreams, int], consumer: str) -> dict[str, Read]:
    def read(streams: LineStreams, count: int) -> tuple[str, Call]:
        return streams.images, lambda to: to.xreadgroup(ANSWERING, consumer, {streams.images: ">"}, count=count)

    replies = together(client, [read(streams, count) for streams, count in wanted.items()])
    return {
        streams.line: reply if isinstance(reply, redis.ResponseError) else entries_of(reply)
        for streams, reply in zip(wanted, replies, strict=True)
    }


def wait_and_read(
    client: Any, lines: Iterable[LineStreams], consumer: str, count: int, block_ms: int
) -> dict[str, Read]:
    """As `read_new`, up to `count` of each line; waits up to block_ms milliseconds for the first entry or error.

    A Cluster is asked again and again, since one call cannot wait for keys of several slots; so is any server where the
    wait is short, or where that one call is refused, as by a Cluster's node or proxy that is taken for a single server.
    """
    wanted = dict.fromkeys(lines, count)
    if not isinstance(client, Cluster) and block_ms >= SHORT_MS:
        found = _at_once(client, list(wanted), consumer, count, block_ms)
        if found is not None:
            return found
    return _poll(client, wanted, consumer, block_ms / 1000)


def _poll(client: Any, wanted: Mapping[LineStreams, int], consumer: str, seconds: float) -> dict[str, Read]:
    deadline, pause = time.monotonic() + seconds, POLL_SECONDS[0]
    while True:
        found = read_new(client, wanted, consumer)
        left = deadline - time.monotonic()
        if left <= 0 or any(found.values()) or not wanted:
            return found
        time.sleep(min(pause, left))
        pause = min(2 * pause, POLL_SECONDS[1])


def backlogs(client: Any, lines: Iterable[LineStreams]) -> dict[str, Backlog]:
    """What waits to be answered, by line; a line whose stream is refused is left out: its next read says why."""
    asked = list(lines)
    calls: list[tuple[str, Call]] = []
    for streams in asked:
        key = streams.images
        calls += [
            (key, lambda to, key=key: to.xinfo_groups(key)),  # type: ignore[misc]  # mypy sees no default's type
            (key, lambda to, key=key: to.xpending(key, ANSWERING)),  # type: ignore[misc]  # the same
        ]
    replies = together(client, calls)
    found = zip(asked, replies[::2], replies[1::2], strict=True)
    return {
        streams.line: backlog_of(ANSWERING, infos, pending)
        for streams, infos, pending in found
        if not isinstance(infos, redis.ResponseError)
    }
