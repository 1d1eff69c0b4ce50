from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.commanding import replies
from tests.worker.faulty import Faults
from tests.worker.keepers import ENTRIES, MakeKeeper, add, assert_same, extract, learn_all, opened
from worker.errors import ModelError, RefusedError
from worker.keeping.keeper import Keeper
from worker.keeping.resync import Resync, lost_meanwhile
from worker.keeping.versions import learned_in, load_for_rollback, load_line
from worker.line import CALIBRATION_SCORES, SCORING, TRACKED_SCORES, Line
from worker.snapshots import SnapshotStore, stem_of
from worker.storage.object_store import ObjectStore
from worker.streams.control import send
from worker.streams.ids import FROM_START
from worker.streams.line_streams import LineStreams

UNUSED, OTHER = stem_of(1, 1), "station-1#b"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_newest_version_of_the_first_line_that_has_one_tells_what_was_learned_in(
    tmp_path: Path, precision: str
) -> None:
    stores = [SnapshotStore(tmp_path, name) for name in ("new", "of-before-it-was-told", "old", "other")]
    stores[1].write(stem_of(1, 1), {}, {})
    stores[2].write(stem_of(1, 1), {}, {"precision": "neither"})
    stores[2].write(stem_of(2, 1), {}, {"precision": precision})
    stores[3].write(stem_of(1, 1), {}, {"precision": "neither"})
    assert learned_in(stores, 1) is getattr(torch, precision)
    assert learned_in(stores[:2], 1) is None


def test_a_line_whose_store_cannot_be_asked_leaves_it_to_the_next_to_tell(tmp_path: Path, faults: Faults) -> None:
    away, old = ObjectStore("faulty://lines", "new", tmp_path / "cache"), SnapshotStore(tmp_path, "old")
    old.write(stem_of(1, 1), {}, {"precision": "bfloat16"})
    faults.away = True
    assert learned_in([away, old], 30) is torch.bfloat16
    assert learned_in([away], 30) is None
    faults.open.clear()  # it hangs
    assert learned_in([away, old], 0.2) is torch.bfloat16
    assert learned_in([away] * 20, 0.2) is None
    faults.open.set()


@pytest.fixture
def first(make_keeper: MakeKeeper, streams: LineStreams) -> Keeper:
    """Has learned four entries; a version of that is on disk, and Redis was never told, or has lost it."""
    add(streams, *ENTRIES[:4])
    first = opened(make_keeper())
    first.learn(extract, 4)
    written(first)
    assert streams.state()["model"] == ""
    return first


@pytest.fixture
def stopped(first: Keeper, make_keeper: MakeKeeper, streams: LineStreams) -> Keeper:
    """Another, that finds one entry less in the stream than the version on disk has learned."""
    streams.client.delete(streams.images)
    streams.ensure_groups()
    add(streams, *ENTRIES[:3])
    stopped = make_keeper()
    stopped.acquire(OTHER, take_over="station-1")
    return stopped


def written(keeper: Keeper) -> None:
    """What it has learned, durable."""
    tensors, metadata = keeper.line.state()
    assert isinstance(keeper.store, SnapshotStore)
    keeper.store.write(UNUSED, tensors, {**metadata, **keeper.origin})


def pinned(keeper: Keeper) -> list[str]:
    return [each.stem for each in keeper.store.kept() if each.pinned]


def test_where_redis_says_that_nothing_is_committed_a_line_begins_anew_and_the_version_on_disk_is_pinned(
    first: Keeper, make_keeper: MakeKeeper, streams: LineStreams, unbroken: Line
) -> None:
    standby = make_keeper()
    assert standby.follow()
    assert (standby.model, standby.line.learner.images_seen_) == ("", 0)
    second = opened(make_keeper(), OTHER)
    assert (second.line.applied_through, second.line.learner.images_seen_) == (FROM_START, 0)
    assert f"rollback {UNUSED}" in streams.state()["problem"]
    assert pinned(second) == []  # nothing threatens it yet
    add(streams, *ENTRIES[4:])
    assert_same(learn_all(second).line, unbroken)
    assert (pinned(second), streams.state()["problem"]) == ([UNUSED], "")


