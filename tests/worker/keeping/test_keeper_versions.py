"""Versions and servers that are not what they were."""

import pytest

from tests.worker.keepers import (
    ENTRIES,
    HOLDER,
    MakeKeeper,
    add,
    assert_same,
    extract,
    file_of,
    flip_a_bit,
    learn_all,
    opened,
)
from worker.errors import AbsentError, FencedError, ModelError
from worker.line import CALIBRATING, SCORING, Line
from worker.snapshots import Snapshot, stem_of
from worker.streams.line_streams import LineStreams


def test_a_damaged_version_is_set_aside_and_the_one_before_serves(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES[:8])
    keeper = learn_all(opened(make_keeper()))
    newest = streams.state()["model"]
    assert (newest, keeper.line.applied_through) == (stem_of(1, 4), "8-0")
    flip_a_bit(file_of(keeper, newest))
    again = opened(make_keeper(), holder="station-1#b")
    assert (again.line.applied_through, again.line.serving.model) == ("6-0", stem_of(2, 1))
    missing = again.metrics.registry.get_sample_value("mhpc_images_total", {"line": streams.line, "outcome": "skipped"})
    assert missing == sum(keeper.line.counts) - sum(again.line.counts) == 8
    assert streams.state()["model"] == stem_of(2, 1)  # old content, a new version: versions only grow
    assert file_of(again, newest, ".bad").exists()
    add(streams, "9-0", "10-0")
    learn_all(again)
    assert streams.state()["model"] == stem_of(2, 2)


def test_when_no_whole_version_is_left_nobody_learns_over_the_committed_one(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES[:8])
    keeper = learn_all(opened(make_keeper()))
    for stem in keeper.store.stems():
        flip_a_bit(file_of(keeper, stem))
    before = streams.state()
    with pytest.raises(ModelError, match=r"holds no whole snapshot.*DEL"):
        opened(make_keeper(), holder="station-1#b")
    assert streams.state() == before


def test_versions_on_disk_are_pruned_and_the_committed_one_stays(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    add(streams, *ENTRIES)
    keeper = learn_all(opened(make_keeper(every_images=1, keep=2)))
    assert keeper.store.stems() == [stem_of(1, 10), stem_of(1, 11)]
    assert streams.state()["model"] == stem_of(1, 11)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_wiped_server_starts_above_the_epoch_on_disk(
    make_keeper: MakeKeeper, streams: LineStreams, damaged: bool
) -> None:
    add(streams, *ENTRIES[:8])
    for holder in ("station-1#a", "station-1#b", "station-1#c"):
        keeper = opened(make_keeper(), holder=holder)
    learn_all(keeper)
    assert keeper.epoch == 3
    if damaged:
        flip_a_bit(file_of(keeper, keeper.store.stems()[-1]))
    streams.client.delete(streams.images, streams.state_key, streams.lease)
    streams.ensure_groups()
    again = opened(make_keeper(), holder="station-1#d")
    assert (again.epoch, again.line.phase) == (4, CALIBRATING)
    assert again.line.applied_through == ("6-0" if damaged else "8-0")
    add(streams, *ENTRIES[8:])
    assert learn_all(again).line.phase == SCORING


def test_a_process_that_lives_through_a_wipe_keeps_on_above_its_own_epoch(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES[:4])
    keeper = learn_all(opened(make_keeper()))
    streams.client.delete(streams.images, streams.state_key, streams.lease)
    streams.ensure_groups()
    with pytest.raises(FencedError):
        keeper.learn(extract, 1)
    keeper.lose("wiped")
    opened(keeper)
    assert (keeper.epoch, keeper.line.applied_through) == (2, "4-0")


def test_a_stream_that_went_back_stops_the_line(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    add(streams, *ENTRIES[:4])
    learn_all(opened(make_keeper()))
    streams.client.delete(streams.images)
    streams.ensure_groups()
    add(streams, "3-0")
    again = make_keeper()
    again.acquire("station-1#b", take_over="station-1")
    assert (again.stopped, again.epoch) == (True, 0)
    for part in ("ends at 3-0", "before 4-0", "restore Redis"):
        assert part in again.problem
    again.acquire("station-1#b", take_over="station-1")
    assert again.epoch == 0
    assert streams.state()["applied_through"] == "4-0"


def test_who_cannot_use_the_lines_version_does_not_take_its_lease(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES[:4])
    keeper = learn_all(opened(make_keeper()))
    keeper.close()
    before = streams.state()
    with pytest.raises(ModelError, match="another backbone, weights, layers or input_shape") as caught:
        make_keeper(fingerprint="g").acquire("station-1#b", take_over="station-1")
    assert streams.line in str(caught.value)
    assert streams.state() == before
    while streams.client.exists(streams.lease):
        assert streams.client.get(streams.lease) == HOLDER.encode()
    assert keeper.store.stems() == [stem_of(1, 1), stem_of(1, 2)]


def test_a_version_that_is_pruned_while_another_loads_it_is_passed_over_for_the_next(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(streams, *ENTRIES[:4])
    keeper, standby = opened(make_keeper(keep=2)), make_keeper()
    learn_all(keeper)
    load = standby.store.load

    def slow(stem: str) -> Snapshot:
        for _ in range(3):  # meanwhile the keeper goes on
            keeper.snapshot()
        return load(stem)

    with monkeypatch.context() as patched:
        patched.setattr(standby.store, "load", slow)
        with pytest.raises(AbsentError, match="not any more"):
            standby.follow()
    standby.follow()
    assert standby.model == keeper.model


def test_where_redis_has_gone_back_behind_all_that_is_on_disk_the_newest_serves(
    make_keeper: MakeKeeper, streams: LineStreams, unbroken: Line
) -> None:
    add(streams, *ENTRIES[:4])
    keeper = learn_all(opened(make_keeper(keep=2)))
    for _ in range(2):
        keeper.snapshot()
    streams.commit(keeper.epoch, {"model": stem_of(0, 1)})  # as a replica that was promoted knows it
    again = opened(make_keeper())
    assert_same(again.line, keeper.line)
    add(streams, *ENTRIES[4:])
    assert_same(learn_all(again).line, unbroken)
