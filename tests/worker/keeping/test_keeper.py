import time
from pathlib import Path

import pytest
import torch

from tests.worker.keepers import (
    ENTRIES,
    MakeKeeper,
    add,
    answer_all,
    assert_same,
    extract,
    learn_all,
    opened,
    pending,
)
from worker.line import CALIBRATING, LEARNING, SCORING, Line
from worker.snapshots import stem_of
from worker.streams.ids import FROM_START
from worker.streams.line_streams import LineStreams

# -- learning, committing, acknowledging -------------------------------------------------------------------------------


def test_nothing_is_acknowledged_before_it_is_durable_and_committed(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES[:2])
    keeper = opened(make_keeper(every_images=1000))
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


def test_a_commit_sets_phase_model_threshold_and_applied_through_together(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES)
    keeper = opened(make_keeper())
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


def test_a_line_learns_over_redis_what_it_learns_without(
    make_keeper: MakeKeeper, streams: LineStreams, unbroken: Line
) -> None:
    add(streams, *ENTRIES)
    keeper = learn_all(opened(make_keeper()), count=3)
    assert keeper.line.phase == SCORING
    assert_same(keeper.line, unbroken)


@pytest.mark.parametrize("seed", range(6))
def test_a_line_learns_the_same_however_often_its_process_dies(
    make_keeper: MakeKeeper, streams: LineStreams, unbroken: Line, seed: int
) -> None:
    dice = torch.Generator().manual_seed(seed)
    add(streams, *ENTRIES)
    keeper = opened(make_keeper(every_images=1000))
    for _ in range(200):
        throw = int(torch.randint(4, (), generator=dice))
        if throw == 0:
            keeper = opened(make_keeper(every_images=1000), holder=f"station-1#{time.monotonic_ns()}")
        elif throw == 1 and keeper.snapshot_due | bool(pending(streams)):
            keeper.snapshot()
        else:
            keeper.learn(extract, throw)
        if streams.state()["phase"] == SCORING:
            break
    assert keeper.line.phase == SCORING
    assert_same(keeper.line, unbroken)
    assert keeper.line.threshold == unbroken.threshold


def test_once_scoring_nothing_is_learned_and_what_was_read_ahead_is_let_go(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES)
    keeper = opened(make_keeper())
    assert keeper.learn(extract, 100) == len(ENTRIES)
    assert (keeper.line.phase, keeper.line.applied_through) == (SCORING, "11-0")
    keeper.snapshot()
    assert pending(streams) == []
    add(streams, "20-0")
    assert keeper.learn(extract, 100) == 0
    again = opened(make_keeper(), holder="station-1#b")
    assert (again.line.phase, again.learn(extract, 100)) == (SCORING, 0)


def test_entries_read_ahead_by_a_process_that_died_scoring_are_let_go(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES[:11])
    keeper = learn_all(opened(make_keeper()), count=4)
    assert keeper.line.phase == SCORING
    add(streams, "12-0", "13-0")
    streams.read_learning(keeper.epoch, 10)
    assert pending(streams) == ["12-0", "13-0"]
    opened(make_keeper(), holder="station-1#b")
    assert pending(streams) == []


def test_a_snapshot_is_due_by_images_by_time_and_by_the_end_of_a_phase(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = opened(make_keeper(every_images=12))
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


def test_a_pending_entry_that_was_trimmed_is_passed_over(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    add(streams, *ENTRIES[:3])
    keeper = opened(make_keeper(every_images=1000))
    streams.read_learning(keeper.epoch, 3)
    streams.client.xtrim(streams.images, minid="2-0", approximate=False)
    keeper.reading.rewind()
    learn_all(keeper)
    keeper.snapshot()
    assert keeper.line.learner.images_seen_ == 8
    assert (keeper.line.applied_through, pending(streams)) == ("3-0", [])


def test_entries_whose_reply_was_lost_are_learned_before_newer_ones(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES[:5])
    keeper = opened(make_keeper(every_images=1000))
    keeper.learn(extract, 1)
    streams.read_learning(keeper.epoch, 2)  # delivered, but the keeper never hears of them
    keeper.reading.rewind()
    learn_all(keeper)
    assert (keeper.line.applied_through, keeper.line.learner.images_seen_) == ("5-0", 20)
    keeper.snapshot()
    assert pending(streams) == []


# -- disks that refuse -------------------------------------------------------------------------------------------------


def test_a_snapshot_that_fails_acknowledges_and_commits_nothing(
    make_keeper: MakeKeeper, streams: LineStreams, unbroken: Line, tmp_path: Path
) -> None:
    add(streams, *ENTRIES)
    keeper = opened(make_keeper())
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
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES)
    keeper = opened(make_keeper(every_images=1000))
    for entry in streams.client.xreadgroup("mhpc", "answers", {streams.images: ">"})[0][1]:
        streams.client.xack(streams.images, "mhpc", entry[0])
    while keeper.learn(extract, 1):
        pass
    assert keeper.line.phase == SCORING
    keeper.trim()  # before any snapshot: a kill -9 now must find every entry again
    assert streams.client.xlen(streams.images) == len(ENTRIES)
    again = learn_all(opened(make_keeper(), holder="station-1#b"))
    assert (again.line.phase, again.line.learner.images_seen_) == (SCORING, 24)


def test_a_refused_snapshot_is_not_tried_again_at_once(
    make_keeper: MakeKeeper, streams: LineStreams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.keeping.schedule.RETRY_SECONDS", 1000.0)
    add(streams, *ENTRIES[:2])
    keeper = opened(make_keeper())
    (tmp_path / streams.line).write_text("in the way")
    keeper.learn(extract, 2)
    assert keeper.snapshot_due
    keeper.snapshot()
    assert not keeper.snapshot_due


def test_how_long_something_waits_for_a_snapshot_is_told_while_the_disk_refuses(
    make_keeper: MakeKeeper, streams: LineStreams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(streams, *ENTRIES[:2])
    keeper, now = opened(make_keeper()), 1000.0
    monkeypatch.setattr("worker.keeping.schedule.time.monotonic", lambda: now)
    folder = tmp_path / streams.line
    folder.write_text("in the way")
    assert not keeper.snapshot_due
    now += 50
    assert keeper.schedule.owed_seconds == 0
    keeper.learn(extract, 2)
    for _ in range(2):
        assert keeper.snapshot_due
        keeper.snapshot()
        now += 100
    assert keeper.schedule.owed_seconds == 200
    folder.unlink()
    keeper.snapshot()
    assert keeper.schedule.owed_seconds == 0


# -- trimming and metrics ----------------------------------------------------------------------------------------------


def test_trimming_waits_for_learning_while_the_line_learns_and_not_when_it_scores(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES[:4])
    answer_all(streams)
    keeper = opened(make_keeper())
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


def test_the_lines_gauges_follow_its_phase(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = opened(make_keeper())

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
    keeper.lose("another keeper took over")
    assert phases() == [None, None, None]
