"""How much the keeper of a hot line reads at once, and what it does where its ranks refuse."""

from pathlib import Path
from typing import Any

import pytest
import redis
from torch import distributed as dist

from mhpc.core.learner import STEP
from tests.mhpc.core.ranks import in_ranks
from tests.worker.helpers import encoded, item, message, picture
from tests.worker.ranks.test_hot_line import config, made_share, settings
from worker.answering.features import FeatureCache
from worker.answering.opening import Opening
from worker.metrics import Metrics
from worker.ranks.crew import Crew, follow
from worker.ranks.hot_line import HotKeeper, HotLine
from worker.ranks.share import Share
from worker.settings import MIB
from worker.snapshots import SnapshotStore
from worker.streams.line_streams import LineStreams

RANKS, ENTRIES = 2, 90


def batches(size: int) -> list[bytes]:
    """Entries of which one in ten can be used, with a picture of about so many bytes; the others are as large."""
    data = encoded(picture(0)) + bytes(size)  # decoders read no further than the picture's end
    return [message(item(str(n), data=data)) if n % 10 == 0 else bytes(size) for n in range(ENTRIES)]


def opened_keeper(share: Share, url: str, name: str, entries: list[bytes], folder: Path) -> Any:
    """On rank 0, the keeper of a line with these entries."""
    crew, given = Crew(share, 60), settings()
    streams = LineStreams(redis.Redis.from_url(url, protocol=2), name)
    streams.ensure_groups()
    for batch in entries:
        streams.client.xadd(streams.images, {"batch": batch})
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
    return keeper


def counts(url: str, size: int, folder: Path) -> list[int]:
    """How many entries are read at a time."""
    share = made_share()
    if dist.get_rank():
        follow(share)
        return []
    keeper, found = opened_keeper(share, url, f"hot-{size}", batches(size), folder), list[int]()
    while read := keeper.learn(None, 1):
        found.append(read)
    keeper.line.crew.end()
    return found


@pytest.mark.parametrize(("size", "most"), [(10, RANKS * STEP), (MIB, 4)])
def test_after_a_run_of_unusable_entries_no_more_is_read_at_once_than_may_be_held(
    redis_url: str, tmp_path: Path, size: int, most: int
) -> None:
    found = in_ranks(tmp_path, counts, redis_url, size, tmp_path, ranks=RANKS)[0]
    assert sum(found) == ENTRIES
    assert max(found) <= most


def refused(url: str, folder: Path) -> list[tuple[int, str, str]]:
    """Epoch, version and problem, where the ranks refuse to merge what they have learned, and where they do no more."""
    share, refusals = made_share(), 2

    def merge(ticket: int) -> dict[str, Any]:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise ValueError("40 anchors would be pinned")
        return Share._merge(share, ticket)

    setattr(share, "_merge", merge)  # noqa: B010 - mypy knows it as a method
    if dist.get_rank():
        follow(share)
        return []
    entries = [message(item(str(n))) for n in range(RANKS * STEP)]
    keeper, found = opened_keeper(share, url, "hot-refused", entries, folder), []
    while keeper.learn(None, 1):
        pass
    for _ in range(3):
        keeper.snapshot()
        found.append((keeper.epoch, keeper.model, keeper.streams.state()["problem"]))
    keeper.line.crew.end()
    return found


def test_what_the_ranks_refuse_to_merge_is_told_as_the_lines_problem_and_tried_again(
    redis_url: str, tmp_path: Path
) -> None:
    *told, merged = in_ranks(tmp_path, refused, redis_url, tmp_path, ranks=RANKS)[0]
    for epoch, model, problem in told:
        assert (epoch, model) == (1, "")
        assert problem.startswith("no snapshot, and nothing is acknowledged: what the ranks have learned is not merged")
        assert "rank 1: ValueError: 40 anchors would be pinned" in problem
    assert merged[0] == 1
    assert merged[1]
