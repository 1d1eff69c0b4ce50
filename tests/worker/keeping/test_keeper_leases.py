"""Who keeps a line: one at a time, and the next goes on from what was committed."""

import time
from typing import Any

import pytest

from tests.worker.helpers import eventually
from tests.worker.keepers import (
    ENTRIES,
    HOLDER,
    MakeKeeper,
    add,
    assert_same,
    extract,
    learn_all,
    opened,
    pending,
)
from worker.errors import FencedError
from worker.line import SCORING, Line
from worker.snapshots import stem_of
from worker.streams.line_streams import LineStreams


def test_who_was_overtaken_commits_and_acknowledges_nothing(
    make_keeper: MakeKeeper, streams: LineStreams, unbroken: Line
) -> None:
    add(streams, *ENTRIES)
    first = opened(make_keeper())
    first.learn(extract, 2)
    first.snapshot()
    first.learn(extract, 2)
    before = streams.state()
    second = opened(make_keeper(), holder="station-1#b")
    assert second.epoch == first.epoch + 1
    for step in (first.snapshot, lambda: first.learn(extract, 1), first.trim):
        with pytest.raises(FencedError):
            step()
    assert streams.state() == {**before, "epoch": str(second.epoch), "holder": "station-1#b"}
    assert pending(streams) == ["3-0", "4-0"]
    assert_same(learn_all(second).line, unbroken)


def test_a_version_that_was_written_and_never_committed_is_not_loaded(
    make_keeper: MakeKeeper, streams: LineStreams, unbroken: Line
) -> None:
    add(streams, *ENTRIES)
    first = opened(make_keeper())
    first.learn(extract, 2)
    first.snapshot()
    first.learn(extract, 2)
    streams.acquire("station-1#b", 0, take_over="station-1")
    with pytest.raises(FencedError):
        first.snapshot()
    assert first.store.stems() == [stem_of(1, 1), stem_of(1, 2)]
    third = opened(make_keeper(), holder="station-1#c")
    assert (third.epoch, third.line.applied_through) == (3, "2-0")
    assert_same(learn_all(third).line, unbroken)


def test_while_another_holds_the_lease_it_is_said_and_nothing_is_kept(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES)
    opened(make_keeper())
    other = make_keeper()
    other.acquire("station-2#a", take_over="station-2")
    assert (other.epoch, other.problem) == (0, "")


def test_who_does_not_keep_a_line_answers_by_its_newest_version_all_the_same(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES)
    other = make_keeper()
    keeper = opened(make_keeper())
    while keeper.line.phase != SCORING:
        keeper.learn(extract, 1)
        if keeper.snapshot_due:
            keeper.snapshot()
            other.acquire("station-2#a")
            assert other.epoch == 0
            assert other.line.serving[:4] == keeper.line.serving[:4]
    assert_same(other.line, keeper.line)


def test_what_was_committed_while_the_lease_changed_hands_is_not_missed(
    make_keeper: MakeKeeper, streams: LineStreams, unbroken: Line
) -> None:
    add(streams, *ENTRIES)
    first, second = opened(make_keeper()), make_keeper()
    take = second.streams.acquire

    def late(*args: Any) -> tuple[int, str, float]:
        """The first commits once more after the second has looked, before it has the lease."""
        if first.epoch:
            first.learn(extract, 3)
            first.close()
            first.lose("closed")
            eventually(lambda: not streams.client.exists(streams.lease))
        return take(*args)

    second.streams.acquire = late  # type: ignore[method-assign, assignment]  # the moment that matters cannot be waited for
    second.acquire("station-2#a")
    assert (second.epoch, second.line.applied_through) == (2, "3-0")
    assert_same(learn_all(second).line, unbroken)


def test_who_lost_the_lease_goes_back_to_what_was_committed(
    make_keeper: MakeKeeper, streams: LineStreams, unbroken: Line
) -> None:
    add(streams, *ENTRIES)
    first = opened(make_keeper())
    first.learn(extract, 2)
    first.snapshot()
    first.learn(extract, 1)
    streams.acquire("station-2#a", 0, take_over="station-1")
    with pytest.raises(FencedError) as caught:
        first.snapshot()
    first.lose(str(caught.value))
    assert first.problem == str(caught.value)
    first.acquire(HOLDER)
    assert (first.epoch, first.line.applied_through) == (0, "2-0")
    streams.release(2)
    while not first.epoch:
        first.acquire(HOLDER)
    assert first.epoch == 3
    assert_same(learn_all(first).line, unbroken)


def test_a_lease_is_renewed_before_it_ends(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = opened(make_keeper())
    streams.client.pexpire(streams.lease, 20_000)
    keeper.lease.renew(keeper.epoch)
    assert streams.client.pttl(streams.lease) <= 20_000
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now + 11)
    keeper.lease.renew(keeper.epoch)
    assert streams.client.pttl(streams.lease) > 20_000


def test_closing_makes_durable_what_was_learned_and_lets_the_line_go(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES[:3])
    keeper = opened(make_keeper(every_images=1000))
    keeper.learn(extract, 10)
    keeper.close()
    assert pending(streams) == []
    assert streams.state()["applied_through"] == "3-0"
    other = make_keeper()
    while not other.epoch:
        other.acquire("station-2#a")
    assert other.line.learner.images_seen_ == 12
