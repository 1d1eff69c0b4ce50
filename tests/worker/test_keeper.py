import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import torch
from torch import Tensor

from tests.worker.helpers import eventually, patches
from worker.errors import FencedError, ModelError
from worker.keeper import Keeper
from worker.line import CALIBRATING, LEARNING, SCORING, Line
from worker.metrics import Metrics
from worker.settings import CalibrationSettings, LearningSettings, LineConfig, ScoringSettings, SnapshotSettings
from worker.snapshots import SnapshotStore, stem_of
from worker.streams.line_streams import ANSWERING, FROM_START, Entry, LineStreams, entry_key, read_answering
from worker.streams.line_streams import LEARNING as LEARNING_GROUP

HOLDER = "station-1#a"
ENTRIES = [f"{number}-0" for number in range(1, 14)]  # of 4 images: 6 are learned, 5 calibrate, 2 are too many

Make = Callable[..., Keeper]


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACQUIRE_SECONDS", "TRIM_SECONDS", "RETRY_SECONDS"):
        monkeypatch.setattr(f"worker.keeper.{name}", 0.0)


@pytest.fixture
def streams(client: redis.Redis, line: str) -> LineStreams:
    streams = LineStreams(client, line)
    streams.ensure_groups()
    return streams


@pytest.fixture
def make(streams: LineStreams, tmp_path: Path) -> Make:
    """A process that may keep the line; each call is another one."""

    def make(fingerprint: str = "f", **settings: Any) -> Keeper:
        config = LineConfig(
            name=streams.line,
            bank_size=60,
            learning=LearningSettings(images=24),
            calibration=CalibrationSettings(images=20, false_positive_rate=0.05),
            scoring=ScoringSettings(top_k=3),
        )
        return Keeper(
            lambda: Line(config, 0.99, torch.device("cpu")),
            LineStreams(streams.client, streams.line),
            SnapshotStore(tmp_path, streams.line),
            SnapshotSettings(**{"directory": tmp_path, "every_images": 8, "every_seconds": 1000, **settings}),
            fingerprint,
            Metrics(),
        )

    return make


def add(streams: LineStreams, *entries: str) -> None:
    for entry in entries:
        streams.client.xadd(streams.images, {"batch": entry}, id=entry)


def extract(_line: str, entry: Entry) -> Iterator[Tensor]:
    """Features of four parts that follow from what the entry holds."""
    if entry.batch is not None:
        yield patches(entry_key(entry.batch.decode())[0], 4)


def opened(keeper: Keeper, holder: str = HOLDER) -> Keeper:
    keeper.acquire(holder, take_over=holder.partition("#")[0])
    assert keeper.epoch
    return keeper


def learn_all(keeper: Keeper, count: int = 1) -> Keeper:
    """Learn what there is, a few entries a turn, with a snapshot wherever one is due."""
    while keeper.learn(extract, count):
        if keeper.snapshot_due:
            keeper.snapshot()
    return keeper


def pending(streams: LineStreams, group: str = LEARNING_GROUP) -> list[str]:
    return [item["message_id"].decode() for item in streams.client.xpending_range(streams.images, group, "-", "+", 100)]


def assert_same(a: Line, b: Line) -> None:
    (tensors, metadata), (others, other_metadata) = a.state(), b.state()
    assert {**metadata, "line": ""} == {**other_metadata, "line": ""}
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


@pytest.fixture
def unbroken(make: Make) -> Line:
    """The line as it is after all ENTRIES, learned without interruption and without Redis."""
    line = make().line
    for entry in ENTRIES:
        if line.learns:
            line.apply(entry, extract("", Entry(entry, entry.encode())))
    return line


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


# -- learning, committing, acknowledging -------------------------------------------------------------------------------


def test_nothing_is_acknowledged_before_it_is_durable_and_committed(make: Make, streams: LineStreams) -> None:
    add(streams, *ENTRIES[:2])
    keeper = opened(make(every_images=1000))
    assert keeper.learn(extract, 10) == 2
    assert pending(streams) == ["1-0", "2-0"]
    assert keeper.store.stems() == []
    assert streams.state()["model"] == ""
    assert streams.state()["applied_through"] == FROM_START
    keeper.snapshot()
    assert pending(streams) == []
    assert keeper.store.stems() == [stem_of(1, 1)]
    assert keeper.store.load(stem_of(1, 1)).metadata["applied_through"] == "2-0"
    assert streams.state()["applied_through"] == "2-0"


