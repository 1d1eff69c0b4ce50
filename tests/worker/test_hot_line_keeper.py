"""How much the keeper of a hot line reads at once."""

from pathlib import Path
from typing import Any

import pytest
import redis
from torch import distributed as dist

from mhpc.core.learner import STEP
from tests.mhpc.core.ranks import in_ranks
from tests.worker.helpers import encoded, item, message, picture
from tests.worker.test_hot_line import config, made_share, settings
from worker.crew import Crew, follow
from worker.features import FeatureCache
from worker.hot_line import HotKeeper, HotLine
from worker.metrics import Metrics
from worker.opening import Opening
from worker.settings import MIB
from worker.snapshots import SnapshotStore
from worker.streams.line_streams import LineStreams

RANKS, ENTRIES = 2, 90


def batches(size: int) -> list[bytes]:
    """Entries of which one in ten can be used, with a picture of about so many bytes; the others are as large."""
    data = encoded(picture(0)) + bytes(size)  # decoders read no further than the picture's end
    return [message(item(str(n), data=data)) if n % 10 == 0 else bytes(size) for n in range(ENTRIES)]


def counts(url: str, size: int, folder: Path) -> list[int]:
    """How many entries are read at a time."""
    share = made_share()
    if dist.get_rank():
        follow(share)
        return []
    crew, given = Crew(share, 60), settings()
    streams = LineStreams(redis.Redis.from_url(url, protocol=2), f"hot-{size}")
    streams.ensure_groups()
    for batch in batches(size):
        streams.client.xadd(streams.images, {"batch": batch})
    found: list[int] = []
    keeper: Any = HotKeeper(
        lambda: HotLine(config(), 0.9, share.engine.device, crew),
        streams,
        SnapshotStore(folder, "hot"),
        given.snapshots,
        "f",
        Metrics(),
    )
    limited = given.model_copy(update={"streams": given.streams.model_copy(update={"prefetch_bytes": 4 * MIB})})
    keeper.opening = Opening(limited, share.engine, FeatureCache(0), Metrics(), {})
    keeper.acquire("station-1#a")
    while read := keeper.learn(None, 1):
        found.append(read)
    crew.end()
    return found


@pytest.mark.parametrize(("size", "most"), [(10, RANKS * STEP), (MIB, 4)])
def test_after_a_run_of_unusable_entries_no_more_is_read_at_once_than_may_be_held(
    redis_url: str, tmp_path: Path, size: int, most: int
) -> None:
    found = in_ranks(tmp_path, counts, redis_url, size, tmp_path, ranks=RANKS)[0]
    assert sum(found) == ENTRIES
    assert max(found) <= most
