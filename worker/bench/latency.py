"""From an entry's XADD to its result's XADD, both by Redis' clock: the ids say when."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worker.message import decode_result
from worker.streams.ids import entry_key, line_key

READ = 500  # results at a time


@dataclass(frozen=True)
class Latency:
    """Percentiles of `images` latencies, in milliseconds."""

    images: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, milliseconds: Sequence[int]) -> "Latency":
        p50, p95, p99 = (float(value) for value in np.percentile(milliseconds, [50, 95, 99]))
        return cls(len(milliseconds), round(p50, 2), round(p95, 2), round(p99, 2), float(max(milliseconds)))


def redis_ms(client: Any) -> int:
    """Redis' clock, in the milliseconds of entry ids."""
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def latencies(client: Any, line: str, since: int, until: int) -> list[int]:
    """Milliseconds, one for each result so far of the entries added from `since` to before `until`, by Redis' clock."""
    found, key, after = list[int](), line_key(line, "scores"), str(since)
    while page := client.xrange(key, min=after, count=READ):
        for identity, fields in page:
            added = entry_key(decode_result(fields[b"result"])["entry"])[0]
            if since <= added < until:
                found.append(entry_key(identity.decode())[0] - added)
        after = f"({page[-1][0].decode()}"
    return found