def test_a_commit_sets_phase_model_threshold_and_applied_through_together(make: Make, streams: LineStreams) -> None:
    add(streams, *ENTRIES)
    keeper = opened(make())
    seen = []
    while keeper.learn(extract, 1):
        if keeper.snapshot_due:
            keeper.snapshot()
            state = streams.state()
            seen.append((state["phase"], state["model"], state["applied_through"], bool(state["threshold"])))
    assert seen == [
        (LEARNING, stem_of(1, 1), "2-0", False),
        (LEARNING, stem_of(1, 2), "4-0", False),
        (CALIBRATING, stem_of(1, 3), "6-0", False),
        (CALIBRATING, stem_of(1, 4), "8-0", False),
        (CALIBRATING, stem_of(1, 5), "10-0", False),
        (SCORING, stem_of(1, 6), "11-0", True),
    ]
    assert keeper.line.threshold is not None
    assert float(streams.state()["threshold"]) == keeper.line.threshold.value == keeper.line.serving.threshold


def test_a_line_learns_over_redis_what_it_learns_without(make: Make, streams: LineStreams, unbroken: Line) -> None:
    add(streams, *ENTRIES)
    keeper = learn_all(opened(make()), count=3)
    assert keeper.line.phase == SCORING
    assert_same(keeper.line, unbroken)


@pytest.mark.parametrize("seed", range(6))
def test_a_line_learns_the_same_however_often_its_process_dies(
    make: Make, streams: LineStreams, unbroken: Line, seed: int
) -> None:
    dice = torch.Generator().manual_seed(seed)
    add(streams, *ENTRIES)
    keeper = opened(make(every_images=1000))
    for _ in range(200):
        throw = int(torch.randint(4, (), generator=dice))
        if throw == 0:
            keeper = opened(make(every_images=1000), holder=f"station-1#{time.monotonic_ns()}")
        elif throw == 1 and keeper.snapshot_due | bool(pending(streams)):
            keeper.snapshot()
        else:
            keeper.learn(extract, throw)
        if streams.state()["phase"] == SCORING:
            break
    assert keeper.line.phase == SCORING
    assert_same(keeper.line, unbroken)
    assert keeper.line.threshold == unbroken.threshold


def test_once_scoring_nothing_is_learned_and_what_was_read_ahead_is_let_go(make: Make, streams: LineStreams) -> None:
    add(streams, *ENTRIES)
    keeper = opened(make())
    assert keeper.learn(extract, 100) == len(ENTRIES)
    assert (keeper.line.phase, keeper.line.applied_through) == (SCORING, "11-0")
    keeper.snapshot()
    assert pending(streams) == []
    add(streams, "20-0")
    assert keeper.learn(extract, 100) == 0
    again = opened(make(), holder="station-1#b")
    assert (again.line.phase, again.learn(extract, 100)) == (SCORING, 0)


def test_entries_read_ahead_by_a_process_that_died_scoring_are_let_go(make: Make, streams: LineStreams) -> None:
    add(streams, *ENTRIES[:11])
    keeper = learn_all(opened(make()), count=4)
    assert keeper.line.phase == SCORING
    add(streams, "12-0", "13-0")
    streams.read_learning(keeper.epoch, 10)
    assert pending(streams) == ["12-0", "13-0"]
    opened(make(), holder="station-1#b")
    assert pending(streams) == []


def test_a_snapshot_is_due_by_images_by_time_and_by_the_end_of_a_phase(
    make: Make, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = opened(make(every_images=12))
    assert not keeper.snapshot_due
    add(streams, *ENTRIES[:5])
    assert keeper.learn(extract, 2) == 2
    assert not keeper.snapshot_due
    keeper.learn(extract, 1)
    assert keeper.snapshot_due
    keeper.snapshot()
    assert not keeper.snapshot_due
    keeper.learn(extract, 2)
    assert not keeper.snapshot_due
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now + 1001)
    assert keeper.snapshot_due
    monkeypatch.undo()
    add(streams, "6-0")
    keeper.learn(extract, 1)
    assert keeper.line.phase == CALIBRATING
    assert keeper.snapshot_due


def test_a_pending_entry_that_was_trimmed_is_passed_over(make: Make, streams: LineStreams) -> None:
    add(streams, *ENTRIES[:3])
    keeper = opened(make(every_images=1000))
    streams.read_learning(keeper.epoch, 3)
    streams.client.xtrim(streams.images, minid="2-0", approximate=False)
    keeper.rewind()
    learn_all(keeper)
    keeper.snapshot()
    assert keeper.line.learner.images_seen_ == 8
    assert (keeper.line.applied_through, pending(streams)) == ("3-0", [])


