"""Commands where they are hardest: replies that are lost, versions that answer meanwhile, parts set aside late."""

from typing import Any

import msgpack
import pytest
import redis
import torch
from redis.backoff import NoBackoff
from redis.retry import Retry

from mhpc.core.memory_bank import MemoryBank
from tests.worker.commanding import limit, look, put_up_for_review, replies, score, told, trained, version
from tests.worker.helpers import LosesReplies, patches
from tests.worker.keepers import ENTRIES, HOLDER, MakeKeeper, add, extract, learn_all, opened
from tests.worker.station import Station
from worker.errors import ModelError, RefusedError, SnapshotError
from worker.keeping.keeper import Keeper
from worker.line import CALIBRATING, LEARNING, SCORING, Line
from worker.message import Image
from worker.records import SetAside, Source
from worker.snapshots import packed
from worker.streams import review
from worker.streams.control import send
from worker.streams.line_streams import Commit, LineStreams, ReviewPart

# -- answered once -----------------------------------------------------------------------------------------------------


def test_a_command_is_answered_once_though_the_reply_to_its_commit_is_lost(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = trained(make_keeper, streams)
    put_up_for_review(keeper)
    epoch, port = keeper.epoch, streams.client.connection_pool.connection_kwargs["port"]
    proxy = LosesReplies(port, lambda command: b"commands_through" in command and not proxy.lost)
    client: Any = redis.Redis(port=proxy.port, protocol=2, retry=Retry(NoBackoff(), 0))
    keeper.streams = keeper.reading.streams = LineStreams(client, streams.line)
    keeper.owed.review = [ReviewPart("1-0", "aside", "quarantined", "", "", "", b"")]
    send(streams, "normal", {"entry": "9-9", "id": "part"}, "ann")
    with pytest.raises(redis.ConnectionError):
        look(keeper)
    assert (keeper.epoch, keeper.owed.changed) == (0, False)
    opened(keeper)
    assert keeper.epoch == epoch + 1
    for _ in range(3):
        look(keeper)
        assert not keeper.snapshot_due
    assert [ok for ok, _ in replies(streams)] == [True]
    assert len(review.find(streams, "1-0", "aside")) == 1
    assert score(keeper) < limit(keeper)


def test_an_answer_to_a_command_that_changed_nothing_says_nothing_of_what_is_not_durable(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = opened(make_keeper(every_images=1000))
    add(streams, *ENTRIES[:7])
    learn_all(keeper)
    keeper.snapshot()
    before = streams.state()
    add(streams, "20-0")
    keeper.learn(extract, 1)
    assert told(keeper, "resume") == (False, "the line is not paused")
    after = streams.state()
    assert after["commands_through"] > before["commands_through"]
    for name in ("phase", "model", "applied_through", "threshold"):
        assert after[name] == before[name]


def test_a_snapshot_of_the_release_before_is_refused_in_one_line(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = trained(make_keeper, streams)
    newest = keeper.store.load(version(keeper))
    monkeypatch.setattr("worker.snapshots.VERSION", 1)
    keeper.store.put(newest.stem, packed(newest.tensors, {"line": streams.line}))
    monkeypatch.undo()
    with pytest.raises(ModelError, match="has format 1, this release reads 2; use one that fits, or learn anew"):
        make_keeper().acquire("station-2#b")


# -- a version answers whatever happens --------------------------------------------------------------------------------


def test_relearning_while_first_calibrating_keeps_the_version_that_answers(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES[:7])
    keeper = learn_all(opened(make_keeper()))
    keeper.snapshot()
    assert keeper.line.phase == CALIBRATING
    before = score(keeper)
    assert told(keeper, "relearn", forgetting=1.0)[0]
    assert keeper.line.phase == LEARNING
    assert score(keeper) == before
    assert keeper.line.serving.threshold is None
    assert score(opened(make_keeper(), "station-1#b")) == before


def test_a_part_called_normal_while_relearning_counts_at_once_and_only_with_the_commit(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = trained(make_keeper, streams)
    told(keeper, "relearn")
    put_up_for_review(keeper)
    old, before = version(keeper), score(keeper)
    with monkeypatch.context() as patched:
        patched.setattr(keeper.store, "put", refuse)
        send(streams, "normal", {"entry": "9-9", "id": "part"}, "ann")
        look(keeper)
        assert (version(keeper), score(keeper)) == (old, before)
    keeper.snapshot()
    assert score(keeper) < limit(keeper)
    new = version(keeper)
    assert new > old
    keeper.snapshot()
    assert version(keeper) == new  # its bank has not changed since
    again = opened(make_keeper(), "station-1#b")
    assert (version(again), score(again)) == (new, score(keeper))


def refuse(*_: object) -> None:
    raise SnapshotError("not now")


def test_rolling_back_to_a_version_that_was_relearning_keeps_what_answered_then(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = trained(make_keeper, streams)
    before, threshold = score(keeper), limit(keeper)
    told(keeper, "relearn")
    relearning = keeper.model
    told(keeper, "rate", rate=0.3)
    ok, text = told(keeper, "rollback", version=relearning)
    assert ok, text
    assert (keeper.line.phase, keeper.line.false_positive_rate) == (LEARNING, 0.05)
    assert (score(keeper), limit(keeper)) == (before, threshold)
    add(streams, "101-0")
    assert keeper.learn(extract, 5) == 1


def test_rolling_back_to_a_version_that_still_learned_keeps_the_present_one_answering(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, *ENTRIES)
    keeper = learn_all(opened(make_keeper(keep=20)))
    assert keeper.line.phase == SCORING
    before, first = score(keeper), keeper.store.stems()[0]
    assert told(keeper, "rollback", version=first)[0]
    assert keeper.line.phase == LEARNING
    assert score(keeper) == before


def test_rolling_back_across_another_top_k_is_refused(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = trained(make_keeper, streams)
    scoring = keeper.line.config.scoring.model_copy(update={"top_k": 1})
    keeper.line.config = keeper.line.config.model_copy(update={"scoring": scoring})
    ok, text = told(keeper, "rollback", version=keeper.model)
    assert not ok
    assert text.endswith("was calibrated with scoring.top_k 3, it is 1")


# -- the same whatever way it came -------------------------------------------------------------------------------------


def test_forgetting_does_not_depend_on_how_an_entry_was_cut(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    tensors, metadata = told_to_relearn(trained(make_keeper, streams)).state()
    whole, cut = make_keeper().line, make_keeper().line
    images = patches(99, 44)
    for line, chunks in ((whole, [images]), (cut, images.split(32))):
        line.restore(tensors, metadata)
        line.apply("101-0", chunks)
    expected, found = whole.state(), cut.state()
    assert found[1] == expected[1]
    assert all(torch.equal(tensor, expected[0][name]) for name, tensor in found[0].items())


def told_to_relearn(keeper: Keeper) -> Line:
    assert told(keeper, "relearn", forgetting=0.3)[0]
    return keeper.line


# -- parts set aside ---------------------------------------------------------------------------------------------------


def test_parts_that_the_end_of_learning_sets_aside_are_in_the_commit_of_the_command_that_ended_it(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = opened(make_keeper(every_images=1000))
    add(streams, *ENTRIES[:3])
    keeper.learn(extract, 3)
    monkeypatch.setattr(keeper.line.learner, "freeze", lambda: torch.tensor([5]))
    assert told(keeper, "calibrate")[0]
    assert [(part.why, part.learned) for _, part in review.find(streams, "2-0", "#1")] == [("quarantined", "1")]


def test_a_part_released_while_learning_is_in_no_doubt_when_learning_ends(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = opened(make_keeper(every_images=1000))
    add(streams, *ENTRIES[:3])
    keeper.learn(extract, 2)
    put_up_for_review(keeper, why="quarantined")
    assert told(keeper, "release", entry="9-9", id="part") == (True, "learned after all")
    keeper.learn(extract, 1)
    assert keeper.line.sources == [Source("1-0", 0), Source("2-0", 4), Source("3-0", 9)]
    bank = keeper.line.learner.bank_
    assert isinstance(bank, MemoryBank)
    assert sorted(set(bank.picture.tolist()) - {-1}) == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12]
    again = opened(make_keeper(every_images=1000), "station-1#b")
    assert again.line.sources == keeper.line.sources[:2]
    monkeypatch.setattr(keeper.line.learner, "freeze", lambda: torch.tensor([9]))
    keeper.line.end_learning()
    assert keeper.line.set_aside == [SetAside("3-0", 0)]


def test_a_part_set_aside_late_is_kept_with_its_bytes_while_the_stream_has_them(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = opened(make_keeper())
    add(streams, "1-0")
    images = [Image("a", "png", b"of a"), Image("b", "png", b"of b")]
    parts = [SetAside("1-0", 1), SetAside("1-0", 0), SetAside("1-0", 5), SetAside("8-0", 0)]
    keeper.owed.set_aside_late(parts, streams, lambda _: images)
    assert [(part.entry, part.id, bool(part.image), part.learned) for part in keeper.owed.review] == [
        ("1-0", "b", True, "1"),
        ("1-0", "a", True, "1"),
        ("1-0", "#5", False, "1"),
        ("8-0", "#0", False, "1"),
    ]


def test_a_part_leaves_review_with_the_commit_and_not_without(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = trained(make_keeper, streams)
    put_up_for_review(keeper)
    ((key, _),) = review.find(streams, "9-9", "part")
    streams.acquire("other#1", 0, take_over=HOLDER.partition("#")[0])
    with pytest.raises(Exception, match="FENCED"):
        keeper.streams.commit(keeper.epoch, {"phase": "x"}, Commit(b"reply", dropped=[key]))
    assert len(review.find(streams, "9-9", "part")) == 1
    streams.commit(keeper.epoch + 1, {"phase": "x"}, Commit(b"reply", dropped=[key]))
    assert review.find(streams, "9-9", "part") == []
    assert streams.client.xlen(streams.replies) == 1


def test_what_review_holds_and_is_no_picture_is_refused(engine: Any, client: redis.Redis, tmp_path: Any) -> None:
    station = Station(client, engine, tmp_path, "a")
    for image in (b"", b"\xc1", msgpack.packb([1]), review.pack_image(Image("a", "png", b"cut"))):
        with pytest.raises(RefusedError, match=r"not a picture|cannot be decoded"):
            station.answering.opening.features_of(image)
