"""What commands do to a line: over a real Redis, by a keeper that may fail in between."""

import msgpack
import pytest
import redis
import torch

from mhpc.core.memory_bank import MemoryBank
from tests.worker.commanding import limit, look, put_up_for_review, replies, score, told, trained, version
from tests.worker.keepers import MakeKeeper, add, answer_all, extract, learn_all, opened
from worker.keeping.keeper import Keeper
from worker.line import CALIBRATING, LEARNING, SCORING
from worker.streams.control import send
from worker.streams.line_streams import LineStreams

# -- relearning and rolling back ---------------------------------------------------------------------------------------


def test_while_a_line_relearns_the_version_before_answers(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = trained(make_keeper, streams)
    old = keeper.line.serving
    expected = score(keeper)
    ok, text = told(keeper, "relearn")
    assert ok, text
    assert keeper.line.phase == LEARNING
    seen = set()
    for number in range(101, 112):
        streams.client.xadd(streams.images, {"batch": f"{number}-0"}, id=f"{number}-0")
        learn_all(keeper)
        if keeper.line.phase != SCORING:
            seen.add(keeper.line.phase)
            assert keeper.line.serving[1:5] == old[1:5]
            assert score(keeper) == expected
            restored = make_keeper()
            restored.acquire("station-2#b")  # another worker, or this one after a crash
            assert restored.line.serving[1:4] == old[1:4]
            assert score(restored) == expected
    assert seen == {LEARNING, CALIBRATING}
    assert keeper.line.phase == SCORING
    assert version(keeper) > str(old.model)
    assert not keeper.line.relearning
    assert score(keeper) != expected


def test_relearning_begins_at_the_newest_entry(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = trained(make_keeper, streams)
    add(streams, "50-0", "51-0")
    told(keeper, "relearn")
    assert keeper.learn(extract, 10) == 0
    add(streams, "52-0")
    assert keeper.learn(extract, 10) == 1
    assert keeper.line.learner.images_seen_ == 4


def test_forgetting_lets_the_past_count_for_less(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = trained(make_keeper, streams)
    rows = keeper.line.learner.rows_seen_
    told(keeper, "relearn", forgetting=0.001)
    add(streams, "101-0")
    learn_all(keeper)
    assert keeper.line.learner.rows_seen_ == pytest.approx(rows * 0.001 ** (4 / 1000) + 4 * 16, abs=2)


def test_a_rollback_makes_a_new_version_of_an_earlier_one(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = trained(make_keeper, streams)
    before, versions = score(keeper), keeper.store.stems()
    put_up_for_review(keeper)
    told(keeper, "normal", entry="9-9", id="part")
    applied = keeper.line.applied_through
    assert score(keeper) != before
    ok, text = told(keeper, "rollback")
    assert ok
    assert versions[-1] in text
    assert score(keeper) == before
    assert version(keeper) > max(versions)
    assert keeper.line.applied_through == applied
    ok, text = told(keeper, "rollback", version="0000000009-0000000009")
    assert not ok
    assert version(keeper) in text


# -- phases and the rate -----------------------------------------------------------------------------------------------


def test_a_paused_line_learns_nothing_until_it_is_resumed_and_goes_on_with_the_next_part(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = opened(make_keeper())
    assert told(keeper, "resume")[0] is False
    add(streams, "1-0")
    assert keeper.learn(extract, 10) == 1
    assert "answered as before" in told(keeper, "pause")[1]
    assert streams.state()["phase"] == "paused"
    add(streams, "2-0", "3-0")
    assert keeper.learn(extract, 10) == 0
    ok, text = told(keeper, "resume")
    assert (ok, text.startswith("goes on in phase learning with the next part")) == (True, True)
    assert keeper.learn(extract, 10) == 0
    add(streams, "4-0")
    assert keeper.learn(extract, 10) == 1
    assert (keeper.line.learner.images_seen_, keeper.line.applied_through) == (8, "4-0")


def test_a_paused_line_trims_what_was_answered_and_comes_back_though_it_is_gone(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = opened(make_keeper())
    told(keeper, "pause")
    add(streams, "1-0", "2-0")
    answer_all(streams)
    keeper.trim()
    assert streams.client.xlen(streams.images) == 0
    again = opened(make_keeper(), "station-1#b")
    assert again.line.paused
    assert told(again, "resume")[0]
    add(streams, "3-0")
    assert again.learn(extract, 10) == 1
    assert again.line.learner.images_seen_ == 4


@pytest.mark.parametrize(("command", "begins"), [("relearn", "learns again"), ("calibrate", "calibrates")])
def test_what_begins_with_the_next_part_begins_on_a_paused_line_once_it_is_resumed(
    make_keeper: MakeKeeper, streams: LineStreams, command: str, begins: str
) -> None:
    keeper = trained(make_keeper, streams)
    told(keeper, "pause")
    ok, text = told(keeper, command)
    assert ok
    assert text.startswith(f"{begins} once the line is resumed")
    add(streams, "101-0")
    assert keeper.learn(extract, 5) == 0
    told(keeper, "resume")
    add(streams, "102-0")
    assert keeper.learn(extract, 5) == 1


def test_a_paused_line_goes_on_scoring_and_watches_nothing(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = trained(make_keeper, streams)
    before, threshold = score(keeper), limit(keeper)
    told(keeper, "pause")
    assert (score(keeper), limit(keeper)) == (before, threshold)
    assert keeper.line.serving.phase == "paused"
    monitor = keeper.line.monitor
    assert monitor is not None
    assert len(monitor.recent_scores_) == 1  # of the part before the pause
    assert told(keeper, "resume") == (True, "goes on in phase scoring")


def test_a_rate_of_a_command_outlasts_the_process(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = trained(make_keeper, streams)
    before = limit(keeper)
    assert told(keeper, "rate", rate=0.4)[0]
    assert limit(keeper) < before
    assert make_and_load(make_keeper).line.threshold == keeper.line.threshold
    assert told(keeper, "rate", rate=2)[1] == "rate is 2, expected a number between 0 and 1"


def make_and_load(make_keeper: MakeKeeper) -> Keeper:
    keeper = make_keeper()
    keeper.acquire("station-2#b")
    return keeper


def test_calibrating_anew_keeps_the_old_threshold_until_it_is_done(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = trained(make_keeper, streams)
    before = limit(keeper)
    assert told(keeper, "calibrate")[0]
    assert (keeper.line.phase, limit(keeper)) == (CALIBRATING, before)
    add(streams, *(f"{number}-0" for number in range(201, 206)))
    learn_all(keeper)
    assert keeper.line.phase == SCORING
    assert limit(keeper) != before


# -- once, whatever happens --------------------------------------------------------------------------------------------


def test_a_command_that_cannot_be_one_is_answered_and_passed(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = opened(make_keeper())
    for value in (b"", b"\xc1", msgpack.packb([1]), msgpack.packb({"v": 1, "name": "explode"}), b"x" * 20_000):
        streams.client.xadd(streams.control, {"command": value})
    streams.client.xadd(streams.control, {"other": "field"})
    send(streams, "normal", {"entry": "1-0"}, "ann")
    look(keeper)
    answers = replies(streams)
    assert [ok for ok, _ in answers] == [False] * 7
    assert "expected one of relearn, calibrate" in answers[3][1]
    assert answers[-1][1] == "normal came with the arguments entry, expected entry, id"
    look(keeper)
    make_and_load(make_keeper)
    assert make_and_load(make_keeper).line.commands_through == keeper.line.commands_through
    assert len(replies(streams)) == 7


@pytest.mark.parametrize("fails", ["put", "commit"])
def test_a_command_is_carried_out_and_answered_once_though_the_keeper_dies(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    keeper = trained(make_keeper, streams)
    put_up_for_review(keeper)
    target = keeper.store if fails == "put" else keeper.streams

    def dies(*_: object) -> None:
        raise redis.ConnectionError("the power is gone")

    monkeypatch.setattr(target, fails, dies)
    send(streams, "normal", {"entry": "9-9", "id": "part"}, "ann")
    with pytest.raises(redis.ConnectionError):
        look(keeper)
    assert replies(streams) == []
    monkeypatch.undo()
    again = opened(make_keeper(), "station-1#c")
    assert score(again) > limit(again)
    look(again)
    look(again)
    assert [ok for ok, _ in replies(streams)] == [True]
    assert score(again) < limit(again)
    bank = again.line.learner.bank_
    assert isinstance(bank, MemoryBank)
    assert int(bank.pinned.sum()) == int(replies(streams)[0][1].split()[0])
    assert torch.isfinite(bank.images).all()