def test_entries_whose_reply_was_lost_are_learned_before_newer_ones(make: Make, streams: LineStreams) -> None:
    add(streams, *ENTRIES[:5])
    keeper = opened(make(every_images=1000))
    keeper.learn(extract, 1)
    streams.read_learning(keeper.epoch, 2)  # delivered, but the keeper never hears of them
    keeper.rewind()
    learn_all(keeper)
    assert (keeper.line.applied_through, keeper.line.learner.images_seen_) == ("5-0", 20)
    keeper.snapshot()
    assert pending(streams) == []


# -- disks that refuse -------------------------------------------------------------------------------------------------


def test_a_snapshot_that_fails_acknowledges_and_commits_nothing(
    make: Make, streams: LineStreams, unbroken: Line, tmp_path: Path
) -> None:
    add(streams, *ENTRIES)
    keeper = opened(make())
    folder = tmp_path / streams.line
    folder.write_text("in the way")
    keeper.learn(extract, 2)
    keeper.snapshot()
    assert pending(streams) == ["1-0", "2-0"]
    assert (streams.state()["model"], keeper.line.serving.model) == ("", None)
    assert keeper.snapshot_due
    folder.unlink()
    learn_all(keeper)
    assert pending(streams) == []
    assert_same(keeper.line, unbroken)


def test_a_phase_that_only_memory_knows_trims_nothing_that_it_was_learned_from(
    make: Make, streams: LineStreams
) -> None:
    add(streams, *ENTRIES)
    keeper = opened(make(every_images=1000))
    for entry in streams.client.xreadgroup("mhpc", "answers", {streams.images: ">"})[0][1]:
        streams.client.xack(streams.images, "mhpc", entry[0])
    while keeper.learn(extract, 1):
        pass
    assert keeper.line.phase == SCORING
    keeper.trim()  # before any snapshot: a kill -9 now must find every entry again
    assert streams.client.xlen(streams.images) == len(ENTRIES)
    again = learn_all(opened(make(), holder="station-1#b"))
    assert (again.line.phase, again.line.learner.images_seen_) == (SCORING, 24)