def test_no_version_is_written_beside_one_that_cannot_be_pinned(
    first: Keeper, make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = opened(make_keeper(), OTHER)
    second.learn(extract, 4)
    with monkeypatch.context() as full:
        full.setattr(Path, "touch", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        second.snapshot()
    assert (second.store.stems(), pinned(second), streams.state()["model"]) == ([UNUSED], [], "")
    assert "No space left" in streams.state()["problem"]
    second.snapshot()
    assert (pinned(second), streams.state()["model"]) == ([UNUSED], second.model)


def test_who_looked_before_it_was_written_looks_again_after_a_failover(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES[:4])
    first, standby = opened(make_keeper()), make_keeper()
    assert standby.follow()
    first.learn(extract, 4)
    written(first)
    assert lost_meanwhile(standby) == ""
    assert opened(standby, OTHER).unused == UNUSED


def test_a_stream_that_ends_before_what_was_learned_stops_the_line_until_it_goes_on(
    stopped: Keeper, streams: LineStreams
) -> None:
    assert (stopped.stopped, stopped.epoch, stopped.model) == (True, 0, UNUSED)
    assert "ends at 3-0, before 4-0" in stopped.problem
    add(streams, *ENTRIES[4:6])
    Resync()(stopped, OTHER)
    opened(stopped, OTHER)
    assert (stopped.unused, learn_all(stopped).line.applied_through) == (UNUSED, "6-0")
    assert stopped.line.learner.images_seen_ == 5 * 4


def test_a_resync_that_comes_with_newer_entries_passes_nothing_over(
    stopped: Keeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams.client.delete(streams.lease)
    send(streams, "resync", {}, "somebody")
    acquire = stopped.acquire

    def late(*args: Any, **named: Any) -> None:
        add(streams, *ENTRIES[4:6])
        acquire(*args, **named)

    monkeypatch.setattr(stopped, "acquire", late)
    Resync()(stopped, OTHER)
    assert (stopped.unused, stopped.line.applied_through) == (UNUSED, FROM_START)
    assert learn_all(stopped).line.learner.images_seen_ == 5 * 4


def test_a_redis_that_lost_the_line_after_somebody_looked_has_the_newest_version_serve(
    first: Keeper, make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    standby = make_keeper()
    assert standby.follow()
    streams.client.delete(streams.images, streams.state_key, streams.lease)
    streams.ensure_groups()
    assert (opened(standby, OTHER).line.applied_through, standby.unused) == ("4-0", "")


def test_a_resync_is_found_behind_however_many_commands(stopped: Keeper, streams: LineStreams) -> None:
    streams.client.delete(streams.lease)
    for _ in range(40):
        send(streams, "pause", {}, "ann")
    send(streams, "resync", {}, "ann")
    send(streams, "pause", {}, "ann")
    Resync()(stopped, OTHER)
    assert stopped.epoch
    assert [ok for ok, _ in replies(streams)] == [False] * 40 + [True]


def test_the_committed_version_is_loaded_though_a_listing_of_its_folder_is_old(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(streams, *ENTRIES[:4])
    learn_all(opened(make_keeper()))
    monkeypatch.setattr(SnapshotStore, "stems", lambda _: [stem_of(1, 1)])  # as a network's file system may have it
    follower = make_keeper()
    assert follower.follow()
    assert (follower.model, follower.line.applied_through) == (stem_of(1, 2), "4-0")


def unfit(scored: Keeper, tensors: dict[str, torch.Tensor], **changes: Any) -> tuple[str, str]:
    """What is said of a version that is whole, when it is loaded and when it is rolled back to; "" for nothing."""
    _, metadata = scored.line.state()
    assert isinstance(scored.store, SnapshotStore)
    scored.store.write(UNUSED, tensors, {**metadata, **scored.origin, **changes})
    told = ["", ""]
    try:
        load_line(scored.make_line(), scored.store.load(UNUSED), scored.store.place, "f", UNUSED, "")
    except ModelError as error:
        told[0] = str(error)
    try:
        load_for_rollback(scored.store, "f", "", UNUSED)
    except RefusedError as error:
        told[1] = str(error)
    assert all(f"{UNUSED} is whole, but" in each for each in told if each)
    return told[0], told[1]


@pytest.fixture
def scored(make_keeper: MakeKeeper, streams: LineStreams) -> Keeper:
    add(streams, *ENTRIES)
    scored = learn_all(opened(make_keeper()))
    assert scored.line.phase == SCORING
    return scored


def test_a_version_whose_tensors_are_no_lines_is_refused_by_its_name(scored: Keeper) -> None:
    tensors, _ = scored.line.state()
    assert unfit(scored, tensors) == ("", "")
    for left_out in ("anchors", CALIBRATION_SCORES):
        assert left_out in unfit(scored, {name: each for name, each in tensors.items() if name != left_out})[0]
    assert unfit(scored, {name: each[:0] if each.ndim else each for name, each in tensors.items()})[0]
    assert unfit(scored, {name: each[None] for name, each in tensors.items()})[0]
    for name, other in ((TRACKED_SCORES, torch.full((3,), torch.nan)), ("recent_outside", torch.tensor(0.1))):
        assert unfit(scored, {**tensors, name: other})[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("applied_through", 5),
        ("applied_through", "nonsense"),
        ("commands_through", None),
        ("phase", ["scoring"]),
        ("phase", "dancing"),
        ("rate", "0.01"),
        ("rate", 2.0),
        ("rate", float("nan")),
        ("false_positive_rate", 0.0),
        ("threshold", {"value": "high"}),
        ("answering", [1]),
        ("sources", 7),
        ("fingerprint", None),
        ("top_k", "3"),
    ],
)
def test_a_version_whose_metadata_are_no_lines_is_refused_by_what_is_wrong(
    scored: Keeper, name: str, value: Any
) -> None:
    loaded, rolled_back = unfit(scored, scored.line.state()[0], **{name: value})
    assert name in loaded
    assert name in rolled_back


def test_a_device_that_fails_while_a_version_is_loaded_is_no_fault_of_the_version(
    scored: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(Line, "restore", fails)
    with pytest.raises(torch.OutOfMemoryError):
        unfit(scored, scored.line.state()[0])