def test_a_refused_snapshot_is_not_tried_again_at_once(
    make: Make, streams: LineStreams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.keeper.RETRY_SECONDS", 1000.0)
    add(streams, *ENTRIES[:2])
    keeper = opened(make())
    (tmp_path / streams.line).write_text("in the way")
    keeper.learn(extract, 2)
    assert keeper.snapshot_due
    keeper.snapshot()
    assert not keeper.snapshot_due


# -- two keepers -------------------------------------------------------------------------------------------------------


def test_who_was_overtaken_commits_and_acknowledges_nothing(make: Make, streams: LineStreams, unbroken: Line) -> None:
    add(streams, *ENTRIES)
    first = opened(make())
    first.learn(extract, 2)
    first.snapshot()
    first.learn(extract, 2)
    before = streams.state()
    second = opened(make(), holder="station-1#b")
    assert second.epoch == first.epoch + 1
    for step in (first.snapshot, lambda: first.learn(extract, 1), first.trim):
        with pytest.raises(FencedError):
            step()
    assert streams.state() == {**before, "epoch": str(second.epoch)}
    assert pending(streams) == ["3-0", "4-0"]
    assert_same(learn_all(second).line, unbroken)


def test_a_version_that_was_written_and_never_committed_is_not_loaded(
    make: Make, streams: LineStreams, unbroken: Line
) -> None:
    add(streams, *ENTRIES)
    first = opened(make())
    first.learn(extract, 2)
    first.snapshot()
    first.learn(extract, 2)
    streams.acquire("station-1#b", 0, take_over="station-1")
    with pytest.raises(FencedError):
        first.snapshot()
    assert first.store.stems() == [stem_of(1, 1), stem_of(1, 2)]
    third = opened(make(), holder="station-1#c")
    assert (third.epoch, third.line.applied_through) == (3, "2-0")
    assert_same(learn_all(third).line, unbroken)


def test_while_another_holds_the_lease_it_is_said_and_nothing_is_kept(make: Make, streams: LineStreams) -> None:
    add(streams, *ENTRIES)
    opened(make())
    other = make()
    other.acquire("station-2#a", take_over="station-2")
    assert (other.epoch, other.problem) == (0, f"the lease is held by {HOLDER}")


def test_who_does_not_keep_a_line_answers_by_its_newest_version_all_the_same(make: Make, streams: LineStreams) -> None:
    add(streams, *ENTRIES)
    other = make()
    keeper = opened(make())
    while keeper.line.phase != SCORING:
        keeper.learn(extract, 1)
        if keeper.snapshot_due:
            keeper.snapshot()
            other.acquire("station-2#a")
            assert other.epoch == 0
            assert other.line.serving == keeper.line.serving
    assert_same(other.line, keeper.line)


def test_what_was_committed_while_the_lease_changed_hands_is_not_missed(
    make: Make, streams: LineStreams, unbroken: Line
) -> None:
    add(streams, *ENTRIES)
    first, second = opened(make()), make()
    take = second.streams.acquire

    def late(*args: Any) -> tuple[int, str]:
        """The first commits once more after the second has looked, before it has the lease."""
        if first.epoch:
            first.learn(extract, 3)
            first.close(HOLDER)
            first.lose("closed")
            eventually(lambda: not streams.client.exists(streams.lease))
        return take(*args)

    second.streams.acquire = late  # type: ignore[method-assign, assignment]  # the moment that matters cannot be waited for
    second.acquire("station-2#a")
    assert (second.epoch, second.line.applied_through) == (2, "3-0")
    assert_same(learn_all(second).line, unbroken)


def test_who_lost_the_lease_goes_back_to_what_was_committed(make: Make, streams: LineStreams, unbroken: Line) -> None:
    add(streams, *ENTRIES)
    first = opened(make())
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
    streams.release(2, "station-2#a")
    while not first.epoch:
        first.acquire(HOLDER)
    assert first.epoch == 3
    assert_same(learn_all(first).line, unbroken)


def test_a_lease_is_renewed_before_it_ends(make: Make, streams: LineStreams, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = opened(make())
    streams.client.pexpire(streams.lease, 20_000)
    keeper.renew(HOLDER)
    assert streams.client.pttl(streams.lease) <= 20_000
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now + 11)
    keeper.renew(HOLDER)
    assert streams.client.pttl(streams.lease) > 20_000


def test_closing_makes_durable_what_was_learned_and_lets_the_line_go(make: Make, streams: LineStreams) -> None:
    add(streams, *ENTRIES[:3])
    keeper = opened(make(every_images=1000))
    keeper.learn(extract, 10)
    keeper.close(HOLDER)
    assert pending(streams) == []
    assert streams.state()["applied_through"] == "3-0"
    other = make()
    while not other.epoch:
        other.acquire("station-2#a")
    assert other.line.learner.images_seen_ == 12


# -- versions and servers that are not what they were ------------------------------------------------------------------


def test_a_damaged_version_is_set_aside_and_the_one_before_serves(make: Make, streams: LineStreams) -> None:
    add(streams, *ENTRIES[:8])
    keeper = learn_all(opened(make()))
    newest = streams.state()["model"]
    assert (newest, keeper.line.applied_through) == (stem_of(1, 4), "8-0")
    flip_a_bit(keeper.store.directory / f"{newest}.safetensors")
    again = opened(make(), holder="station-1#b")
    assert (again.line.applied_through, again.line.serving.model) == ("6-0", stem_of(2, 1))
    assert streams.state()["model"] == stem_of(2, 1)  # old content, a new version: versions only grow
    assert (again.store.directory / f"{newest}.bad").exists()
    add(streams, "9-0", "10-0")
    learn_all(again)
    assert streams.state()["model"] == stem_of(2, 2)


def test_when_no_whole_version_is_left_nobody_learns_over_the_committed_one(make: Make, streams: LineStreams) -> None:
    add(streams, *ENTRIES[:8])
    keeper = learn_all(opened(make()))
    for stem in keeper.store.stems():
        flip_a_bit(keeper.store.directory / f"{stem}.safetensors")
    before = streams.state()
    with pytest.raises(ModelError, match=r"holds no whole snapshot.*DEL"):
        opened(make(), holder="station-1#b")
    assert streams.state() == before


def test_versions_on_disk_are_pruned_and_the_committed_one_stays(make: Make, streams: LineStreams) -> None:
    add(streams, *ENTRIES)
    keeper = learn_all(opened(make(every_images=1, keep=2)))
    assert keeper.store.stems() == [stem_of(1, 10), stem_of(1, 11)]
    assert streams.state()["model"] == stem_of(1, 11)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_wiped_server_starts_above_the_epoch_on_disk(make: Make, streams: LineStreams, damaged: bool) -> None:
    add(streams, *ENTRIES[:8])
    for holder in ("station-1#a", "station-1#b", "station-1#c"):
        keeper = opened(make(), holder=holder)
    learn_all(keeper)
    assert keeper.epoch == 3
    if damaged:
        flip_a_bit(keeper.store.directory / f"{keeper.store.stems()[-1]}.safetensors")
    streams.client.delete(streams.images, streams.state_key, streams.lease)
    streams.ensure_groups()
    again = opened(make(), holder="station-1#d")
    assert (again.epoch, again.line.phase) == (4, CALIBRATING)
    assert again.line.applied_through == ("6-0" if damaged else "8-0")
    add(streams, *ENTRIES[8:])
    assert learn_all(again).line.phase == SCORING


def test_a_process_that_lives_through_a_wipe_keeps_on_above_its_own_epoch(make: Make, streams: LineStreams) -> None:
    add(streams, *ENTRIES[:4])
    keeper = learn_all(opened(make()))
    streams.client.delete(streams.images, streams.state_key, streams.lease)
    streams.ensure_groups()
    with pytest.raises(FencedError):
        keeper.learn(extract, 1)
    keeper.lose("wiped")
    opened(keeper)
    assert (keeper.epoch, keeper.line.applied_through) == (2, "4-0")


def test_a_stream_that_went_back_stops_the_line(make: Make, streams: LineStreams) -> None:
    add(streams, *ENTRIES[:4])
    learn_all(opened(make()))
    streams.client.delete(streams.images)
    streams.ensure_groups()
    add(streams, "3-0")
    again = make()
    again.acquire("station-1#b", take_over="station-1")
    assert (again.stopped, again.epoch) == (True, 0)
    for part in ("ends at 3-0", "before 4-0", "restore Redis"):
        assert part in again.problem
    again.acquire("station-1#b", take_over="station-1")
    assert again.epoch == 0
    assert streams.state()["applied_through"] == "4-0"


def test_who_cannot_use_the_lines_version_does_not_take_its_lease(make: Make, streams: LineStreams) -> None:
    add(streams, *ENTRIES[:4])
    keeper = learn_all(opened(make()))
    keeper.close(HOLDER)
    before = streams.state()
    with pytest.raises(ModelError, match="another backbone, weights, layers or input_shape") as caught:
        make(fingerprint="g").acquire("station-1#b", take_over="station-1")
    assert streams.line in str(caught.value)
    assert streams.state() == before
    while streams.client.exists(streams.lease):
        assert streams.client.get(streams.lease) == HOLDER.encode()
    assert keeper.store.stems() == [stem_of(1, 1), stem_of(1, 2)]


# -- trimming and metrics ----------------------------------------------------------------------------------------------


def answer_all(streams: LineStreams) -> None:
    for _, entries in read_answering(streams.client, [streams], "station-1", 100, None):
        streams.client.xack(streams.images, ANSWERING, *[entry.id for entry in entries])


def test_trimming_waits_for_learning_while_the_line_learns_and_not_when_it_scores(
    make: Make, streams: LineStreams
) -> None:
    add(streams, *ENTRIES[:4])
    answer_all(streams)
    keeper = opened(make())
    keeper.trim()
    assert streams.client.xlen(streams.images) == 4
    keeper.learn(extract, 3)
    keeper.snapshot()
    keeper.trim()
    assert streams.client.xlen(streams.images) == 1
    add(streams, *ENTRIES[4:])
    answer_all(streams)
    learn_all(keeper)
    assert keeper.line.phase == SCORING
    add(streams, "20-0", "21-0")
    answer_all(streams)
    add(streams, "22-0")
    keeper.trim()
    assert streams.client.xlen(streams.images) == 1
    assert streams.state()["done_through"] == "21-0"


def test_the_lines_gauges_follow_its_phase(make: Make, streams: LineStreams) -> None:
    keeper = opened(make())

    def gauge(name: str, **labels: str) -> float | None:
        return keeper.metrics.registry.get_sample_value(f"mhpc_{name}", {"line": streams.line, **labels})

    def phases() -> list[float | None]:
        return [gauge("line_phase", phase=phase) for phase in (LEARNING, CALIBRATING, SCORING)]

    assert phases() == [1, 0, 0]
    add(streams, *ENTRIES[:6])
    learn_all(keeper)
    assert phases() == [0, 1, 0]
    assert gauge("bank_anchors") == 60
    assert gauge("bank_radius")
    assert gauge("pca_components") == 6
    add(streams, *ENTRIES[6:])
    learn_all(keeper)
    assert phases() == [0, 0, 1]
    assert gauge("threshold") == keeper.line.serving.threshold
    assert gauge("images_total", outcome="learned") == 24
    assert gauge("snapshot_last_success_timestamp_seconds")
